"""docker-compose.yml: valid, hardened, and made of nothing that the project does not have. No engine is needed."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_stages import IMAGES, ROOT, copied, exec_form, last, modules_in, started_module

from common.settings import RunFile, load_run
from services.generator.lifetime import CLOSE_S

COMPOSE_FILE = ROOT / "docker-compose.yml"
TEXT = COMPOSE_FILE.read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
SECRETS = {"REDIS_PASSWORD": "a", "TRIBUTARY_TOKEN": "b", "GRAFANA_PASSWORD": "c"}
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
DEFAULT = re.compile(r"\$\{(\w+)(?::?[-?]([^}]*))?\}")

# The keys of the compose schema that this project uses. Another one is a slip of the pen until it is added here.
KEYS = {
    "": "name services configs secrets networks volumes",
    "service": "build cap_drop command configs depends_on deploy entrypoint environment healthcheck image logging "
    "mem_limit networks pids_limit ports profiles read_only restart security_opt shm_size stop_grace_period tmpfs user "
    "volumes",
    "build": "context dockerfile target args secrets",
    "healthcheck": "test interval timeout retries start_period disable",
    "logging": "driver options",
    "network": "internal driver_opts",
    "device": "driver device_ids capabilities",
}


def resolved(text: str, environment: Mapping[str, str] = SECRETS) -> str:
    """Text with its variables replaced by their defaults."""
    return DEFAULT.sub(lambda match: environment.get(match[1], match[2] or ""), text)


def words(service: str) -> list[str]:
    """The command line that a service's container runs: compose's words, else the image's."""
    asked = SERVICES[service]
    image = str(asked.get("build", {}).get("target", ""))
    entry = asked.get("entrypoint") or (exec_form(last(image, "ENTRYPOINT")) if image else [])
    command = asked.get("command") or (exec_form(last(image, "CMD")) if image else [])
    return [*entry, *command]


def in_profile(profile: str) -> set[str]:
    """The services that a profile starts."""
    return {name for name, service in SERVICES.items() if profile in service["profiles"]}


def mounts(service: str) -> dict[str, str]:
    """Target → source of what a service mounts, configs included."""
    found = {str(v).split(":")[1]: str(v).split(":")[0] for v in SERVICES[service].get("volumes", [])}
    for config in SERVICES[service].get("configs", []):
        found[config["target"]] = resolved(COMPOSE["configs"][config["source"]]["file"])
    return found


def run_of(name: str, monkeypatch: pytest.MonkeyPatch) -> RunFile:
    """The run file of the GPU or CPU services, read with the environment that their learner gets."""
    learner = {"gpu": "learner", "cpu": "learner-cpu"}[name]
    for key, value in SERVICES[learner]["environment"].items():
        monkeypatch.setenv(key, resolved(str(value)))
    return load_run(ROOT / mounts(learner)["/etc/tributary/run.toml"])


# ---- valid


def test_no_key_is_unknown() -> None:
    def known(where: str, keys: object, kind: str) -> None:
        extra = {key for key in keys if not str(key).startswith("x-")} - set(KEYS[kind].split())  # type: ignore[attr-defined]
        assert not extra, f"{where} has {extra}"

    known("the file", COMPOSE, "")
    for name, service in SERVICES.items():
        known(name, service, "service")
        for kind in ("build", "healthcheck", "logging"):
            known(f"{name}.{kind}", service.get(kind, {}), kind)
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", []):
            known(f"{name}.device", device, "device")
    for name, network in COMPOSE["networks"].items():
        known(name, network or {}, "network")


def test_compose_itself_finds_nothing() -> None:
    """With its own schema, where Compose 2 is installed (Debian's docker-compose from trixie on); without an engine."""
    if shutil.which("docker") is None or not re.search(rb"version v?[2-9]", compose("version")):
        pytest.skip("docker compose 2 is not installed (Debian's docker-cli and docker-compose, trixie or newer)")
    services = {p: set(compose("--profile", p, "config", "--services").decode().split()) for p in ("gpu", "cpu")}
    assert services == {"gpu": in_profile("gpu"), "cpu": in_profile("cpu")}
    assert set(compose("config", "--services").decode().split()) == in_profile("gpu")  # .env.example: COMPOSE_PROFILES


