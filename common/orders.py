"""Orders: what an operator asks of single processes, beside the live configuration.

An order is a wish that stands until it is taken back, not a message: a process reads all of them at a boundary of its
work, so one that was away or restarted misses nothing, and an order given twice is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from redis.asyncio import Redis

from common.keys import Keys

_LATEST_S = 1e12
_PAUSE, _CHECKPOINT, _DRAIN = "pause", "checkpoint", "drain:"

_COUNT_UP = """
local before = redis.call('HGET', KEYS[1], ARGV[1])
local number = 1
if before then
  local read, order = pcall(cjson.decode, before)
  if read and type(order) == 'table' and tonumber(order.number) then number = order.number + 1 end
end
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode({number = number, by = ARGV[2], at_s = tonumber(ARGV[3])}))
return number
"""


class OrderKind(StrEnum):
    """What an ORDER event tells. target: the learner, or the generator's name."""

    PAUSE = "pause"
    RESUME = "resume"
    CHECKPOINT = "checkpoint"
    DRAIN = "drain"
    ADMIT = "admit"


@dataclass(frozen=True, slots=True)
class Order:
    """Who gave an order, and when (Unix time in seconds)."""

    by: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """The orders that stand now.

    pause: the learner is to wait at its step boundary. checkpoints: how many checkpoints were ordered so far; the
    learner says in its heartbeat (`checkpoint_order`) which of them it has carried out. drained: generators that are to
    take no more requests.
    """

    pause: Order | None
    checkpoints: int
    drained: Mapping[str, Order]


class Orders:
    """The orders of one run."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients
        self._key = keys.orders
        self._count_up = self._redis.register_script(_COUNT_UP)

    async def standing(self) -> Standing:
        """All orders that stand."""
        return standing_of(await self._redis.hgetall(self._key))

    async def pause(self, by: str, *, at_s: float) -> bool:
        """Have the learner wait at its next step boundary. False if it was ordered to already."""
        return await self._give(_PAUSE, by, at_s)

    async def resume(self) -> bool:
        """Have the learner go on. False if it was not paused."""
        return bool(await self._redis.hdel(self._key, _PAUSE))

    async def checkpoint(self, by: str, *, at_s: float) -> int:
        """Order a checkpoint; the order's number."""
        return int(await self._count_up(keys=[self._key], args=[_CHECKPOINT, by, repr(at_s)]))

    async def drain(self, generator: str, by: str, *, at_s: float) -> bool:
        """Have a generator finish what it has and take nothing more. False if it was ordered to already."""
        return await self._give(_DRAIN + generator, by, at_s)

    async def admit(self, generator: str) -> bool:
        """Have a drained generator take requests again. False if it was not drained."""
        return bool(await self._redis.hdel(self._key, _DRAIN + generator))

    async def is_drained(self, generator: str) -> bool:
        """Whether a generator is to take no more requests."""
        return bool(await self._redis.hexists(self._key, _DRAIN + generator))

    async def _give(self, name: str, by: str, at_s: float) -> bool:
        return bool(await self._redis.hsetnx(self._key, name, json.dumps({"by": by, "at_s": at_s})))


def standing_of(fields: Mapping[bytes, bytes]) -> Standing:
    """The orders that stand, from the hash that holds them. One that cannot be read stands all the same, of nobody."""
    orders = {name.decode("utf-8", "replace"): _record(text) for name, text in fields.items()}
    count = orders.get(_CHECKPOINT, {}).get("number")
    return Standing(
        pause=_order(orders[_PAUSE]) if _PAUSE in orders else None,
        checkpoints=count if isinstance(count, int) else 0,
        drained={k.removeprefix(_DRAIN): _order(o) for k, o in orders.items() if k.startswith(_DRAIN)},
    )


def _record(text: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast(Mapping[str, Any], told) if isinstance(told, dict) else {}


def _order(told: Mapping[str, Any]) -> Order:
    by, at_s = told.get("by"), told.get("at_s")
    given_s = float(at_s) if isinstance(at_s, float | int) and 0 <= at_s < _LATEST_S else 0.0
    # Half of a surrogate pair can be read, but not written.
    name = by.encode("utf-8", "replace").decode() if isinstance(by, str) else ""
    return Order(name, given_s)
