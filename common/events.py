"""The event log: what operators see. Steps, evaluations, publications, revisions and process changes, in one order.

It is for display: consumers may miss nothing of what is kept, but only the newest entries are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from common.keys import Keys

_KEPT = 200_000


class EventKind(StrEnum):
    """What an event tells, and the keys of its data.

    step: one optimiser step (keys: learner/record.py). evaluation: one held-out evaluation {dataset, version, step,
    accuracy, pass_at_k, k, nll, prompts, failures, seconds}. publication: {version, step, kind, bytes, seconds}.
    update: a generator applied a version {generator, version, fetch_s, apply_s, pause_s}. generation: a generator's
    rates {generator, tokens_per_s, running, requests}. revision: Revision.record(). in_force: {process, role,
    revision, step}. process: {name, role, state}. quarantine: {stream, reason, id}. notice: {text}.
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
    event_id, fields = entry
    kind = EventKind(fields[b"kind"].decode())
    return Event(event_id.decode(), kind, float(fields[b"at"]), json.loads(fields[b"data"]))