def compose(*arguments: str) -> bytes:
    """What docker compose prints; nothing if it refuses."""
    command = ["docker", "compose", "--env-file", str(ROOT / ".env.example"), *arguments]
    environment = os.environ | SECRETS
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False).stdout


# ---- who is started


def test_without_a_profile_the_gpu_services_start_and_the_cpu_profile_starts_none_of_them() -> None:
    assert "\nCOMPOSE_PROFILES=gpu\n" in EXAMPLE
    assert all(service.get("profiles") for service in SERVICES.values())  # else it would start beside either
    process = {"control", "curriculum", "generator", "learner"}
    assert in_profile("gpu") == {"redis", "fetch", "prometheus", "grafana", *process}
    assert in_profile("cpu") == {"redis", *(f"{name}-cpu" for name in process)}
    assert not any("deploy" in SERVICES[name] for name in in_profile("cpu"))


def test_generators_learner_and_scorer_reserve_the_gpus_that_a_variable_names() -> None:
    reserving = {name: str(service["deploy"]) for name, service in SERVICES.items() if "deploy" in service}
    assert sorted(reserving) == ["generator", "learner", "scorer"]
    for name, reservation in reserving.items():
        assert f"${{{name.upper()}_GPUS:-0}}" in reservation
        assert "nvidia" in reservation


def test_a_generator_can_be_scaled() -> None:
    for name in ("generator", "generator-cpu"):
        assert "ports" not in SERVICES[name]
        assert "generator-{host}" in words(name)
    assert "container_name" not in TEXT
    assert "deploy.claim_gpu" in words("generator")


# ---- made of what there is


@pytest.mark.parametrize("service", OURS)
def test_a_service_of_ours_starts_a_module_that_its_image_holds(service: str) -> None:
    build, image = SERVICES[service]["build"], SERVICES[service]["image"]
    target = build["target"]
    assert target in IMAGES
    assert (ROOT / build["dockerfile"]).is_file()
    tag = "latest-cpu" if target.endswith("-cpu") else "latest"
    assert resolved(image) == f"tributary/{target.removesuffix('-cpu')}:{tag}"
    command = words(service)
    assert "/etc/tributary/run.toml" in command
    assert "/etc/tributary/run.toml" in mounts(service)
    modules = {command[i + 1] for i, word in enumerate(command) if word == "-m"}
    assert modules <= modules_in(target) | {m.removesuffix(".__main__") for m in modules_in(target)}
    role = service.removesuffix("-cpu")
    expected = {"learner": "learner", "fetch": "deploy.fetch", "scorer": "services.generator.scoring"}
    assert started_module(command) == expected.get(role, f"services.{role}")


def test_images_of_others_are_pinned_and_replaceable() -> None:
    for name in set(SERVICES) - set(OURS):
        assert SERVICES[name]["image"].startswith("${")
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", resolved(SERVICES[name]["image"]))


def test_every_variable_is_in_the_example_and_every_one_of_the_example_is_used() -> None:
    passed_on = {
        key for service in SERVICES.values() for key, value in service.get("environment", {}).items() if value is None
    }
    used = {match[1] for match in DEFAULT.finditer(TEXT)} | passed_on
    explained = dict(re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert set(explained) == used | {"COMPOSE_PROFILES"}
    for name, default in ((match[1], match[2]) for match in DEFAULT.finditer(TEXT)):
        if name in SECRETS:
            assert explained[name] == ""
        else:
            assert explained[name] == default, f"{name}: the example gives another default"


def test_every_file_that_is_mounted_is_there_and_every_volume_and_network_is_declared() -> None:
    used: set[str] = set()
    for name, service in SERVICES.items():
        for source in mounts(name).values():
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
            else:
                used.add(source)
        assert set(service["networks"]) <= set(COMPOSE["networks"])
    assert used == set(COMPOSE["volumes"])


def test_prometheus_scrapes_names_and_ports_that_there_are() -> None:
    names = {*SERVICES, *(a for s in SERVICES.values() if isinstance(s["networks"], dict) for a in aliases(s))}
    for job in yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]:
        targets = [t for static in job.get("static_configs", []) for t in static["targets"]]
        targets += [f"{n}:{dns['port']}" for dns in job.get("dns_sd_configs", []) for n in dns["names"]]
        for target in targets:
            host, _, port = target.partition(":")
            assert host in names | {"localhost"}, target
            assert port == {"control": "8700", "localhost": "9090"}.get(host, "9464"), target


