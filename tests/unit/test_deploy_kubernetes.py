"""The Kubernetes deployment: its objects hold together, name only what this project has, and fit their schemas."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_objects import (
    K8S,
    OVERLAYS,
    ROOT,
    Object,
    build,
    copy_with_secrets,
    named,
    read,
    why_not_buildable,
    workloads,
    written,
)
from kubernetes_rules import (
    DOCKERFILE,
    NOBODYS_REGISTRY,
    RULES,
    Rule,
    dangling_references,
    flows,
    ways_out,
)
from prometheus_client import CollectorRegistry

from common.keys import Keys
from common.metrics import RunMetrics
from common.settings import RunFile, load_run
from services.generator.lifetime import CLOSE_S

SCHEMAS = ("1.32", "1.37")
"""The oldest and the newest Kubernetes whose schemas everything has to fit."""
RUN_FILES = {
    "cpu-demo": ("overlays/cpu-demo/run.toml", "run.cpu.toml"),
    "gpu": ("components/gpu/run.toml", "run.gpu.toml"),
    "gpu-multi": ("components/gpu/run.toml", "run.gpu.toml"),
}
WRITTEN = ("base", "components/hub", "components/scorer", "components/keda", "components/hpa", "components/monitoring")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Object]]:
    """Overlay → its objects, as kustomize builds them. `everything` is `gpu` with components that it goes without."""
    if reason := why_not_buildable():
        pytest.skip(reason)
    k8s = copy_with_secrets(tmp_path_factory.mktemp("deployment"))
    everything = k8s / "overlays" / "everything"
    everything.mkdir()
    text = (k8s / "overlays" / "gpu" / "kustomization.yaml").read_text(encoding="utf-8")
    more = "".join(f"  - ../../components/{name}\n" for name in ("scorer", "monitoring", "hpa"))
    (everything / "kustomization.yaml").write_text(text.replace("components:\n", f"components:\n{more}"))
    (everything / "secret.env").write_text("REDIS_PASSWORD=a\nTRIBUTARY_TOKEN=b\nHF_TOKEN=c\n")
    done: dict[str, list[Object]] = {}

    def objects(overlay: str) -> list[Object]:
        if overlay not in done:
            done[overlay] = build(k8s / "overlays" / overlay)
        return done[overlay]

    return objects


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RunFile]:
    """Overlay → its run, as its processes read it."""

    def loaded(overlay: str) -> RunFile:
        for name, value in _environment(overlay).items():
            monkeypatch.setenv(name, value)
        return load_run(K8S / RUN_FILES[overlay][0])

    return loaded


def _environment(overlay: str) -> dict[str, str]:
    (kustomization,) = read(K8S / "overlays" / overlay / "kustomization.yaml")
    maps = {m["name"]: m.get("literals", []) for m in kustomization["configMapGenerator"]}
    return dict(literal.split("=", 1) for literal in maps["tributary-environment"])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_what_is_written_has_nothing(rule: Rule) -> None:
    assert list(rule(written(*WRITTEN))) == []


@pytest.mark.parametrize("overlay", [*OVERLAYS, "everything"])
@pytest.mark.parametrize("rule", [*RULES, dangling_references], ids=lambda rule: rule.__name__)
def test_what_is_built_has_nothing(rule: Rule, overlay: str, built: Callable[[str], list[Object]]) -> None:
    assert list(rule(built(overlay))) == []


@pytest.mark.parametrize("version", SCHEMAS)
@pytest.mark.parametrize("overlay", [*OVERLAYS, "everything"])
def test_a_built_overlay_fits_the_schemas(overlay: str, version: str, built: Callable[[str], list[Object]]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="the PyPI package kubernetes-validate is missing")
    for thing in built(overlay):
        if thing["apiVersion"].split("/")[0] not in ("keda.sh", "monitoring.coreos.com"):
            validate.validate(thing, version, strict=True)


def test_a_schema_refuses_what_it_does_not_know(built: Callable[[str], list[Object]]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="the PyPI package kubernetes-validate is missing")
    wrong = copy.deepcopy(named(built("gpu"), "Deployment")["generator"])
    wrong["spec"]["template"]["spec"]["tolerationz"] = []
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, SCHEMAS[0], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_lies_in_the_namespace_that_the_overlay_makes(
    overlay: str, built: Callable[[str], list[Object]]
) -> None:
    (namespace,) = named(built(overlay), "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [o for o in built(overlay) if o["kind"] != "Namespace"]
    assert {o["metadata"]["namespace"] for o in others} == {namespace["metadata"]["name"]}


def _plant(rule: Rule, change: Callable[[list[Object]], None]) -> list[str]:
    objects = copy.deepcopy(written(*WRITTEN))
    change(objects)
    return list(rule(objects))


def _generator(objects: list[Object]) -> dict[str, Any]:
    return named(objects, "Deployment")["generator"]["spec"]["template"]["spec"]


def _policy(objects: list[Object], name: str) -> dict[str, Any]:
    return named(objects, "NetworkPolicy")[name]["spec"]


PLANTED: dict[str, tuple[str, Callable[[list[Object]], Any]]] = {
    "a container that may write to its root": (
        "unhardened",
        lambda o: _generator(o)["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    "a pod that may be root": ("unhardened", lambda o: _generator(o)["securityContext"].update(runAsUser=0)),
    "a pod with a token": ("unhardened", lambda o: _generator(o).update(automountServiceAccountToken=True)),
    "a container without requests": (
        "unmeasured",
        lambda o: _generator(o)["containers"][0]["resources"].pop("requests"),
    ),
    "no probe": ("unprobed", lambda o: _generator(o)["containers"][0].pop("livenessProbe")),
    "a probe of no port": (
        "unprobed",
        lambda o: _generator(o)["containers"][0]["readinessProbe"]["httpGet"].update(port="http"),
    ),
    "a policy for nobody": (
        "open_doors",
        lambda o: _policy(o, "redis").update(podSelector={"matchLabels": {"a": "b"}}),
    ),
    "a policy for a wrong port": (
        "open_doors",
        lambda o: _policy(o, "to-redis")["egress"][0]["ports"][0].update(port=6380),
    ),
    "a network that is open": ("open_doors", lambda o: _policy(o, "default-deny").update(policyTypes=["Ingress"])),
    "a budget for nobody": (
        "unbudgeted",
        lambda o: named(o, "PodDisruptionBudget")["redis"]["spec"].update(selector={"matchLabels": {"a": "b"}}),
    ),
    "a claim of nothing": (
        "loose_ends",
        lambda o: named(o, "PersistentVolumeClaim")["weights"]["metadata"].update(name="wights"),
    ),
    "an image of others": (
        "foreign_programs",
        lambda o: _generator(o)["containers"][0].update(image="tributary/actor"),
    ),
    "a module that is not there": (
        "foreign_programs",
        lambda o: _generator(o)["containers"][0].update(command=["python", "-m", "services.actor"]),
    ),
    "a variable that nobody reads": (
        "foreign_variables",
        lambda o: _generator(o)["containers"][0]["env"].append({"name": "TRIBUTARY_TYPO", "value": "1"}),
    ),
    "a password written out": (
        "foreign_variables",
        lambda o: _generator(o)["containers"][0]["env"][0].update(valueFrom={}, value="hunter2"),
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_rule_finds(planted: str) -> None:
    name, change = PLANTED[planted]
    rule = next(rule for rule in RULES if rule.__name__ == name)
    assert _plant(rule, change) != []


def test_rules_are_not_vacuous() -> None:
    objects = written(*WRITTEN)
    assert {pods.name for pods in workloads(objects)} == {
        "redis", "control", "curriculum", "generator", "learner", "scorer"
    }  # fmt: skip


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_run_file_is_a_copy_of_the_one_for_compose(overlay: str) -> None:
    copied, original = RUN_FILES[overlay]
    assert (K8S / copied).read_text() == (ROOT / "deploy" / original).read_text(), f"cp deploy/{original} k8s/{copied}"


@pytest.mark.parametrize("name", ["redis.conf", "start.sh"])
def test_redis_is_configured_as_on_compose(name: str) -> None:
    assert (K8S / "base" / name).read_text() == (ROOT / "deploy" / "redis" / name).read_text(), f"copy {name} again"


def test_the_alert_rules_are_those_that_are_tested() -> None:
    (rule,) = read(K8S / "components" / "monitoring" / "prometheus-rule.yaml")
    (alerts,) = read(ROOT / "deploy" / "prometheus" / "alerts.yml")
    assert rule["spec"]["groups"] == alerts["groups"], "copy the groups of deploy/prometheus/alerts.yml again"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_run_file_keeps_everything_where_a_volume_is(overlay: str, settings: Callable[[str], RunFile]) -> None:
    run = settings(overlay)
    assert run.weights_directory.is_relative_to("/var/lib/tributary/weights")
    assert run.checkpoints_directory.is_relative_to("/var/lib/tributary")
    assert not run.checkpoints_directory.is_relative_to("/var/lib/tributary/weights")
    assert (run.control.host, run.control.port, run.redis.url) == ("0.0.0.0", 8700, None)
    assert run.learner.max_steps is None, "Kubernetes would start a learner that is done again and again"
    for path in (run.model.path, run.data.path, *(s.path for s in run.evaluation.sets)):
        below = Path(path).relative_to("/app") if path.startswith("/") else None
        assert below is None or (ROOT / below).exists()
        assert below is None or f"COPY {'/'.join(below.parts[:3])} " in DOCKERFILE


def test_metrics_are_where_the_images_serve_them() -> None:
    (port,) = set(re.findall(r"TRIBUTARY_METRICS_PORT=(\d+)", DOCKERFILE))
    ports = [
        p["containerPort"]
        for pods in workloads(written(*WRITTEN))
        for c in pods.containers
        for p in c.get("ports", [])
        if p["name"] == "metrics"
    ]
    assert ports == [int(port)] * 5


def test_processes_run_as_the_user_of_the_images() -> None:
    (user,) = set(re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE))
    contexts = {p.name: p.spec["securityContext"] for p in workloads(written(*WRITTEN)) if p.name != "redis"}
    assert {(c["runAsUser"], c["runAsGroup"], c["fsGroup"]) for c in contexts.values()} == {(int(user),) * 3}


@pytest.mark.parametrize("overlay", ["cpu-demo", "gpu", "gpu-multi"])
@pytest.mark.parametrize("role", ["generator", "scorer"])
def test_a_generator_is_given_longer_to_stop_than_it_takes(
    overlay: str, role: str, settings: Callable[[str], RunFile]
) -> None:
    spec = named(written(*WRITTEN), "Deployment")[role]["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > settings(overlay).generator.drain_s + 4 * CLOSE_S


@pytest.mark.parametrize("overlay", ["gpu", "gpu-multi"])
def test_an_engine_has_as_many_gpus_as_it_expects(
    overlay: str, settings: Callable[[str], RunFile], built: Callable[[str], list[Object]]
) -> None:
    (container,) = named(built(overlay), "Deployment")["generator"]["spec"]["template"]["spec"]["containers"]
    expected = str(settings(overlay).generator.tensor_parallel_size)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == expected
    assert container["resources"]["requests"]["nvidia.com/gpu"] == expected


def test_keda_follows_the_requests_of_the_run(
    settings: Callable[[str], RunFile], built: Callable[[str], list[Object]]
) -> None:
    run, objects = settings("gpu-multi"), built("gpu-multi")
    scaled = named(objects, "ScaledObject")["generator"]["spec"]
    (trigger,) = scaled["triggers"]
    namespace = next(iter(named(objects, "Namespace")))
    assert trigger["metadata"]["stream"] == Keys(run.run.name).requests
    assert trigger["metadata"]["address"] == f"redis.{namespace}.svc:6379"
    assert trigger["authenticationRef"]["name"] in named(objects, "TriggerAuthentication")
    _assert_scales_with_fill(run, int(trigger["metadata"]["streamLength"]), scaled["maxReplicaCount"])
    target = named(objects, scaled["scaleTargetRef"]["kind"])[scaled["scaleTargetRef"]["name"]]
    assert "replicas" not in target["spec"], "an apply would undo what KEDA decided"


def test_an_autoscaler_without_keda_follows_a_metric_that_is_exported(
    settings: Callable[[str], RunFile], built: Callable[[str], list[Object]]
) -> None:
    objects = built("everything")
    scaler = named(objects, "HorizontalPodAutoscaler")["generator"]["spec"]
    (metric,) = scaler["metrics"]
    registry = CollectorRegistry()
    RunMetrics(registry).messages.labels(Keys("any").requests.rpartition(":")[2]).set(1)
    exported = {(s.name, tuple(s.labels.items())) for m in registry.collect() for s in m.samples}
    asked = metric["external"]["metric"]
    assert (asked["name"], tuple(asked["selector"]["matchLabels"].items())) in exported
    _assert_scales_with_fill(settings("gpu"), int(metric["external"]["target"]["averageValue"]), scaler["maxReplicas"])
    assert "replicas" not in named(objects, "Deployment")["generator"]["spec"]


def _assert_scales_with_fill(run: RunFile, fill: int, most: int) -> None:
    credit = (run.live.max_staleness + 1) * run.live.groups_per_step
    assert fill == run.generator.requests_in_flight
    assert most * fill <= credit, "the credit never fills so many generators"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_image_of_a_stranger_is_pulled(overlay: str, built: Callable[[str], list[Object]]) -> None:
    for pods in workloads(built(overlay)):
        for container in pods.containers if pods.name != "redis" else []:
            is_nobodys = container["image"].startswith(NOBODYS_REGISTRY)
            assert is_nobodys or container["imagePullPolicy"] == "Never", container["image"]


def test_processes_reach_redis_and_nothing_else_of_the_run() -> None:
    roles = ("control", "curriculum", "generator", "learner", "scorer")
    assert flows(written(*WRITTEN)) == {(role, "redis", 6379) for role in roles}


def test_only_the_pod_that_fetches_has_a_way_out() -> None:
    outward = {"curriculum": [443]}
    objects = written(*WRITTEN)
    assert ways_out(objects) == {**{pods.name: [] for pods in workloads(objects)}, **outward}
    (curriculum,) = read(K8S / "components" / "hub" / "curriculum.yaml")
    (fetch,) = curriculum["spec"]["template"]["spec"]["initContainers"]
    assert "HF_TOKEN" in str(fetch)
    assert "HF_TOKEN" not in str(curriculum["spec"]["template"]["spec"]["containers"])


def _script(role: str, run_file: Path) -> str:
    """What the first container of a role does, on a run file of ours."""
    (patch,) = read(K8S / "components" / "hub" / f"{role}.yaml")
    (container,) = patch["spec"]["template"]["spec"]["initContainers"]
    assert container["command"] == ["/usr/bin/tini", "--", "/bin/sh", "-ec"]
    return container["args"][0].replace("/etc/tributary/run.toml", str(run_file))


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., int | None]:
    """Runs such a script, where `python` ends with a given code; its exit code, None if it waits."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "cache").mkdir()

    def run(role: str, text: str, *, python: int = 0) -> int | None:
        run_file = tmp_path / "run.toml"
        run_file.write_text(text)
        (tmp_path / "bin" / "python").write_text(f"#!/bin/sh\nexit {python}\n")
        (tmp_path / "bin" / "python").chmod(0o755)
        environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HF_HOME": str(tmp_path / "cache")}
        command = ["/bin/sh", "-ec", _script(role, run_file)]
        try:
            return subprocess.run(command, env=environment, timeout=1, check=False).returncode
        except subprocess.TimeoutExpired:
            return None

    return run


