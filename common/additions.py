"""Additions: demonstrations that operators add to prompts while the run goes on.

The control plane appends them; the curriculum makes each ready (tokens, limits, grade), says what became of it, and
uses it from the prompt's next request on. The stream is kept whole, so a curriculum that starts again knows them all;
MOST_BYTES bounds it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from common.errors import TributaryError
from common.keys import Keys

LONGEST_TEXT = 200_000
MOST_BYTES = 256 << 20

# One entry more, within so many bytes of text. KEYS: stream, its size. ARGV: prompt, text, who, when, limit.
_ADD = """
if tonumber(redis.call('GET', KEYS[2]) or 0) + #ARGV[2] > tonumber(ARGV[5]) then return false end
redis.call('INCRBY', KEYS[2], #ARGV[2])
return redis.call('XADD', KEYS[1], '*', 'prompt_id', ARGV[1], 'text', ARGV[2], 'by', ARGV[3], 'at', ARGV[4])
"""


class TooManyAdditions(TributaryError):
    """What was added to a run has the size that is kept of it at most."""


class AdditionState(StrEnum):
    """What became of an addition. waiting: it has not been looked at, or its grade or the expert's score is missing."""

    WAITING = "waiting"
    IN_USE = "in use"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Addition:
    """An expert answer for one prompt. addition_id: its stream id, growing. at_s: Unix time in seconds."""

    addition_id: str
    prompt_id: str
    text: str
    by: str
    at_s: float


@dataclass(frozen=True, slots=True)
class AdditionVerdict:
    """What became of an addition. reason: why it was refused or still waits; reward: its grade, once there is one."""

    state: AdditionState
    reason: str = ""
    reward: float | None = None


_WAITING = AdditionVerdict(AdditionState.WAITING)


class Additions:
    """The additions of one run."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients
        self._keys = keys
        self._add = self._redis.register_script(_ADD)

    async def add(self, prompt_id: str, text: str, by: str, *, at_s: float, limit_bytes: int = MOST_BYTES) -> str:
        """Add a demonstration; its id. TooManyAdditions if all texts together would have more than `limit_bytes`."""
        keys = [self._keys.additions, self._keys.additions_bytes]
        addition_id: bytes | None = await self._add(keys=keys, args=[prompt_id, text, by, repr(at_s), limit_bytes])
        if addition_id is None:
            raise TooManyAdditions(
                f"the demonstrations that were added to this run have {limit_bytes >> 20} MiB, the most that Redis "
                "keeps: put further ones into the data set"
            )
        return addition_id.decode()

    async def after(self, addition_id: str = "0", count: int = 100) -> list[Addition]:
        """Up to `count` additions after an id, oldest first."""
        entries: Any = await self._redis.xrange(self._keys.additions, min=f"({addition_id}", count=count)
        return [_addition(*entry) for entry in entries]

    async def newest(self, count: int = 100) -> list[Addition]:
        """The newest additions, newest first."""
        entries: Any = await self._redis.xrevrange(self._keys.additions, count=count)
        return [_addition(*entry) for entry in entries]

    async def find(self, addition_id: str) -> Addition | None:
        """One addition; None if there is none of this id."""
        entries: Any = await self._redis.xrange(self._keys.additions, min=addition_id, max=addition_id)
        return _addition(*entries[0]) if entries else None

    async def judge(self, addition_id: str, verdict: AdditionVerdict) -> None:
        """Say, as the curriculum, what became of one."""
        told = {"state": verdict.state.value, "reason": verdict.reason, "reward": verdict.reward}
        await self._redis.hset(self._keys.verdicts, addition_id, json.dumps(told))

    async def verdicts(self, addition_ids: list[str]) -> dict[str, AdditionVerdict]:
        """What became of additions, by id; those that nobody has judged yet are waiting."""
        if not addition_ids:
            return {}
        texts: list[bytes | None] = await self._redis.hmget(self._keys.verdicts, addition_ids)
        return {i: _verdict(text) for i, text in zip(addition_ids, texts, strict=True)}


def _addition(entry_id: bytes, fields: dict[bytes, bytes]) -> Addition:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode("utf-8", "replace")

    try:
        at_s = float(text(b"at"))
    except ValueError:  # an entry that is not ours must not end who reads the stream
        at_s = 0.0
    return Addition(entry_id.decode(), text(b"prompt_id"), text(b"text"), text(b"by"), at_s)


def _verdict(text: bytes | None) -> AdditionVerdict:
    """A verdict; waiting if there is none, or none that can be read: then it is judged again."""
    if text is None:
        return _WAITING
    try:
        told = json.loads(text)
        state, reason, reward = AdditionState(told["state"]), str(told["reason"]), told["reward"]
        reason.encode()  # half of a surrogate pair can be read, but not written
    except (KeyError, TypeError, ValueError, RecursionError):
        return _WAITING
    return AdditionVerdict(state, reason, reward if isinstance(reward, float | int) else None)
