"""The port that every tracker is behind: rows of scalars and notes by step, and the place to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Row:
    """What one event tells. step: of the learner. at_s: Unix time. Names are paths, such as "train/loss"."""

    step: int
    at_s: float
    scalars: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """How far a tracker has come in the event log. after: id of the last event. step: the newest one by then.

    state: what the tracker itself needs to go on, as JSON.
    """

    after: str = "0"
    step: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)


class Tracker(Protocol):
    """Somewhere that rows are written to. Its methods block, are called one at a time, and raise what goes wrong."""

    name: str

    def resume(self) -> Place:
        """Open it where it was left; where to go on in the event log."""
        ...

    def write(self, rows: Sequence[Row], place: Place) -> None:
        """Write rows and remember the place behind them. After an error it may be called again with the same."""
        ...

    def close(self) -> None:
        """Finish. Nothing is written afterwards."""
        ...


def load_place(path: Path) -> Place:
    """The place in a file; the start of the log if there is none, or none that can be read."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return Place(str(told["after"]), int(told["step"]), dict(told["state"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Place()


def save_place(path: Path, place: Place) -> None:
    """Put a place into a file, whole or not at all. OSError if the disk does not take it."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(asdict(place)), encoding="utf-8")
    beside.replace(path)
