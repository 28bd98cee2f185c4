"""Commands: orders to single processes, given over HTTP or by a guard, each told as an event once it stands."""

from __future__ import annotations

import logging
from collections.abc import Callable

from redis.asyncio import Redis
from redis.exceptions import RedisError

from common.events import EventKind, EventLog
from common.keys import Keys
from common.orders import OrderKind, Orders

LEARNER = "learner"

log = logging.getLogger(__name__)


class Commands:
    """Gives orders to the processes of one run. clock: Unix time in seconds. by: who gives them."""

    def __init__(self, redis: Redis, keys: Keys, clock: Callable[[], float]) -> None:
        self._orders = Orders(redis, keys)
        self._events = EventLog(redis, keys)
        self._clock = clock

    async def pause(self, by: str) -> bool:
        """Have the learner wait at its next step boundary. False if it was ordered to already."""
        given = await self._orders.pause(by, at_s=self._clock())
        return given and await self._tell(OrderKind.PAUSE, LEARNER, by)

    async def resume(self, by: str) -> bool:
        """Have the learner go on. False if it was not paused."""
        return await self._orders.resume() and await self._tell(OrderKind.RESUME, LEARNER, by)

    async def checkpoint(self, by: str) -> int:
        """Order a checkpoint; the order's number."""
        number = await self._orders.checkpoint(by, at_s=self._clock())
        await self._tell(OrderKind.CHECKPOINT, LEARNER, by)
        return number

    async def drain(self, generator: str, by: str) -> bool:
        """Have a generator finish what it has and take nothing more. False if it was ordered to already."""
        given = await self._orders.drain(generator, by, at_s=self._clock())
        return given and await self._tell(OrderKind.DRAIN, generator, by)

    async def admit(self, generator: str, by: str) -> bool:
        """Have a drained generator take requests again. False if it was not drained."""
        return await self._orders.admit(generator) and await self._tell(OrderKind.ADMIT, generator, by)

    async def _tell(self, order: OrderKind, target: str, by: str) -> bool:
        """Write the event of an order; True. The order stands even if Redis goes away before its event is written."""
        try:
            data = {"order": order.value, "target": target, "by": by}
            await self._events.append(EventKind.ORDER, data, at_s=self._clock())
        except (RedisError, OSError) as error:
            log.warning("no event for an order", extra={"order": order.value, "target": target, "error": str(error)})
        else:
            log.info("order given", extra={"order": order.value, "target": target, "by": by})
        return True
