"""The muster: who takes part in the broadcast of a weight version, agreed upon before anybody begins to wait in it.

A collective operation waits for every member, and one that is missing keeps all the others. So the learner calls, every
member says that it is ready, and only when all are is the word given; until then anybody whose patience ends calls it
off for all, and the version comes from the store. The word is given once and never changed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from common.keys import Keys

_LOOK_S = 0.01
_FORGOTTEN_MS = 600_000

# The word that was given, or is given by this call; "" while members are missing.
_SAY = """
local word = redis.call('HGET', KEYS[1], 'word')
if word then return word end
if ARGV[1] == 'go' then
    for i = 3, #ARGV do
        if redis.call('HEXISTS', KEYS[1], 'ready:' .. ARGV[i]) == 0 then return '' end
    end
end
redis.call('HSET', KEYS[1], 'word', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return ARGV[1]
"""

# Whether a member is ready by this call or by one of the same life. A former life's word cannot be kept any more.
_READY = """
local mark = redis.call('HGET', KEYS[1], 'ready:' .. ARGV[1])
if mark then return mark == ARGV[2] and 1 or 0 end
redis.call('HSET', KEYS[1], 'ready:' .. ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""


class Word(StrEnum):
    """How a version comes to the generators."""

    GO = "go"
    STORE = "store"


class Muster:
    """The musters of one run, as one life of a member or of the learner sees them. clock: seconds, growing."""

    def __init__(self, redis: Redis, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients
        self._keys = keys
        self._clock = clock
        self._say = self._redis.register_script(_SAY)
        self._ready = self._redis.register_script(_READY)
        self._mark = uuid4().hex

    async def call(self, version: int, group: str, members: Sequence[str], limit_s: float) -> Word:
        """The learner's side: call the members together, and give the word when all are ready or the time is up.

        group: the communicator that they are to meet in, told to everybody who answers.
        """
        key = self._keys.muster(version)
        await self._redis.hset(key, "group", group)
        await self._redis.pexpire(key, _FORGOTTEN_MS)
        deadline_s = self._clock() + limit_s
        while True:
            late = self._clock() >= deadline_s
            word = await self._say(keys=[key], args=[Word.STORE if late else Word.GO, _FORGOTTEN_MS, *members])
            if word:
                return Word(word.decode())
            await asyncio.sleep(_LOOK_S)

    async def answer(self, version: int, name: str, limit_s: float) -> str | None:
        """A member's side: be ready, and wait for the word. The group to meet in now; None: take it from the store.

        After `limit_s` without a word this member calls the broadcast off; at once if it was ready in a former life.
        """
        key = self._keys.muster(version)
        if not await self._ready(keys=[key], args=[name, self._mark, _FORGOTTEN_MS]):
            await self.call_off(version)
            return None
        deadline_s = self._clock() + limit_s
        while (word := await self._redis.hget(key, "word")) is None:
            if self._clock() >= deadline_s:
                word = await self._say(keys=[key], args=[Word.STORE, _FORGOTTEN_MS])
                break
            await asyncio.sleep(_LOOK_S)
        if Word(word.decode()) is Word.STORE:
            return None
        group = await self._redis.hget(key, "group")
        return None if group is None else group.decode()

    async def call_off(self, version: int) -> Word:
        """Have a version taken from the store, unless the word is given already; the word."""
        word = await self._say(keys=[self._keys.muster(version)], args=[Word.STORE, _FORGOTTEN_MS])
        return Word(word.decode())
