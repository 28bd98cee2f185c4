"""Firings: which guard the newest steps of a run call upon. Pure: records of steps in, a verdict out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from common.config.guards import PER_SOURCE, Figure, Guard
from common.config.live import Json

_MOST_TOLD = 8


@dataclass(frozen=True, slots=True)
class Step:
    """What guards look at: a step's number, the revision that it was made under, and its figures."""

    number: int
    revision: int
    figures: Json

    @classmethod
    def of(cls, record: Json) -> Step | None:
        """The step that a STEP event tells of; None if it tells neither its number nor its revision."""
        number, revision = record.get("step"), record.get("revision")
        if not isinstance(number, int) or not isinstance(revision, int):
            return None
        return cls(number, revision, {figure: record.get(figure) for figure in Figure})

    def figure(self, guard: Guard) -> float | None:
        """The figure that a guard watches; None if the step has none."""
        value: Any = self.figures[guard.watch]
        if guard.watch in PER_SOURCE:
            value = value.get(guard.source) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)


@dataclass(frozen=True, slots=True)
class Firing:
    """A guard whose figure was out of range in enough successive steps. evidence: (step, value), oldest first."""

    guard: Guard
    evidence: tuple[tuple[int, float], ...]

    @property
    def reason(self) -> str:
        """What happened, as the history tells it."""
        guard, told = self.guard, self.evidence[-_MOST_TOLD:]
        figure = f"{guard.watch} of {guard.source} tokens" if guard.watch in PER_SOURCE else guard.watch.value
        bound = f"below {guard.below:g}" if guard.below is not None else f"above {guard.above:g}"
        values = ", ".join(f"{value:.4g}" for _, value in told)
        count = f"{len(self.evidence)} successive steps" if len(self.evidence) > 1 else "one step"
        newest = f"the last {len(told)} of them: " if len(told) < len(self.evidence) else ""
        first, last = told[0][0], told[-1][0]
        steps = f"steps {first} to {last}" if first < last else f"step {last}"
        return f'guard "{guard.name}": {figure} was {bound} in {count} ({newest}{values} at {steps})'


def firings(guards: Iterable[Guard], steps: Sequence[Step]) -> list[Firing]:
    """The guards that successive steps under one revision, oldest first, call upon, in the order of `guards`."""
    found = (_firing(guard, steps) for guard in guards)
    return [firing for firing in found if firing is not None]


def _firing(guard: Guard, steps: Sequence[Step]) -> Firing | None:
    evidence: list[tuple[int, float]] = []
    for step in reversed(steps):
        value = step.figure(guard)
        if value is None:
            continue
        if not guard.is_out(value):
            return None
        evidence.append((step.number, value))
        if len(evidence) == guard.steps:
            return Firing(guard, tuple(reversed(evidence)))
    return None
