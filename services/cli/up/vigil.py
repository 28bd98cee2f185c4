"""The vigil over a session: looks after programs, facts and memory, again and again, until the run is done."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from services.cli.progress import Progress
from services.cli.up import process_table, redis_server
from services.cli.up.ledger import Ledger
from services.cli.up.programs import LEARNER
from services.cli.up.supervisor import Supervisor
from services.cli.voice import Voice

EVALUATION_S = 60.0
_TICK_S = 0.2
_LOOK_S = 1.0
_MEASURE_S = 3.0
_MEASURE_SHARE = 0.005
"""Of the time that we measure memory, at most: the kernel walks every page of every program for it."""


class Vigil:
    """Watches over running programs. on_address is called with the control plane's address whenever it is a new one."""

    def __init__(
        self,
        supervisor: Supervisor,
        ledger: Ledger,
        progress: Progress,
        voice: Voice,
        on_address: Callable[[str], None],
    ) -> None:
        self._supervisor = supervisor
        self._ledger = ledger
        self._progress = progress
        self._voice = voice
        self._on_address = on_address
        self._began_s = time.monotonic()
        self._looked_s = self._measure_at_s = 0.0
        self._finished_s: float | None = None
        self._done = False
        self.peak_memory_bytes = 0

    async def until_done(self, *others: asyncio.Task[None]) -> None:
        """Return once the learner has finished and its last weights were evaluated. Failures of `others` are ours."""
        while not self._done:
            await self._tick(others)

    async def for_ever(self, *others: asyncio.Task[None]) -> None:
        """Go on until cancelled. A learner that ends meanwhile is judged anew."""
        self._done, self._finished_s = False, None
        while True:
            await self._tick(others)

    async def _tick(self, others: tuple[asyncio.Task[None], ...]) -> None:
        self._supervisor.tick()
        for task in others:
            if task.done():
                task.result()
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            await self._look(now_s)
        if now_s >= self._measure_at_s:
            self._measure()
        self._voice.show(self._progress)
        await asyncio.sleep(_TICK_S)

    async def _look(self, now_s: float) -> None:
        """Read what the programs say, and write down what became of them."""
        await self._ledger.write()
        for name, pid in (await self._ledger.ready()).items():
            if self._supervisor.mark_ready(name, pid):
                waiting = self._supervisor.waiting_for()
                left = f", waiting for {', '.join(waiting)}" if waiting else ""
                self._voice.say(f"{name} is ready after {now_s - self._began_s:.1f} s{left}", "process", name=name)
        self._progress.schedule = await self._ledger.hint_schedule()
        if (orders := await self._ledger.orders()) is not None:
            self._progress.paused_by = orders.pause.by if orders.pause else ""
            self._progress.drained = {name: order.by for name, order in orders.drained.items()}
        facts = await self._ledger.facts()
        if facts is None:
            return
        self._supervisor.confirm(redis_server.NAME)  # it sends no heartbeat, but has just answered
        address = facts.get("dashboard", "")
        if address and address != self._progress.dashboard:
            self._progress.dashboard = address
            self._on_address(address)
        if not self._done and self._supervisor.ended(LEARNER):
            self._settle(facts, now_s)

    def _settle(self, facts: dict[str, str], now_s: float) -> None:
        """The learner has ended: see whether it had finished, and whether its last weights were evaluated."""
        if "finished" not in facts:
            if facts:
                self._voice.say("the learner was stopped before it had finished: it is started again", "warning")
                self._supervisor.revive(LEARNER)
            return
        if self._finished_s is None:
            self._finished_s = now_s
            self._voice.say(f"the learner has finished with weight version {facts['finished']}", "finished")
        if facts.get("evaluated") == facts["finished"]:
            self._done = True
        elif now_s - self._finished_s > EVALUATION_S:
            self._voice.say(
                f"the last evaluation did not come within {EVALUATION_S:.0f} s: summing up without it", "warning"
            )
            self._done = True

    def _measure(self) -> None:
        """Note the memory that everything together uses now, ourselves included, and when to do so again."""
        began_s = time.monotonic()
        pids = process_table.members(self._supervisor.sessions())
        self.peak_memory_bytes = max(self.peak_memory_bytes, process_table.memory_bytes([*pids, os.getpid()]))
        cost_s = time.monotonic() - began_s
        self._measure_at_s = began_s + max(_MEASURE_S, cost_s / _MEASURE_SHARE)
