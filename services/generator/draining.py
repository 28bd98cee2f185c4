"""The order to drain: a generator that has it finishes what it holds and takes nothing more, until it is admitted."""

from __future__ import annotations

import asyncio
import logging

from common.process import Process
from services.generator.intake import Intake

TICK_S = 0.5

log = logging.getLogger(__name__)


class Draining:
    """Obeys the order for one generator and tells in its heartbeat how far it is.

    draining: it takes nothing more. drained: and it holds nothing, so it can be stopped without loss of work. Weights
    are refreshed and heartbeats sent all the same: it is well, and ready to go on.
    """

    def __init__(self, process: Process, intake: Intake) -> None:
        self._process = process
        self._intake = intake

    async def follow(self) -> None:
        """Obey for ever."""
        while True:
            await self.obey()
            await asyncio.sleep(TICK_S)

    async def obey(self) -> None:
        """Do now what the order says now."""
        process, intake = self._process, self._intake
        draining = await process.patiently("read orders", lambda: process.orders.is_drained(process.name))
        if intake.admits == draining:  # the order is news
            intake.admits = not draining
            log.info("takes nothing more" if draining else "takes requests again", extra={"holds": intake.in_flight})
        process.details |= {"draining": draining, "drained": intake.is_at_rest}
