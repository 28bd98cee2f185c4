"""What must hold of any set of Kubernetes objects that make a run. Each rule yields the breaches that it finds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from kubernetes_objects import K8S, ROOT, Object, Pods, named, selects, workloads

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
# Of the libraries, not ours: where hub and caches are.
LIBRARY_VARIABLES = {"HF_TOKEN", "HF_HUB_OFFLINE"}
NOBODYS_REGISTRY = "registry.example/"
_HARDENED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}

Rule = Callable[[list[Object]], Iterator[str]]


def unhardened(objects: list[Object]) -> Iterator[str]:
    """Pods that the restricted level would refuse, or that hold more than they need."""
    for pods in workloads(objects):
        context = pods.spec.get("securityContext", {})
        if not (context.get("runAsNonRoot") is True and context.get("runAsUser", 0) > 0):
            yield f"{pods.name} may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pods.name} has no seccomp profile"
        if pods.spec.get("automountServiceAccountToken") is not False:
            yield f"{pods.name} holds a token for the Kubernetes API"
        if pods.spec.get("enableServiceLinks") is not False:
            yield f"{pods.name} gets variables that no one asked for"
        for container in pods.containers:
            if container.get("securityContext") != _HARDENED:
                yield f"{pods.name}/{container['name']} is not hardened"
        if any("hostPath" in volume for volume in pods.spec.get("volumes", [])) or pods.spec.get("hostNetwork"):
            yield f"{pods.name} reaches into its node"


def unmeasured(objects: list[Object]) -> Iterator[str]:
    """Containers that ask for nothing, or may take everything."""
    for pods in workloads(objects):
        for container in pods.containers:
            resources = container.get("resources", {})
            for kind, wanted in (
                ("requests", {"cpu", "memory", "ephemeral-storage"}),
                ("limits", {"memory", "ephemeral-storage"}),
            ):
                for missing in sorted(wanted - set(resources.get(kind, {}))):
                    yield f"{pods.name}/{container['name']} has no {kind}.{missing}"
        for volume in pods.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield f"{pods.name}: the volume {volume['name']} has no limit"


def unprobed(objects: list[Object]) -> Iterator[str]:
    """Containers whose work nobody looks at, or at a port or path that is not there."""
    for pods in workloads(objects):
        for container in pods.spec["containers"]:
            ports = {port["name"] for port in container.get("ports", [])}
            for kind, path in (
                ("startupProbe", "/healthz"),
                ("livenessProbe", "/healthz"),
                ("readinessProbe", "/readyz"),
            ):
                probe = container.get(kind, {})
                asked = probe.get("httpGet")
                if asked is None and "exec" not in probe:
                    yield f"{pods.name} has no {kind}"
                elif asked is not None and (asked["path"] != path or asked["port"] not in ports):
                    yield f"{pods.name}: {kind} asks {asked['path']} of port {asked['port']}"
            if container.get("livenessProbe", {}).get("httpGet", {}).get("port") == "http":
                yield f"{pods.name} would be restarted because Redis is away"


def unbudgeted(objects: list[Object]) -> Iterator[str]:
    """Workloads without a disruption budget, and budgets of nobody."""
    budgets = [o["spec"]["selector"] for o in named(objects, "PodDisruptionBudget").values()]
    for pods in workloads(objects):
        if sum(selects(selector, pods.labels) for selector in budgets) != 1:
            yield f"{pods.name} has not exactly one disruption budget"
    for selector in budgets:
        if not any(selects(selector, pods.labels) for pods in workloads(objects)):
            yield f"a disruption budget selects nothing: {selector}"


def open_doors(objects: list[Object]) -> Iterator[str]:
    """A network that is not closed, and policies that open it to nobody or at a port that no one listens on."""
    policies = named(objects, "NetworkPolicy")
    everything = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if not any(policy["spec"] == everything for policy in policies.values()):
        yield "not everything is denied that is not allowed"
    for name, policy in policies.items():
        chosen = [pods for pods in workloads(objects) if selects(policy["spec"]["podSelector"], pods.labels)]
        if not chosen:
            yield f"the policy {name} selects nothing"
        for rule in policy["spec"].get("ingress", []):
            yield from _unknown(name, rule, rule["from"], chosen, workloads(objects))
        for rule in policy["spec"].get("egress", []):
            inside = [peer for peer in rule["to"] if set(peer) == {"podSelector"}]
            reached = [p for p in workloads(objects) if any(selects(peer["podSelector"], p.labels) for peer in inside)]
            yield from _unknown(name, rule, inside, reached, workloads(objects))


def _unknown(
    name: str, rule: Object, peers: list[Object], listening: list[Pods], all_pods: list[Pods]
) -> Iterator[str]:
    """Peers of this namespace that are not there, and ports that those who should listen do not have."""
    if not rule.get("ports"):
        yield f"the policy {name} opens every port"
    for peer in peers:
        if set(peer) == {"podSelector"} and not any(selects(peer["podSelector"], p.labels) for p in all_pods):
            yield f"the policy {name} names a peer that is not there: {peer}"
    ports = {port["containerPort"] for pods in listening for c in pods.containers for port in c.get("ports", [])}
    for port in rule.get("ports", []) if listening else []:
        if port["port"] not in ports:
            yield f"the policy {name} opens port {port['port']}, where nobody listens"


def loose_ends(objects: list[Object]) -> Iterator[str]:
    """Mounts without a volume, claims and accounts that are not there, services of nobody."""
    claims, accounts = named(objects, "PersistentVolumeClaim"), named(objects, "ServiceAccount")
    for pods in workloads(objects):
        templates = {t["metadata"]["name"] for t in pods.workload["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"]: volume for volume in pods.spec.get("volumes", [])}
        mounted = {m["name"] for c in pods.containers for m in c.get("volumeMounts", [])}
        for name in sorted(mounted ^ (set(volumes) | templates)):
            yield f"{pods.name}: {name} is a mount without a volume, or a volume that nobody mounts"
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                yield f"{pods.name} claims {claim}, which is not there"
        if pods.spec.get("serviceAccountName") not in accounts:
            yield f"{pods.name} runs as an account that is not there"
        if not selects(pods.workload["spec"]["selector"], pods.labels):
            yield f"{pods.name} does not select its own pods"
        if "serviceName" in pods.workload["spec"] and pods.workload["spec"]["serviceName"] not in named(
            objects, "Service"
        ):
            yield f"{pods.name} belongs to a service that is not there"
    for name, service in named(objects, "Service").items():
        chosen = [p for p in workloads(objects) if selects({"matchLabels": service["spec"]["selector"]}, p.labels)]
        ports = {port["name"] for pods in chosen for c in pods.containers for port in c.get("ports", [])}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"the service {name} leads to port {port['targetPort']}, where nobody listens"


def foreign_programs(objects: list[Object]) -> Iterator[str]:
    """Images, modules and paths that this project does not have."""
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    for pods, container in _containers(objects):
        image, _, tag = container["image"].removeprefix(NOBODYS_REGISTRY).partition(":")
        target = image.removeprefix("tributary/") + ("-cpu" if tag.endswith("-cpu") and "control" not in image else "")
        if image != "redis" and (not image.startswith("tributary/") or target not in targets):
            yield f"{pods.name} uses the image {container['image']}, which deploy/Dockerfile does not make"
        if image == "redis" and tag and f"redis:{tag}" not in COMPOSE:
            yield f"{pods.name} uses {container['image']}, and docker-compose.yml another"
        words = [*container.get("command", []), *container.get("args", [])]
        for module in re.findall(r"(?:^| )-m ([\w.]+)", " ".join(words)):
            path = ROOT / module.replace(".", "/")
            if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()):
                yield f"{pods.name} runs {module}, which is no module"
        if "/etc/tributary/run.toml" in " ".join(words):
            mounts = {m["mountPath"] for m in container["volumeMounts"]}
            if "/etc/tributary" not in mounts:
                yield f"{pods.name} reads a run file that is not mounted"


def foreign_variables(objects: list[Object]) -> Iterator[str]:
    """Variables that nothing in this project reads, and keys that the secret does not have."""
    keys = set(re.findall(r"^#?([A-Z_]+)=", (K8S / "secret.env.example").read_text(encoding="utf-8"), re.MULTILINE))
    environment = list(chain(*(o.get("data", {}) for o in _environments(objects))))
    sources = _sources()
    for pods, container in _containers(objects):
        for variable in container.get("env", []):
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            if secret is not None and secret["key"] not in keys:
                yield f"{pods.name} asks for the secret {secret['key']}, which k8s/secret.env.example does not have"
            if secret is None and re.search(r"password|token|secret", variable["name"], re.IGNORECASE):
                yield f"{pods.name}: {variable['name']} is written out"
        names = [variable["name"] for variable in container.get("env", [])]
        used = " ".join(str(v.get("value", "")) for v in container.get("env", []))
        for name in (*names, *environment):
            if name not in LIBRARY_VARIABLES and name not in sources and f"$({name})" not in used:
                yield f"{pods.name}: nothing reads {name}"


def flows(objects: list[Object]) -> set[tuple[str, str, int]]:
    """(from, to, port) of every connection inside the namespace that both ends' policies allow."""
    leaving = {(own, peer, port) for own, peer, port in _allowed(objects, "egress", "to")}
    entering = {(peer, own, port) for own, peer, port in _allowed(objects, "ingress", "from")}
    return leaving & entering


