"""The summary of a run: what the table at its end says, as values and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.events import Event, EventKind
from services.cli.up.phases import SESSION, Phase, mean, phases_of, steps_of

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """What only `up` itself can know about its session. Times in seconds since it was started.

    sampled_tokens: by the generators that live at its end, evaluations included.
    """

    seconds: float
    first_step_s: float | None
    peak_memory_bytes: int
    restarts: int
    sampled_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """A run as it stands at its end. pause_share: an engine's mean pause divided by the mean time between updates.

    trained_tokens: response tokens in the losses of all steps that changed the weights.
    """

    run: str
    steps: int
    phases: tuple[Phase, ...]
    publications: int
    updates: int
    mean_pause_s: float | None
    pause_share: float | None
    quarantined: int
    staleness: float | None
    trained_tokens: int
    measured: Measured
    accuracy: dict[str, float | None]
    places: dict[str, str]

    def as_json(self) -> Json:
        """The summary as a JSON document."""
        return asdict(self)


def summarise(run: str, events: Sequence[Event], measured: Measured, places: dict[str, Path]) -> Summary:
    """The summary of everything that the event log holds of a run."""
    steps = steps_of(events)
    updates = [event for event in events if event.kind is EventKind.UPDATE]
    pause_s = mean([float(event.data["pause_s"]) for event in updates])
    interval_s = mean(_intervals_s(events))
    staleness = [step.data["staleness"] for step in steps if step.data.get("staleness") is not None]
    evaluations = [event.data for event in events if event.kind is EventKind.EVALUATION]
    return Summary(
        run=run,
        steps=steps[-1].number if steps else 0,
        phases=tuple(phases_of(events)),
        publications=len({e.data["version"] for e in events if e.kind is EventKind.PUBLICATION}),
        updates=len(updates),
        mean_pause_s=pause_s,
        pause_share=pause_s / interval_s if pause_s is not None and interval_s else None,
        quarantined=sum(event.kind is EventKind.QUARANTINE for event in events),
        staleness=mean(staleness),
        trained_tokens=sum(int(step.data.get("tokens") or 0) for step in steps if step.data.get("updated", True)),
        measured=measured,
        accuracy={str(data["dataset"]): data["accuracy"] for data in evaluations},
        places={name: str(path) for name, path in places.items()},
    )


def _intervals_s(events: Sequence[Event]) -> list[float]:
    """Seconds between two updates of the same generator in the same session."""
    last_s: dict[str, float] = {}
    intervals: list[float] = []
    for event in events:
        if event.kind is EventKind.PROCESS and event.data.get("name") == SESSION:
            last_s.clear()
        elif event.kind is EventKind.UPDATE:
            name = str(event.data["generator"])
            if name in last_s:
                intervals.append(event.at_s - last_s[name])
            last_s[name] = event.at_s
    return intervals