@pytest.mark.parametrize("role", ["generator", "learner"])
def test_nobody_reads_a_model_before_all_of_it_was_fetched(role: str, shell: Callable[..., int | None]) -> None:
    assert shell("curriculum", "run one", python=2) == 2
    assert shell(role, "run one") is None
    assert shell("curriculum", "run one") == 0
    assert shell(role, "run one") == 0
    assert shell(role, "run two") is None
    assert shell("curriculum", "run one", python=2) == 0, "the hub is asked again"


def test_no_secret_is_committed() -> None:
    for path in K8S.rglob("*.yaml"):
        assert not re.search(r"^kind: Secret$", path.read_text(encoding="utf-8"), re.MULTILINE), path
    values = re.findall(r"^#?[A-Z_]+=(.*)$", (K8S / "secret.env.example").read_text(), re.MULTILINE)
    assert set(values) == {"replace-me"}
    for overlay in OVERLAYS:
        (kustomization,) = read(K8S / "overlays" / overlay / "kustomization.yaml")
        assert kustomization["secretGenerator"] == [{"name": "tributary", "envs": ["secret.env"]}]
        path = f"k8s/overlays/{overlay}/secret.env"
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, timeout=30).returncode == 0


def test_every_file_belongs_to_a_kustomization() -> None:
    used: set[Path] = set()
    for path in K8S.rglob("kustomization.yaml"):
        text = path.read_text(encoding="utf-8")
        (kustomization,) = yaml.safe_load_all(text)
        resources = [*kustomization.get("resources", []), *kustomization.get("configurations", [])]
        patches = [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
        files = [name for made in kustomization.get("configMapGenerator", []) for name in made.get("files", [])]
        used |= {path} | {Path(os.path.normpath(path.parent / name)) for name in (*resources, *patches, *files)}
    there = {p for p in K8S.rglob("*") if p.is_file() and p.parent != K8S and p.name != "secret.env"}
    assert sorted(map(str, there - used)) == []
