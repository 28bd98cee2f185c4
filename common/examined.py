"""Examined groups: a few groups of each step as the learner saw them, token by token, for operators to look at.

For display only: the stream keeps the newest ones within a number of bytes and may lose any.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

from common.errors import WireError
from common.keys import Keys
from common.trajectory import Logprobs, Source, Sources, Tokens

_Value = TypeVar("_Value", str, int, float)
_msgpack: Any = msgpack  # Any: msgpack is not annotated
_SCHEMA = 1
KEPT_BYTES = 64 << 20
LARGEST_BYTES = 8 << 20
_AT_ONCE = 20

# The newest entries within so many bytes. KEYS: stream, its size. ARGV: payload, its bytes, group, prompt, limit.
_KEEP = """
redis.call('XADD', KEYS[1], '*', 'payload', ARGV[1], 'bytes', ARGV[2], 'group', ARGV[3], 'prompt', ARGV[4])
local size = redis.call('INCRBY', KEYS[2], ARGV[2])
while size > tonumber(ARGV[5]) do
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if not oldest then redis.call('SET', KEYS[2], 0) break end
  redis.call('XDEL', KEYS[1], oldest[1])
  local fields, bytes = oldest[2], 0
  for i = 1, #fields, 2 do if fields[i] == 'bytes' then bytes = tonumber(fields[i + 1]) end end
  size = redis.call('DECRBY', KEYS[2], bytes)
