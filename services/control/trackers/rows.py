"""Rows: what the events of a run are to a tracker. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.events import Event, EventKind
from services.control.trackers.port import Place, Row

_IDENTITIES = frozenset({"step", "dataset", "generator", "version", "base", "k"})


def rows_of(events: Sequence[Event], place: Place) -> tuple[list[Row], Place]:
    """The rows of events that follow a place, and the place after them. Events that show nothing have none."""
    rows: list[Row] = []
    step = place.step
    for event in events:
        told = event.data.get("step")
        if event.kind is EventKind.STEP and isinstance(told, int):
            step = told
        at = told if isinstance(told, int) else step
        try:
            scalars, notes = dict(_scalars(event)), dict(_notes(event))
        except (AttributeError, KeyError, TypeError, ValueError):  # events may be written by anyone who reaches Redis
            scalars, notes = {}, {"notice": f"a {event.kind} event that cannot be shown"}
        if scalars or notes:
            rows.append(Row(at, event.at_s, scalars, notes))
    return rows, replace(place, after=events[-1].event_id if events else place.after, step=step)


def _scalars(event: Event) -> Iterator[tuple[str, float]]:
    data = event.data
    match event.kind:
        case EventKind.STEP:
            yield from _step(data)
        case EventKind.EVALUATION:
            yield from _numbers(data, f"heldout/{data.get('dataset')}")
        case EventKind.PUBLICATION:
            yield from _numbers(data, "publication")
        case EventKind.UPDATE | EventKind.GENERATION:
            yield from _numbers(data, f"generators/{data.get('generator')}")
        case _:
            return


def _step(data: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A step's record: times apart, and what is told per source, term or part by its own name."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _numbers(value, name)
        elif name.endswith("_s") and not name.endswith("_per_s"):
            yield from _numbers({name: value}, "time")
        else:
            yield from _numbers({name: value} if name != "version" else {}, "train")


def _numbers(data: Mapping[str, Any], group: str) -> Iterator[tuple[str, float]]:
    for name, value in data.items():
        if isinstance(value, int | float) and name not in _IDENTITIES and math.isfinite(value):
            yield f"{group}/{name}", float(value)


def _notes(event: Event) -> Iterator[tuple[str, str]]:
    data = event.data
    match event.kind:
        case EventKind.REVISION:
            yield "revision", _revision(data)
        case EventKind.ORDER:
            yield "order", f"{data.get('order')} {data.get('target')}, by {data.get('by')}"
        case EventKind.NOTICE:
            yield "notice", str(data.get("text"))
        case _:
            return


def _revision(data: Mapping[str, Any]) -> str:
    reason = f": {data['reason']}" if data.get("reason") else ""
    lines = [f"revision {data.get('revision')} by {data.get('author')}{reason}"]
    if data.get("revision") != 1:  # the first one changes everything
        changes = (change for change in data.get("changes", ()))
        lines += [f"- {c['path']}: {json.dumps(c['before'])} → {json.dumps(c['after'])}" for c in changes]
    return "\n".join(lines)
