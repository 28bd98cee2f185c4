"""The entries of a stream that a process works on: taken, kept alive, reclaimed from the dead, given up at the end.

A generator's are requests, a scorer's are demonstrations to be scored.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Coroutine
from typing import Any

from prometheus_client import Counter
from redis.exceptions import RedisError

from common.process import Process
from common.streams import Entry, Stream
from common.tasks import end

BLOCK_MS = 500
MOST_DELIVERIES = 5
"""An entry that is given out more often has ended whoever took it."""
_LONG_DEAD_MS = 3_600_000
_FAREWELL_S = 1.5

log = logging.getLogger(__name__)

CarryOut = Callable[[Entry, int], Coroutine[Any, Any, None]]
"""(entry, how many times it has been given to somebody) → it is answered or in quarantine."""


class Intake:
    """Hands each entry to `carry_out` as a task of its own, never more than `limit` at once.

    admits: whether more may be taken; set it to False, and what is in flight is finished and nothing else begun.

    An entry stays pending in Redis until `carry_out` has answered it. If `carry_out` raises, `failed` ends with that
    error: the process must go down and leave the entry to another.
    """

    def __init__(
        self, process: Process, stream: Stream, carry_out: CarryOut, reclaimed: Counter, *, limit: int
    ) -> None:
        self.consumer = f"{process.name}.{os.getpid()}"
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.admits = True
        self.finished = 0
        self._limit = self._usual_limit = limit
        self._reclaim_after_s = process.settings.generator.reclaim_after_s
        self._drain_s = process.settings.generator.drain_s
        self._process = process
        self._stream = stream
        self._named = stream.key.rpartition(":")[2]
        self._carry_out = carry_out
        self._reclaimed = reclaimed
        self._held: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._taking = asyncio.Lock()  # so that `take` and `reclaim` never fill the same places
        self._claiming = asyncio.Lock()  # so that `keep` never makes young again what has just been given up

    @property
    def in_flight(self) -> int:
        """How many entries are being worked on."""
        return len(self._held)

    @property
    def is_at_rest(self) -> bool:
        """Whether it holds nothing, and nothing is on its way to it, until it admits more again."""
        return not (self.admits or self._held or self._taking.locked())

    async def serve(self, *beside: Coroutine[Any, Any, None]) -> None:
        """Work until the process is told to stop, then finish or give up what is in flight; `beside` runs meanwhile.

        Raises what ends one of these loops, or what `carry_out` raised.
        """
        loops = [asyncio.ensure_future(loop) for loop in (self.take(), self.keep(), self.reclaim(), *beside)]
        try:
            done, _ = await asyncio.wait({self.failed, *loops}, return_when=asyncio.FIRST_COMPLETED)
            await self.drain(self._drain_s if self._process.stop.is_set() else 0.0)
            for loop in done:
                loop.result()
        finally:
            await end([self.failed, *loops])

    async def take(self) -> None:
        """Take new entries until the process is told to stop."""
        while not self._process.stop.is_set():
            async with self._taking:
                free = self._free
                if free > 0:
                    await self._take(free)
            if free <= 0:
                await self._wait_for_change(BLOCK_MS / 1000)

    @property
    def _free(self) -> int:
        """How many more entries may be taken now."""
        return self._limit - len(self._held) if self.admits else 0

    async def _take(self, count: int) -> None:
        """Take what is new, waiting a little for it. What comes after admission has ended is given to others."""
        entries = await self._process.patiently(
            f"take {self._named}", lambda: self._stream.take(self.consumer, count, BLOCK_MS)
        )
        if not self.admits:
            await self._give_back([entry.entry_id for entry in entries])
            return
        for entry in entries:
            self._begin(entry, deliveries=1)

    async def _give_back(self, entry_ids: list[str]) -> None:
        """Leave entries that were not begun to others, at once."""
        await self._process.patiently(
            f"give {self._named} back", lambda: self._stream.release(self.consumer, entry_ids, _LONG_DEAD_MS)
        )

    async def keep(self) -> None:
        """Tell the others, for ever, that what is held here is being worked on."""
        while True:
            await asyncio.sleep(self._reclaim_after_s / 3)
            async with self._claiming:
                held = list(self._held)
                await self._process.patiently(
                    f"keep {self._named}", lambda held=held: self._stream.keep(self.consumer, held)
                )

    async def reclaim(self) -> None:
        """Take over what nobody has kept, until the process is told to stop.

        Those are entries of processes that died, and entries whose delivery to this one got lost on the way.
        """
        while not self._process.stop.is_set():
            await self._process.pause(self._reclaim_after_s / 2)
            async with self._taking:
                if self._free > 0 and not self._process.stop.is_set():
                    await self._reclaim(self._free)

    async def _reclaim(self, count: int) -> None:
        idle_ms = math.ceil(self._reclaim_after_s * 1000)
        entries = await self._process.patiently(
            f"reclaim {self._named}", lambda: self._stream.reclaim(self.consumer, idle_ms, count)
        )
        for entry in entries:
            if entry.entry_id in self._held:  # slow here, but neither dead nor lost
                continue
            deliveries = await self._process.patiently(
                "count deliveries", lambda entry_id=entry.entry_id: self._stream.deliveries(entry_id)
            )
            if not self.admits:
                await self._give_back([entry.entry_id])
            elif deliveries > 0:  # else it has been answered in this very moment
                self._reclaimed.inc()
                self._begin(entry, deliveries)

    def _begin(self, entry: Entry, deliveries: int) -> None:
        task = asyncio.create_task(self._carry_out(entry, deliveries), name=entry.entry_id)
        task.add_done_callback(self._carried)
        self._held[entry.entry_id] = task

    def _carried(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return  # still held: it is being given up
        error = task.exception()
        if error is None:
            del self._held[task.get_name()]
            self.finished += 1
        elif not self.failed.done():  # still held, so that it is given up and not forgotten
            self.failed.set_exception(error)
        self._changed.set()

    async def _wait_for_change(self, limit_s: float) -> None:
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), limit_s)
        except TimeoutError:
            return

    async def shut(self) -> None:
        """Give up what is in flight, for others to take at once, and take nothing more until `reopen`."""
        self._limit = 0
        async with self._taking:  # what is being taken in this moment is given back too
            tasks = dict(self._held)
            await end(tasks.values())
        given_up = [entry_id for entry_id, task in tasks.items() if task.cancelled()]
        async with self._claiming:
            await self._give_back(given_up)
            for entry_id in given_up:
                self._held.pop(entry_id, None)
        self._changed.set()

    def reopen(self) -> None:
        """Take entries again."""
        self._limit = self._usual_limit
        self._changed.set()

    async def drain(self, grace_s: float) -> None:
        """Let entries in flight finish within `grace_s`, then give the rest up for others to take at once."""
        if self._held:
            await asyncio.wait(self._held.values(), timeout=grace_s)
        await end(self._held.values())
        try:
            async with asyncio.timeout(_FAREWELL_S):
                async with self._claiming:
                    await self._stream.release(self.consumer, list(self._held), _LONG_DEAD_MS)
                    self._held.clear()
                await self._stream.forget(self.consumer)
        except (RedisError, OSError, TimeoutError) as error:  # what is held is reclaimed by its idle time, a bit later
            log.warning("%s not given up", self._named, extra={"held": len(self._held), "error": str(error)})