def _allowed(objects: list[Object], direction: str, peers: str) -> Iterator[tuple[str, str, int]]:
    """(whose policy, who is let through, port) among the pods of the namespace."""
    for policy in named(objects, "NetworkPolicy").values():
        chosen = [pods for pods in workloads(objects) if selects(policy["spec"]["podSelector"], pods.labels)]
        for rule in policy["spec"].get(direction, []):
            inside = [peer["podSelector"] for peer in rule[peers] if set(peer) == {"podSelector"}]
            let = [p for p in workloads(objects) if any(selects(selector, p.labels) for selector in inside)]
            yield from ((own.name, peer.name, port["port"]) for own in chosen for peer in let for port in rule["ports"])


def ways_out(objects: list[Object]) -> dict[str, list[int]]:
    """Workload → the ports of the public internet that its policies let it reach."""
    policies = [o["spec"] for o in named(objects, "NetworkPolicy").values()]
    return {
        pods.name: [
            port["port"]
            for policy in policies
            if selects(policy["podSelector"], pods.labels)
            for rule in policy.get("egress", [])
            if any(peer.get("ipBlock", {}).get("cidr", "").endswith("/0") for peer in rule["to"])
            for port in rule["ports"]
        ]
        for pods in workloads(objects)
    }


def _containers(objects: list[Object]) -> Iterator[tuple[Pods, Object]]:
    for pods in workloads(objects):
        for container in pods.containers:
            yield pods, container


