"""The event log: what operators see. Steps, evaluations, publications, revisions and process changes, in one order.

It is for display: consumers may miss nothing of what is kept, but only the newest entries are kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from redis.asyncio import Redis

from common.keys import Keys

_KEPT = 200_000


class EventKind(StrEnum):
    """What an event tells, and the keys of its data.

    step: one optimiser step (keys: learner/record.py). evaluation: one held-out evaluation {dataset, version, step,
    accuracy, pass_at_k, k, nll, prompts, failures, seconds}. publication: {version, step, kind, base, bytes,
    full_bytes, changed, snapshot_s, canary_s, encode_s, write_s, seconds}, see learner/publication/publisher.py.
    update: a generator applied a version, proved by its canary {generator, version, bytes, canary (largest difference
    or null), fetch_s, apply_s, pause_s, canary_s}. generation: a generator's
    rates {generator, tokens_per_s, running, requests}. revision: Revision.record(). in_force: {process, role,
    revision, step}. process: {name, role, state}. quarantine: {stream, reason, id}. order: {order, target, by}, see
    common/orders.py. addition: {id, prompt_id, state, reason, by}, see common/additions.py. notice: {text}, and
    {guard, revision} of a guard that fired without making a revision.
    """

    STEP = "step"
    EVALUATION = "evaluation"
    PUBLICATION = "publication"
    UPDATE = "update"
    GENERATION = "generation"
    REVISION = "revision"
    IN_FORCE = "in_force"
    PROCESS = "process"
    QUARANTINE = "quarantine"
    ORDER = "order"
    ADDITION = "addition"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True)
class Event:
    """One event. event_id: its id in the log, growing. at_s: Unix time in seconds."""

    event_id: str
    kind: EventKind
    at_s: float
    data: dict[str, Any]


class EventLog:
    """Appends and reads the events of one run."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients
        self._key = keys.events

    async def append(self, kind: EventKind, data: Mapping[str, Any], *, at_s: float) -> str:
        """Add an event and return its id."""
        fields: Any = {"kind": kind.value, "at": repr(at_s), "data": json.dumps(data, allow_nan=False)}
        event_id: Any = await self._redis.xadd(self._key, fields, maxlen=_KEPT, approximate=True)
        return event_id.decode()

    async def read(self, after: str = "0", count: int = 1000, block_ms: int | None = None) -> list[Event]:
        """Up to `count` events after the id `after`, oldest first; waits up to `block_ms` for the first."""
        reply: Any = await self._redis.xread({self._key: after}, count=count, block=block_ms)
        if not reply:
            return []
        return [_event(entry) for entry in reply[0][1]]

    async def read_back(self, before: str = "+", count: int = 1000) -> list[Event]:
        """Up to `count` events before the id `before` ("+": the end), newest first."""
        end = before if before == "+" else f"({before}"
        entries: Any = await self._redis.xrevrange(self._key, max=end, count=count)
        return [_event(entry) for entry in entries]

    async def last_id(self) -> str:
        """The id of the newest event; "0" if there is none."""
        entries: Any = await self._redis.xrevrange(self._key, count=1)
        return entries[0][0].decode() if entries else "0"


def _event(entry: Any) -> Event:
    """The event of an entry. One that is not ours must not end whoever reads the log, so it becomes a notice."""
    event_id, fields = entry
    try:
        kind, at_s = EventKind(fields[b"kind"].decode()), float(fields[b"at"])
        return Event(event_id.decode(), kind, at_s if math.isfinite(at_s) else 0.0, _data(fields[b"data"]))
    except (KeyError, ValueError, RecursionError):
        return Event(event_id.decode(), EventKind.NOTICE, 0.0, {"text": "an event that cannot be read"})


def _data(text: bytes) -> dict[str, Any]:
    """The data of an event. ValueError unless it is a JSON object that can be written as JSON again."""
    data = json.loads(text, parse_constant=_refuse)
    if not isinstance(data, dict):
        raise ValueError("the data of an event is an object")
    if b"\\u" in text:  # half of a surrogate pair can be read, but not written
        json.dumps(data, ensure_ascii=False).encode()
    return cast(dict[str, Any], data)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")
