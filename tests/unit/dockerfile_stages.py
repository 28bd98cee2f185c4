"""deploy/Dockerfile taken apart: its stages, each with its own instructions and those of what it stands on."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
IMAGES = ("control", "generator", "generator-cpu", "learner", "learner-cpu")


@dataclass
class Stage:
    """One FROM and what follows. instructions: (name in capitals, the rest as one line)."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def lines_of(text: str) -> list[str]:
    """Instructions, each on one line, comments left out."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [line.strip() for line in kept.replace("\\\n", " ").splitlines() if line.strip()]


def stages() -> dict[str, Stage]:
    """Every stage by its name."""
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in lines_of(DOCKERFILE.read_text(encoding="utf-8")):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            base, _, called = rest.partition(" AS ")
            current = found.setdefault(called, Stage(called, base))
        elif current is not None:
            current.instructions.append((name, re.sub(r"\s+", " ", rest)))
    return found


def whole(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage, those of all that it stands on first."""
    known = stages()
    stage = known[name]
    below = whole(stage.base) if stage.base in known else []
    return [*below, *stage.instructions]


def last(name: str, instruction: str) -> str:
    """What an image finally says in an instruction of which the last one counts; "" if it says nothing."""
    return next((rest for kind, rest in reversed(whole(name)) if kind == instruction), "")


def copied(name: str) -> dict[str, str]:
    """Path in the project → path in the image, of everything that an image copies from the project."""
    copies: dict[str, str] = {}
    for kind, rest in whole(name):
        if kind == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                copies[source] = f"/app/{target}{Path(source).name}" if target.endswith("/") else f"/app/{target}"
    return copies


def modules_in(name: str) -> set[str]:
    """Dotted names of the project's modules that an image holds."""
    found: set[str] = set()
    for source in copied(name):
        path = ROOT / source
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            if file.suffix == ".py":
                parts = file.relative_to(ROOT).with_suffix("").parts
                found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def started_module(command: list[str]) -> str:
    """The module that a command starts in the end: `tini -- python -m a python -m b` gives b."""
    assert command[0] == "/usr/bin/tini", "a process of its own must not be the first of a container"
    places = [i for i, word in enumerate(command) if word == "-m"]
    return command[places[-1] + 1]


def exec_form(text: str) -> list[str]:
    """The words of an instruction in exec form; it fails for a line that a shell would read."""
    words = json.loads(text)
    assert isinstance(words, list)
    return words