end
return size
"""


@dataclass(frozen=True, slots=True, eq=False)
class ExaminedTrajectory:
    """One trajectory of T tokens, prompt included, as the learner saw it. Entries that do not apply are NaN.

    behaviour_logprobs, expert_logprobs: log π_old, log π_φ where known. policy_logprobs: log π_θ of response tokens at
    the start of the step, at the sampling temperature. ratios: the importance ratio, with its true denominator.
    versions: the weight version that sampled each token, -1 where none did. advantage: None if the algorithm did not
    admit the trajectory (then nothing of it was computed).
    """

    tokens: Tokens
    sources: Sources
    versions: NDArray[np.int32]
    behaviour_logprobs: Logprobs
    expert_logprobs: Logprobs
    policy_logprobs: Logprobs
    ratios: Logprobs
    advantage: float | None
    reward: float
    reward_parts: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class ExaminedGroup:
    """One group of a step. revision: of the step. version: the weights' that the learner held. at_s: Unix time."""

    group_id: str
    prompt_id: str
    generator: str
    step: int
    revision: int
    version: int
    algorithm: str
    at_s: float
    trajectories: tuple[ExaminedTrajectory, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """An examined group in the stream. entry_id: grows."""

    entry_id: str
    group: ExaminedGroup


class Examined:
    """The examined groups of one run."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients
        self._keys = keys
        self._keep = self._redis.register_script(_KEEP)

    async def keep(self, group: ExaminedGroup, limit_bytes: int = KEPT_BYTES) -> bool:
        """Keep a group, and let go of the oldest beyond `limit_bytes`. False if it alone is too large to keep."""
        payload = await asyncio.to_thread(encode_examined, group)  # compression takes a while
        if len(payload) > LARGEST_BYTES:
            return False
        keys = [self._keys.examined, self._keys.examined_bytes]
        await self._keep(keys=keys, args=[payload, len(payload), group.group_id, group.prompt_id, limit_bytes])
        return True

    async def newest(self, count: int, *, before: str = "+", prompt_id: str = "", group_id: str = "") -> list[Kept]:
        """Up to `count` groups before an entry, newest first; only those of a prompt or with an id, if one is named."""
        found: list[Kept] = []
        end = before if before == "+" else f"({before}"
        while len(found) < count:
            entries: Any = await self._redis.xrevrange(self._keys.examined, max=end, count=_AT_ONCE)
            for entry_id, fields in entries:
                if len(found) == count:
                    break
                end = f"({entry_id.decode()}"
                if prompt_id and fields.get(b"prompt") != prompt_id.encode():
                    continue
                if group_id and fields.get(b"group") != group_id.encode():
                    continue
                # In a thread: unpacking large ones takes longer than whoever else is served here wants to wait.
                kept = await asyncio.to_thread(_kept, entry_id, fields)
                if kept is not None:
                    found.append(kept)
            if not entries:
                break
        return found

    async def entry(self, entry_id: str) -> Kept | None:
        """The group of one entry; None if it is not kept any more, or cannot be read."""
        entries: Any = await self._redis.xrange(self._keys.examined, min=entry_id, max=entry_id)
        return await asyncio.to_thread(_kept, *entries[0]) if entries else None


def encode_examined(group: ExaminedGroup) -> bytes:
    """An examined group as compressed bytes."""
    fields = {
        "v": _SCHEMA,
        "ids": [group.group_id, group.prompt_id, group.generator],
        "at": [group.step, group.revision, group.version, group.at_s],
        "algorithm": group.algorithm,
        "trajectories": [
            [
                _bytes(t.tokens, "<i4"),
                _bytes(t.sources, "<u1"),
                _bytes(t.versions, "<i4"),
                *(_bytes(a, "<f4") for a in (t.behaviour_logprobs, t.expert_logprobs, t.policy_logprobs, t.ratios)),
                t.advantage,
                t.reward,
                dict(t.reward_parts),
            ]
            for t in group.trajectories
        ],
    }
    return zlib.compress(cast(bytes, _msgpack.packb(fields)), 1)


def decode_examined(payload: bytes) -> ExaminedGroup:
    """The examined group in `payload`; WireError if there is none."""
    try:
        unzip = zlib.decompressobj()
        packed = unzip.decompress(payload, 16 * LARGEST_BYTES)
        fields: Any = _msgpack.unpackb(packed)
        if fields["v"] > _SCHEMA:
            raise WireError("the examined group was written by a newer version of this project")
        group_id, prompt_id, generator = (_typed(name, str) for name in fields["ids"])
        *numbers, at_s = fields["at"]
        step, revision, version = (_typed(number, int) for number in numbers)
        trajectories = tuple(_trajectory(*values) for values in fields["trajectories"])
        algorithm = _typed(fields["algorithm"], str)
        if not math.isfinite(_typed(at_s, float)):
            raise ValueError("its time is none")
        return ExaminedGroup(
            group_id, prompt_id, generator, step, revision, version, algorithm, _typed(at_s, float), trajectories
        )
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise WireError(f"not an examined group: {type(error).__name__}: {error}") from error


def _trajectory(*values: Any) -> ExaminedTrajectory:
    *columns, advantage, reward, parts = values
    types = ("<i4", "<u1", "<i4", "<f4", "<f4", "<f4", "<f4")
    arrays = [np.frombuffer(column, dtype) for column, dtype in zip(columns, types, strict=True)]
    tokens, sources, versions, behaviour, expert, policy, ratios = arrays
    if len({len(array) for array in arrays}) > 1 or np.any(sources > max(Source)):
        raise ValueError("columns of different lengths, or a source that is none")
    return ExaminedTrajectory(
        tokens=tokens,
        sources=sources,
        versions=versions,
        behaviour_logprobs=behaviour,
        expert_logprobs=expert,
        policy_logprobs=policy,
        ratios=ratios,
        advantage=None if advantage is None else _typed(advantage, float),
        reward=_typed(reward, float),
        reward_parts={_typed(name, str): _typed(value, float) for name, value in parts.items()},
    )


def _typed(value: Any, kind: type[_Value]) -> _Value:
    """The value, which is of this kind; whole numbers are floats too."""
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value


def _bytes(array: NDArray[Any], dtype: str) -> bytes:
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def _kept(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Kept | None:
    """The group of an entry; None if it cannot be read."""
    try:
        return Kept(entry_id.decode(), decode_examined(fields.get(b"payload", b"")))
    except WireError:
        return None