def aliases(service: dict[str, Any]) -> list[str]:
    """The other names of a service."""
    return [alias for network in service["networks"].values() for alias in (network or {}).get("aliases", [])]


def test_the_cpu_services_answer_to_the_plain_names() -> None:
    for role in ("control", "curriculum", "generator", "learner"):
        assert aliases(SERVICES[f"{role}-cpu"]) == [role]


# ---- hardened


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_can_do_no_more_than_it_must(service: str) -> None:
    asked = SERVICES[service]
    assert asked["read_only"] is True
    assert asked["cap_drop"] == ["ALL"]
    assert asked["security_opt"] == ["no-new-privileges:true"]
    assert asked["user"].split(":")[0] not in ("0", "root")
    assert asked["pids_limit"] > 0
    assert asked["logging"]["options"]["max-size"]
    policy = {"fetch": "no", "learner": "on-failure", "learner-cpu": "on-failure"}.get(service, "unless-stopped")
    assert resolved(asked["restart"]) == policy  # a learner that has made its last step stays as it is
    image = str(asked.get("build", {}).get("target", ""))
    if service != "fetch":
        assert asked.get("healthcheck", {}).get("test") or last(image, "HEALTHCHECK")
    for key in ("privileged", "cap_add", "devices", "network_mode", "pid", "ipc"):
        assert key not in asked


@pytest.mark.parametrize("service", SERVICES)
def test_no_secret_is_in_a_command_line(service: str) -> None:
    asked = SERVICES[service]
    lines = [*words(service), *map(str, asked.get("healthcheck", {}).get("test", [])), str(asked.get("build", ""))]
    assert not any(secret in line for secret in (*SECRETS, "TOKEN") for line in lines)


def test_who_has_a_way_out_has_no_secret_of_the_run() -> None:
    out = {name for name, service in SERVICES.items() if "egress" in service["networks"]}
    assert out == {"fetch"}
    assert not SECRETS.keys() & set(re.findall(r"\w+", str(SERVICES["fetch"]["environment"])))
    assert COMPOSE["networks"]["backend"] == {"internal": True}
    published = {name for name, service in SERVICES.items() if "ports" in service}
    assert published == {name for name, service in SERVICES.items() if "frontend" in service["networks"]}
    for name in published:
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_only_the_control_plane_knows_its_token_and_only_the_learner_writes_weights() -> None:
    knowing = {name for name, service in SERVICES.items() if "TRIBUTARY_TOKEN" in service.get("environment", {})}
    assert knowing == {"control", "control-cpu"}
    weights = {name: v for name, s in SERVICES.items() for v in s.get("volumes", []) if v.startswith("weights:")}
    assert {name for name, volume in weights.items() if not volume.endswith(":ro")} == {"learner", "learner-cpu"}
    assert {name for name, volume in weights.items() if volume.endswith(":ro")} == {"generator", "generator-cpu"}


def test_a_process_has_longer_to_end_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, names in {"gpu": ("generator", "scorer"), "cpu": ("generator-cpu",)}.items():
        needed_s = run_of(kind, monkeypatch).generator.drain_s + CLOSE_S
        assert min(seconds(SERVICES[name]["stop_grace_period"]) for name in names) > needed_s + 2 * CLOSE_S
    assert seconds(SERVICES["learner"]["stop_grace_period"]) >= 300  # a checkpoint of many gigabytes


