"""The audit of a revision: the metrics of the steps before and after the learner put it in force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, Field

from common.config.live import Json
from common.events import Event, EventKind, EventLog

MOST_STEPS = 10
_MOST_SCANNED = 5000
_BATCH = 1000
# The clock of the process that put the revision in force may differ from the one that numbers the log.
_SKEW_MS = 10_000


class Surroundings(BaseModel):
    """Means over some steps, null where none of them has the figure."""

    reward: float | None = None
    entropy: float | None = None
    grad_norm: float | None = None
    loss: float | None = None
    effective_sample_size: float | None = Field(default=None, description="of policy tokens")
    staleness: float | None = Field(default=None, description="versions")
    tokens_per_s: float | None = None
    accuracy: dict[str, float] = Field(
        default_factory=dict, description="data set → held-out accuracy of the evaluation next to the change"
    )


class Audit(BaseModel):
    """What was before and after. steps: how many steps each is the mean of, 10 at most."""

    before: Surroundings
    after: Surroundings
    steps_before: int
    steps_after: int


async def read_audit(events: EventLog, revision: int, in_force_s: float) -> Audit:
    """The audit of a revision that the learner put in force at the Unix time `in_force_s`.

    Looks at 5000 events of the log on either side at most.
    """
    middle_ms = int(in_force_s * 1000)
    before, accuracy_before = _before(await _backwards(events, middle_ms + _SKEW_MS, revision), revision)
    after, accuracy_after = _after(await _forwards(events, max(0, middle_ms - _SKEW_MS), revision), revision)
    return Audit(
        before=_surroundings(before, accuracy_before),
        after=_surroundings(after, accuracy_after),
        steps_before=len(before),
        steps_after=len(after),
    )


async def _backwards(events: EventLog, from_ms: int, revision: int) -> list[Event]:
    """Steps and evaluations until enough of them under earlier revisions are seen, newest first."""
    found, before, steps = list[Event](), f"{from_ms}-0", 0
    for _ in range(_MOST_SCANNED // _BATCH):
        batch = await events.read_back(before, _BATCH)
        found += [event for event in batch if event.kind in (EventKind.STEP, EventKind.EVALUATION)]
        steps += sum(_revision(event) < revision for event in batch if event.kind is EventKind.STEP)
        is_evaluated = any(event.kind is EventKind.EVALUATION for event in found)
        if len(batch) < _BATCH or (steps > MOST_STEPS and is_evaluated):
            break
        before = batch[-1].event_id
    return found


async def _forwards(events: EventLog, from_ms: int, revision: int) -> list[Event]:
    """Steps and evaluations until a later revision is in force or there are no more, oldest first."""
    found, after = list[Event](), f"{from_ms}-0"
    for _ in range(_MOST_SCANNED // _BATCH):
        batch = await events.read(after, _BATCH)
        found += [event for event in batch if event.kind in (EventKind.STEP, EventKind.EVALUATION)]
        is_over = any(_revision(event) > revision for event in batch if event.kind is EventKind.STEP)
        if len(batch) < _BATCH or is_over:
            break
        after = batch[-1].event_id
    return found


def _before(events: Sequence[Event], revision: int) -> tuple[list[Json], dict[str, float]]:
    """The last steps under earlier revisions, and the last accuracies of weights that they made; newest first."""
    steps = dict[float, Json]()
    for event in events:
        if event.kind is EventKind.STEP and _revision(event) < revision and len(steps) < MOST_STEPS:
            steps.setdefault(_step(event.data), event.data)
    last = next(iter(steps), -math.inf)
    evaluations = (event for event in events if event.kind is EventKind.EVALUATION)
    return list(steps.values()), _accuracies(e for e in evaluations if _step(e.data) <= last)


def _after(events: Sequence[Event], revision: int) -> tuple[list[Json], dict[str, float]]:
    """The first steps under the revision, and the first accuracies of weights that it made; oldest first."""
    own = itertools.takewhile(lambda e: e.kind is not EventKind.STEP or _revision(e) <= revision, events)
    steps, evaluations = dict[float, Json](), list[Event]()
    for event in own:
        if event.kind is EventKind.EVALUATION:
            evaluations.append(event)
        elif _revision(event) == revision and (_step(event.data) in steps or len(steps) < MOST_STEPS):
            steps[_step(event.data)] = event.data
    first = next(iter(steps), math.inf)
    return list(steps.values()), _accuracies(e for e in evaluations if _step(e.data) >= first)


def _accuracies(evaluations: Iterable[Event]) -> dict[str, float]:
    """data set → the accuracy that the first of these evaluations of it found."""
    accuracies: dict[str, float] = {}
    for event in evaluations:
        value = _figure(event.data.get("accuracy"), math.nan)
        if math.isfinite(value):
            accuracies.setdefault(str(event.data.get("dataset")), value)
    return accuracies


def _surroundings(steps: list[Json], accuracy: dict[str, float]) -> Surroundings:
    means: dict[str, float | None] = {}
    for name in Surroundings.model_fields.keys() - {"accuracy"}:
        told = (step.get(name) for step in steps)
        values = (value.get("policy") if isinstance(value, dict) else value for value in told)
        numbers = [number for number in (_figure(value, math.nan) for value in values) if math.isfinite(number)]
        means[name] = sum(numbers) / len(numbers) if numbers else None
    return Surroundings(**means, accuracy=accuracy)  # pyright: ignore[reportArgumentType]


def _revision(event: Event) -> int:
    return int(_figure(event.data.get("revision"), 0))


def _step(record: Json) -> float:
    return _figure(record.get("step"), -1.0)


def _figure(value: Any, otherwise: float) -> float:
    """A number that a process told; `otherwise` if it is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise
