"""What `up` reads and writes in the run's Redis: facts, heartbeats, and events about the processes it starts."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from common.errors import SettingsError
from common.events import Event, EventKind, EventLog
from common.expert_scores import EXPERT_IDENTITY
from common.keys import Keys
from common.orders import Orders, Standing

_BATCH = 5000
_END = ("finished", "evaluated")
_ALIVE_S = 10.0
_GONE = ("stopped", "failed")


def _age_s(beat: dict[str, Any]) -> float:
    return time.time() - float(beat.get("at_s") or 0.0)


class Ledger:
    """The part of a run's Redis that concerns `up`. While Redis is away, reading yields nothing and writing waits."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._events = EventLog(redis, keys)
        self._orders = Orders(redis, keys)
        self._unwritten: list[tuple[dict[str, Any], float]] = []

    async def holds_a_run(self) -> bool:
        """Whether Redis has anything of a run with this name."""
        return bool(await self._redis.exists(self._keys.config, self._keys.curriculum, self._keys.events))

    async def refuse_if_alive(self) -> None:
        """SettingsError if processes of a run with this name write to this Redis now."""
        beats = await self._redis.hvals(self._keys.processes)  # pyright: ignore
        told = [json.loads(beat) for beat in beats]
        alive = [beat for beat in told if beat.get("state") not in _GONE and _age_s(beat) < _ALIVE_S]
        if alive:
            raise SettingsError("a run of this name is alive in this Redis: stop it, or change [run] name")

    async def erase(self) -> int:
        """Delete everything of the run and return how many keys that were. SettingsError if the run is alive."""
        await self.refuse_if_alive()
        names = [
            key async for key in self._redis.scan_iter(match=self._keys.config.removesuffix("config") + "*", count=1000)
        ]
        return int(await self._redis.unlink(*names)) if names else 0

    async def begin(self) -> None:
        """Forget what only concerned an earlier session: its processes, its expert, and that it had finished."""
        await self._redis.hdel(self._keys.facts, *_END, "dashboard", EXPERT_IDENTITY)  # pyright: ignore
        await self._redis.delete(self._keys.processes)

    async def forget_end(self) -> None:
        """Forget that the run has finished, as far as Redis is there: the learner sees to it too."""
        with suppress(RedisError, OSError):
            await self._redis.hdel(self._keys.facts, *_END)  # pyright: ignore

    async def facts(self) -> dict[str, str] | None:
        """The facts of the run; None while Redis is away."""
        with suppress(RedisError, OSError):
            known: dict[bytes, bytes] = await self._redis.hgetall(self._keys.facts)  # pyright: ignore
            return {key.decode(): value.decode() for key, value in known.items()}
        return None

    async def ready(self) -> dict[str, int]:
        """The processes that say that they work, with their ids."""
        beats = await self._heartbeats()
        return {str(beat["name"]): int(beat["pid"]) for beat in beats if beat.get("state") == "running"}

    async def sampled_tokens(self) -> int:
        """How many tokens the generators have sampled, as their last heartbeats tell."""
        beats = await self._heartbeats()
        return sum(int(beat.get("generated_tokens") or 0) for beat in beats if beat.get("role") == "generator")

    async def hint_schedule(self) -> dict[str, Any] | None:
        """Where the hint schedule is, as the curriculum tells; None if there is none, or while Redis is away."""
        beats = await self._heartbeats()
        return next((beat.get("hint_schedule") for beat in beats if beat.get("role") == "curriculum"), None)

    async def orders(self) -> Standing | None:
        """The orders that stand; None while Redis is away."""
        with suppress(RedisError, OSError):
            return await self._orders.standing()
        return None

    async def _heartbeats(self) -> list[dict[str, Any]]:
        """The last heartbeat of every process; none while Redis is away."""
        with suppress(RedisError, OSError):
            return [json.loads(beat) for beat in await self._redis.hvals(self._keys.processes)]  # pyright: ignore
        return []

    def note(self, name: str, role: str, state: str, at_s: float) -> None:
        """Put a process event down; `write` sends it."""
        self._unwritten.append(({"name": name, "role": role, "state": state}, at_s))

    async def write(self) -> None:
        """Write down what was noted, as far as Redis is there."""
        with suppress(RedisError, OSError):
            while self._unwritten:
                data, at_s = self._unwritten[0]
                await self._events.append(EventKind.PROCESS, data, at_s=at_s)
                self._unwritten.pop(0)

    async def events(self) -> list[Event]:
        """Every event that is kept of the run."""
        found: list[Event] = []
        with suppress(RedisError, OSError):
            while batch := await self._events.read(found[-1].event_id if found else "0", _BATCH):
                found += batch
        return found
