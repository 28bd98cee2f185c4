"""The live configuration in Redis: compare-and-set, numbered revisions, and the whole history.

A revision is one accepted configuration with who asked for it, when, from where, and what changed. Revisions are never
renumbered and never skipped; a rollback is a new revision with an old configuration.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, cast

from redis.asyncio import Redis

from common.config.live import Json, LiveConfig, dump_live, parse_live
from common.errors import LostRace
from common.keys import Keys

_LATEST_S = 1e12
_FIELDS = frozenset({"revision", "config", "author", "origin", "at_s", "reason", "changes"})
_COMPARE_AND_SET = """
local current = tonumber(redis.call('HGET', KEYS[1], 'revision') or '0')
if current ~= tonumber(ARGV[1]) then return {0, current} end
redis.call('HSET', KEYS[1], 'revision', ARGV[2], 'record', ARGV[3])
redis.call('RPUSH', KEYS[2], ARGV[3])
return {1, tonumber(ARGV[2])}
"""


@dataclass(frozen=True, slots=True)
class Author:
    """Who asked for a revision, and from where."""

    name: str
    origin: str


@dataclass(frozen=True, slots=True)
class Change:
    """One value that a revision changed; before or after is None where the key was absent."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Revision:
    """One accepted live configuration. at_s: Unix time in seconds."""

    number: int
    live: LiveConfig
    author: Author
    at_s: float
    reason: str
    changes: tuple[Change, ...]

    def record(self) -> Json:
        """The revision as a JSON document."""
        return {
            "revision": self.number,
            "config": dump_live(self.live),
            "author": self.author.name,
            "origin": self.author.origin,
            "at_s": self.at_s,
            "reason": self.reason,
            "changes": [asdict(c) for c in self.changes],
        }


class ConfigStore:
    """Reads and changes the live configuration of one run."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients
        self._keys = keys
        self._compare_and_set = self._redis.register_script(_COMPARE_AND_SET)

    async def number(self) -> int:
        """The current revision's number; 0 before the first."""
        return int(await self._redis.hget(self._keys.config, "revision") or 0)

    async def current(self) -> Revision | None:
        """The current revision; None before the first."""
        record = await self._redis.hget(self._keys.config, "record")
        return None if record is None else _revision(json.loads(record))

    async def history(self, first: int = 1, last: int | None = None) -> list[Revision]:
        """Revisions `first` to `last`, both included."""
        return [_revision(record) for record in await self.records(first, last)]

    async def records(self, first: int = 1, last: int | None = None) -> list[Json]:
        """The same as they were written: an old revision may be one that is not valid any more."""
        stop = -1 if last is None else last - 1
        records: list[bytes] = await self._redis.lrange(self._keys.config_history, first - 1, stop)
        return [_record(number, text) for number, text in enumerate(records, start=first)]

    async def replace(
        self, live: LiveConfig, expected: int, author: Author, *, at_s: float, reason: str = ""
    ) -> Revision:
        """Make `live` revision `expected` + 1. LostRace if `expected` is not current any more."""
        before = await self.current()
        if before is not None and before.number != expected:
            raise LostRace(expected, before.number)
        changes = difference({} if before is None else dump_live(before.live), dump_live(live))
        revision = Revision(expected + 1, live, author, at_s, reason, tuple(changes))
        accepted, current = await self._compare_and_set(
            keys=[self._keys.config, self._keys.config_history],
            args=[expected, revision.number, json.dumps(revision.record())],
        )
        if not accepted:
            raise LostRace(expected, int(current))
        return revision

    async def mark_in_force(self, process: str, number: int, *, step: int, at_s: float) -> None:
        """Note that `process` has put revision `number` in force, first at learner step `step`."""
        value = json.dumps({"step": step, "at_s": at_s})
        await self._redis.hsetnx(self._keys.in_force, f"{number}:{process}", value)

    async def in_force(self) -> dict[int, dict[str, Json]]:
        """When each revision came into force: revision → process → {step, at_s}. What cannot be read is passed over."""
        marks: dict[int, dict[str, Json]] = {}
        for key, value in (await self._redis.hgetall(self._keys.in_force)).items():
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                number, _, process = key.decode().partition(":")
                marks.setdefault(int(number), {})[process] = _mark(json.loads(value))
        return marks


def difference(before: Any, after: Any, path: str = "") -> list[Change]:
    """What changed between two JSON documents, leaf by leaf."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [Change(path, before, after)]
    old, new = cast(Json, before), cast(Json, after)
    changes: list[Change] = []
    for key in sorted(old.keys() | new.keys()):
        changes += difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    return changes


def _record(number: int, text: bytes) -> Json:
    """The record of a revision. One that cannot be read keeps its place; nobody can return to it."""
    try:
        record = json.loads(text)
        whole = record["revision"] == number and isinstance(record["config"], dict) and record.keys() >= _FIELDS
        told = all(isinstance(record[name], str) for name in ("author", "origin", "reason"))
        if whole and told and isinstance(record["changes"], list) and isinstance(record["at_s"], float | int):
            return record
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    unreadable = {"revision": number, "config": {"unreadable": True}, "author": "unknown", "origin": "unknown"}
    return {**unreadable, "at_s": 0.0, "reason": "the record of this revision cannot be read", "changes": []}


def _mark(told: Json) -> Json:
    """A note of mark_in_force; an error if it is none."""
    step, at_s = told["step"], told["at_s"]
    if not isinstance(step, int | None) or not isinstance(at_s, float | int) or not 0 <= at_s < _LATEST_S:
        raise ValueError("neither a step nor a time")
    return {"step": step, "at_s": at_s}


def _revision(record: Json) -> Revision:
    return Revision(
        number=int(record["revision"]),
        live=parse_live(record["config"]),
        author=Author(record["author"], record["origin"]),
        at_s=float(record["at_s"]),
        reason=record["reason"],
        changes=tuple(Change(**c) for c in record["changes"]),
    )