def _environments(objects: list[Object]) -> list[Object]:
    return [o for name, o in named(objects, "ConfigMap").items() if name.startswith("tributary-environment")]


def _sources() -> str:
    """Everything that reads a variable: our programs, what starts Redis, the run files."""
    programs = (p for room in ("common", "learner", "services", "deploy") for p in (ROOT / room).rglob("*.py"))
    others = [*(ROOT / "deploy").glob("run.*.toml"), ROOT / "deploy" / "redis" / "start.sh"]
    return "\n".join(path.read_text(encoding="utf-8") for path in (*programs, *others))


def dangling_references(objects: list[Object]) -> Iterator[str]:
    """Of a built overlay: names of ConfigMaps and Secrets that kustomize did not carry over."""
    kinds: dict[str, dict[str, Any]] = {kind: named(objects, kind) for kind in ("ConfigMap", "Secret")}
    for kind, name, key in _references(objects):
        if name not in kinds[kind]:
            yield f"the {kind} {name} is not there"
        elif key is not None and key not in kinds[kind][name].get("data", {}):
            yield f"the {kind} {name} has no {key}"


def _references(value: Any) -> Iterator[tuple[str, str, str | None]]:
    if isinstance(value, list):
        for item in value:
            yield from _references(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "secretKeyRef":
                yield "Secret", item["name"], None if item.get("optional") else item["key"]
            elif key == "secretTargetRef":
                yield from (("Secret", i["name"], i["key"]) for i in item)
            elif key in ("configMapRef", "configMap"):
                yield "ConfigMap", item["name"], None
            else:
                yield from _references(item)


RULES: list[Rule] = [
    unhardened,
    unmeasured,
    unprobed,
    unbudgeted,
    open_doors,
    loose_ends,
    foreign_programs,
    foreign_variables,
]