def seconds(text: str) -> int:
    """A duration of compose in seconds."""
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


# ---- run files


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_a_run_file_fits_its_containers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(name, monkeypatch)
    assert (run.control.host, f":{run.control.port}") == ("0.0.0.0", SERVICES["control"]["ports"][0][-5:])
    assert run.redis.url is None
    assert str(run.weights_directory).startswith("/var/lib/tributary/weights/")
    assert str(run.checkpoints_directory).startswith("/var/lib/tributary/")
    needed = set(re.findall(r"^[^#]*\$\{(\w+)\}", Path(ROOT, f"deploy/run.{name}.toml").read_text(), re.MULTILINE))
    for service, asked in SERVICES.items():
        if f"run-{name}" in [config["source"] for config in asked.get("configs", [])]:
            assert needed <= set(asked["environment"]), service


def test_the_gpu_run_names_its_model_and_data_and_the_cpu_images_hold_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = run_of("gpu", monkeypatch)
    assert (gpu.model.path, gpu.data.path) == ("Qwen/Qwen2.5-Math-1.5B", "Elliott/Openr1-Math-46k-8192")
    cpu = run_of("cpu", monkeypatch)
    for path in (cpu.model.path, cpu.data.path, *(held.path for held in cpu.evaluation.sets)):
        inside = path.removeprefix("/app/")
        assert (ROOT / inside).exists()
        for image in ("control", "generator-cpu", "learner-cpu"):
            assert any(inside.startswith(source) for source in copied(image)), (image, path)


# ---- scripts


def test_a_new_environment_file_has_fresh_secrets_and_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    for name in (".env.example", "deploy/new-env.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    make = ["sh", str(tmp_path / "deploy" / "new-env.sh")]
    subprocess.run(make, check=True, capture_output=True, timeout=30)
    made = tmp_path / ".env"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    values = dict(line.split("=", 1) for line in made.read_text().splitlines() if line and not line.startswith("#"))
    assert all(re.fullmatch("[0-9a-f]{48}", values[name]) for name in SECRETS)
    assert len({values[name] for name in SECRETS}) == 3
    before = made.read_text()
    subprocess.run(make, check=True, capture_output=True, timeout=30)
    assert made.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".env", ".env.example", "deploy"]


def test_redis_gets_its_password_through_a_pipe_and_only_one_that_fits_a_url(tmp_path: Path) -> None:
    server = tmp_path / "redis-server"
    server.write_text('#!/bin/sh\necho "arguments: $*"\ncat\n')
    server.chmod(0o755)
    start = ["sh", str(ROOT / "deploy" / "redis" / "start.sh")]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDIS_MAXMEMORY": "1gb"}

    def started(password: str) -> subprocess.CompletedProcess[str]:
        given = environment | {"REDISCLI_AUTH": password}
        return subprocess.run(start, env=given, capture_output=True, text=True, timeout=30, check=False)

    lines = started("se-cret_1").stdout.splitlines()
    assert lines == ["arguments: -", "include /etc/redis/redis.conf", "maxmemory 1gb", "requirepass se-cret_1"]
    refused = started("se@cret")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "letters, digits" in refused.stderr


def test_redis_keeps_everything() -> None:
    lines = (ROOT / "deploy" / "redis" / "redis.conf").read_text().splitlines()
    assert {"appendonly yes", "maxmemory-policy noeviction", "dir /data"} <= set(lines)
    assert "redis:/data" in SERVICES["redis"]["volumes"]
    assert not any(line.startswith(("requirepass", "maxmemory ")) for line in lines)


def test_the_proof_says_so_where_no_engine_can_run(tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "mktemp", "rm"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    script = ["bash", str(ROOT / "deploy" / "prove-compose.sh")]
    ended = subprocess.run(script, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (77, "")
    assert ended.stderr == "prove-compose: skipped: there is no docker command\n"
