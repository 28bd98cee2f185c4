"""Gathering: the groups of one step, in stream order, without the stale and the repeated ones."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from common.config.live import LiveConfig
from common.config.store import Revision
from common.metrics import LearnerMetrics
from common.process import Process
from common.trajectory import Group
from learner.attention import Attention
from learner.intake import Arrival, Intake
from learner.revisions import Revisions
from learner.standing import Standing

_POLL_S = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step is made of, and under which revision.

    twins: further copies of its groups, left out of it and consumed with it. dropped: stale groups left out. wait_s:
    time from the end of the step before until all groups were there, without that of a pause.
    """

    revision: Revision
    arrivals: tuple[Arrival, ...]
    twins: tuple[Arrival, ...]
    dropped: int
    wait_s: float

    @property
    def groups(self) -> list[Group]:
        """The groups, in stream order."""
        return [arrival.group for arrival in self.arrivals]


class Gathering:
    """Takes groups from the intake and judges each: train on it, or drop it, counted and entered in the ledger.

    mend: called again and again while groups are waited for; makes good what the last step left undone.
    """

    def __init__(
        self,
        process: Process,
        intake: Intake,
        standing: Standing,
        attention: Attention,
        metrics: LearnerMetrics,
        *,
        mend: Callable[[], Awaitable[None]],
    ) -> None:
        self._process = process
        self._intake = intake
        self._standing = standing
        self._attention = attention
        self._metrics = metrics
        self._mend = mend
        self._withheld = False
        self._revisions = Revisions(process)

    async def collect(self, step: int) -> Batch | None:
        """The groups of step `step`; None if the process was told to stop before they were there.

        The revision is read after the last group has come: a change applies to the very next step. So are the orders:
        while the learner is paused no step begins, and revisions still come into force.
        """
        started_s, attended_s = time.monotonic(), 0.0
        taken: list[Arrival] = []
        twins: list[Arrival] = []
        dropped = number = 0
        while not self._process.stop.is_set():
            self._process.beat()
            await self._mend()
            attended_s += await self._attend(step)
            revision = await self._revisions.first(step)
            if revision is None:
                break
            if revision.number != number:  # other sizes, other bounds: judge again
                self._intake.put_back([*taken, *twins])
                taken, twins, number = [], [], revision.number
                self._intake.ahead = revision.live.groups_per_step
            stale, seen = self._fill(taken, twins, revision.live)
            dropped += len(stale)
            await self._return_credit([*stale, *seen])
            if len(taken) < revision.live.groups_per_step:
                self._show(waiting=True)
                await self._idle()
            elif not stale and not seen:  # returning credit takes time, in which the revision may have changed
                self._show(waiting=False)
                self._metrics.repeated.inc(len(twins))
                return Batch(revision, tuple(taken), tuple(twins), dropped, time.monotonic() - started_s - attended_s)
        self._intake.put_back([*taken, *twins])
        return None

    async def _attend(self, step: int) -> float:
        """Carry out what was ordered, and stay here while the learner is paused; the seconds that it took."""
        started_s = time.monotonic()
        while await self._attention.pay() and not self._process.stop.is_set():
            self._show(waiting=False)
            self._process.beat()
            await self._mend()
            await self._revisions.first(step)
            await self._process.pause(_POLL_S)
        return time.monotonic() - started_s

    def _fill(self, taken: list[Arrival], twins: list[Arrival], live: LiveConfig) -> tuple[list[str], list[str]]:
        """Add what is ready to `taken`, up to one step's groups, and further copies of these to `twins`.

        The ids of what was dropped: stale groups, and groups that were consumed before. Stale groups are kept while
        even the newest version that generators can have would be too old: dropping them would only bring more.
        """
        self._withheld = False
        stale: list[str] = []
        seen: list[str] = []
        ids = {arrival.group.group_id for arrival in taken}
        while len(taken) < live.groups_per_step:
            arrival = self._intake.take()
            if arrival is None:
                break
            group_id, oldest = arrival.group.group_id, arrival.group.oldest_version
            if group_id in ids:  # not consumed before the first copy is, which may yet be put back
                twins.append(arrival)
            elif self._standing.ledger.has_seen(group_id):
                self._metrics.repeated.inc()
                self._standing.ledger.consume(arrival)
                seen.append(group_id)
            elif oldest is not None and self._staleness(oldest) > live.max_staleness:
                if self._staleness(self._process.version) > live.max_staleness:
                    self._intake.put_back([arrival])
                    self._withheld = True
                    break
                self._metrics.stale.inc()
                self._standing.ledger.consume(arrival)
                stale.append(group_id)
            else:
                ids.add(group_id)
                taken.append(arrival)
        if stale:
            log.info("stale groups were dropped", extra={"groups": len(stale)})
        return stale, seen

    def _staleness(self, version: int) -> int:
        return self._standing.lineage.staleness(version)

    def _show(self, *, waiting: bool) -> None:
        """Tell in heartbeat and metrics whether groups are waited for."""
        self._process.details["waiting"] = waiting
        self._metrics.waiting.set(waiting)

    async def _return_credit(self, group_ids: list[str]) -> None:
        """Return the credit of dropped groups."""
        if group_ids:  # of repeated ones too: after a loss of Redis their ids are issued again
            await self._process.patiently("return credit", lambda: self._process.delivery.settle(group_ids))

    async def _idle(self) -> None:
        """Wait until a group is ready, the process is told to stop, or it is time to look for a new revision."""
        if self._withheld:  # the next group is there; what is waited for is a weight version
            await self._process.pause(_POLL_S)
            return
        waits = [asyncio.ensure_future(self._intake.wait()), asyncio.ensure_future(self._process.stop.wait())]
        try:
            await asyncio.wait(waits, timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
