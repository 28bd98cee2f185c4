"""Who may import whom: the walls between the rooms of the house, checked on the source without running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("common", "learner", "services")

# A package that only some places may import. Programs beside the rooms (examples, benchmarks, tests) are free.
HOMES = {
    "torch": ("learner",),
    "vllm": ("services.generator",),
    "fastapi": ("services.control",),
    "starlette": ("services.control",),
}
# What the pure core of the learner is made of, and what would make it impure.
PURE_CORE = ("batch", "selectors", "ratios", "losses", "emphasis", "advantages", "objective", "algorithms")
PURE_CORE += ("insight.evidence", "insight.trials", "insight.examination")
IMPURE = {"asyncio", "datetime", "logging", "os", "pathlib", "random", "redis", "socket", "subprocess", "time"}
IMPURE |= {"common.streams", "common.metrics", "common.process", "common.weights", "common.settings"}


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name and every dotted name that it imports, wherever the statement stands."""

    name: str
    is_package: bool
    imports: frozenset[str]

    @property
    def room(self) -> str:
        """`common`, `learner` or one service."""
        parts = self.name.split(".")
        return ".".join(parts[:2]) if parts[0] == "services" else parts[0]


def within(name: str, place: str) -> bool:
    """Whether a dotted name is `place` or lies below it."""
    return name == place or name.startswith(place + ".")


def imported_names(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """Every dotted name that a module imports; `from a import b` gives both `a` and `a.b`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def read_modules(root: Path) -> dict[str, Module]:
    """Every module of the rooms below `root`, by name."""
    modules: dict[str, Module] = {}
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            modules[name] = Module(name, is_package, frozenset(imported_names(tree, name, is_package)))
    return modules


def crossings(modules: dict[str, Module]) -> Iterator[str]:
    """Imports that go through a wall between two rooms of the project."""
    for module in modules.values():
        allowed = {"common", module.room}
        for name in sorted(module.imports):
            # `from services import cli` names `services` too; the wall is crossed by what comes after it.
            if name == "services" or name.split(".")[0] not in ROOMS:
                continue
            if not any(within(name, place) for place in allowed):
                yield f"{module.name} imports {name}; it may import {' and '.join(sorted(allowed))} only"


def strays(modules: dict[str, Module]) -> Iterator[str]:
    """Third-party packages outside their home."""
    for module in modules.values():
        for package, homes in HOMES.items():
            at_home = any(within(module.name, home) for home in homes)
            if at_home or not any(within(name, package) for name in module.imports):
                continue
            # Inside the engine's process weights are torch tensors: there torch is part of vllm's interface.
            beside_vllm = within(module.name, "services.generator") and any(within(n, "vllm") for n in module.imports)
            if not (package == "torch" and beside_vllm):
                yield f"{module.name} imports {package}, whose only home is {' and '.join(homes)}"


def impurities(modules: dict[str, Module]) -> Iterator[str]:
    """Input, output, clocks and logs inside the learner's pure core."""
    core = tuple(f"learner.{name}" for name in PURE_CORE)
    for module in modules.values():
        if any(within(module.name, place) for place in core):
            for name in sorted(module.imports):
                if any(within(name, impure) for impure in IMPURE):
                    yield f"{module.name} imports {name}; the core of the learner does no I/O and reads no clock"


def cycles(modules: dict[str, Module]) -> Iterator[str]:
    """Modules that import each other in a circle, each circle told once."""
    edges = {m.name: sorted(name for name in m.imports if name in modules and name != m.name) for m in modules.values()}
    finished: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> Iterator[str]:
        if name in path:
            yield "circle: " + " -> ".join([*path[path.index(name) :], name])
            return
        if name not in finished:
            path.append(name)
            for target in edges[name]:
                yield from visit(target)
            path.pop()
            finished.add(name)

    for name in edges:
        yield from visit(name)


def violations(root: Path) -> list[str]:
    """Every broken rule of the tree below `root`, as sentences."""
    modules = read_modules(root)
    return [*crossings(modules), *strays(modules), *impurities(modules), *cycles(modules)]


def test_the_rooms_import_only_what_they_may() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("common/wire.py", "from learner.batch import TokenBatch", "common.wire imports learner.batch;"),
        ("common/wire.py", "def late():\n    import torch", "common.wire imports torch,"),
        ("common/wire.py", "import fastapi.responses", "common.wire imports fastapi,"),
        ("learner/loop.py", "import services.control.app", "learner.loop imports services.control.app;"),
        ("learner/loop.py", "import vllm", "learner.loop imports vllm,"),
        ("learner/losses.py", "import time", "learner.losses imports time;"),
        ("learner/algorithms/grpo.py", "from common import metrics", "learner.algorithms.grpo imports common.metrics;"),
        ("services/cli/app.py", "from services.control import app", "services.cli.app imports services.control;"),
        ("services/cli/app.py", "from ..control.app import make", "services.cli.app imports services.control.app;"),
        ("services/cli/app.py", "from services import control", "services.cli.app imports services.control;"),
        ("services/curriculum/app.py", "import learner", "services.curriculum.app imports learner;"),
        ("services/generator/graders.py", "import torch", "services.generator.graders imports torch,"),
        ("services/control/app.py", "from torch import Tensor", "services.control.app imports torch,"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    place = tmp_path / path
    place.parent.mkdir(parents=True)
    place.write_text(source, encoding="utf-8")
    assert any(found.startswith(complaint) for found in violations(tmp_path)), violations(tmp_path)


def test_a_circle_of_imports_is_found_once(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common/first.py").write_text("from common.second import b", encoding="utf-8")
    (tmp_path / "common/second.py").write_text("from common import third", encoding="utf-8")
    (tmp_path / "common/third.py").write_text("import common.first", encoding="utf-8")
    circle = "circle: common.first -> common.second -> common.third -> common.first"
    assert violations(tmp_path) == [circle]


def test_what_the_rules_allow_is_not_reported(tmp_path: Path) -> None:
    allowed = {
        "common/wire.py": "import msgpack\nfrom common.errors import WireError",
        "common/errors.py": "",
        "learner/losses.py": "import torch\nfrom common.trajectory import Source",
        "services/generator/worker.py": "import torch\nimport vllm\nfrom services.generator import engine",
        "services/generator/engine.py": "from common import wire",
        "services/control/app.py": "import fastapi\nfrom . import deps",
        "services/control/deps.py": "",
    }
    for path, source in allowed.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source, encoding="utf-8")
    assert violations(tmp_path) == []


def test_common_can_be_imported_without_loading_torch_vllm_or_fastapi() -> None:
    names = [name for name in read_modules(ROOT) if within(name, "common")]
    script = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    script += "print(*sorted({'torch', 'vllm', 'fastapi'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
