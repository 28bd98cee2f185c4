"""The phases of a run: the steps during which one revision was in force at the learner, and their figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.events import Event, EventKind
from services.cli.progress import describe_changes

Json = dict[str, Any]
SESSION = "up"
"""The name under which `up` itself appears among the process events: its start separates one session from the next."""


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out accuracy of one set when a phase began and when it ended; None where it was not evaluated."""

    before: float | None
    after: float | None


@dataclass(slots=True)
class Phase:
    """Steps `first` to `last` under one revision. asked_after: the learner's step when the revision was accepted."""

    revision: int
    what: str
    first: int
    last: int
    algorithm: str
    hints: str
    asked_after: int | None = None
    seconds: float = 0.0
    reward: float | None = None
    held: dict[str, Held] = field(default_factory=dict[str, Held])

    @property
    def steps(self) -> int:
        """How many steps it had."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step with the time that it took, the time since the step before included."""

    data: Json
    seconds: float

    @property
    def number(self) -> int:
        """Its number, from 1."""
        return int(self.data["step"])


def steps_of(events: Iterable[Event]) -> list[Step]:
    """The steps that count, in order. A step that was done again after a restart counts once, as it was done last."""
    kept: dict[int, Step] = {}
    before_s: float | None = None
    for event in events:
        if event.kind is EventKind.PROCESS and event.data.get("name") == SESSION:
            before_s = None
        if event.kind is not EventKind.STEP:
            continue
        # The first step of a session waited for the engine to start, which is not the phase's doing.
        alone_s = float(event.data.get("step_s") or 0.0) - float(event.data.get("wait_s") or 0.0)
        seconds = alone_s if before_s is None else event.at_s - before_s
        number = int(event.data["step"])
        kept = {n: step for n, step in kept.items() if n < number} if number in kept else kept
        kept[number] = Step(event.data, max(seconds, 0.0))
        before_s = event.at_s
    return [kept[number] for number in sorted(kept)]


def phases_of(events: Sequence[Event]) -> list[Phase]:
    """The phases of a run, in order."""
    revisions = _revisions(events)
    phases: list[Phase] = []
    members: list[list[Step]] = []
    for step in steps_of(events):
        number = int(step.data["revision"])
        if not phases or phases[-1].revision != number:
            what, asked_after = revisions.get(number, ("", None))
            algorithm, hints = str(step.data["algorithm"]), str(step.data["hints"])
            phases.append(Phase(number, what, step.number, step.number, algorithm, hints, asked_after))
            members.append([])
        phases[-1].last = step.number
        members[-1].append(step)
    evaluations = [event.data for event in events if event.kind is EventKind.EVALUATION]
    version = 0
    for phase, steps in zip(phases, members, strict=True):
        phase.seconds = sum(step.seconds for step in steps)
        phase.reward = mean([step.data["reward"] for step in steps if step.data.get("reward") is not None])
        phase.held = _held(steps, version, evaluations)
        version = max(version, *(int(step.data["version"]) for step in steps))
    return phases


def _revisions(events: Iterable[Event]) -> dict[int, tuple[str, int | None]]:
    """Revision → what it changed, and the step that the learner had done when it was accepted."""
    known: dict[int, tuple[str, int | None]] = {}
    done = 0
    for event in events:
        if event.kind is EventKind.STEP:
            done = int(event.data["step"])
        elif event.kind is EventKind.REVISION:
            number = int(event.data["revision"])
            known[number] = (describe_changes(event.data["changes"], number), done)
    return known


def _held(steps: Sequence[Step], held_before: int, evaluations: Sequence[Json]) -> dict[str, Held]:
    """Accuracy of the newest weights evaluated before a phase, and of the newest that it made and that were evaluated.

    held_before: the weight version that the phase began with. A phase that made no weights ends as it began.
    """
    held_after = max(int(step.data["version"]) for step in steps)
    held: dict[str, Held] = {}
    for name in dict.fromkeys(str(data["dataset"]) for data in evaluations):
        of_set = {int(data["version"]): data["accuracy"] for data in evaluations if data["dataset"] == name}
        before = [of_set[version] for version in sorted(of_set) if version <= held_before]
        within = [of_set[version] for version in sorted(of_set) if held_before < version <= held_after]
        last = within if held_after > held_before else before
        held[name] = Held(before[-1] if before else None, last[-1] if last else None)
    return held


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return sum(values) / len(values) if values else None
