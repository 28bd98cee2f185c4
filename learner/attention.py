"""Attention to orders: at a step boundary the learner waits if it is paused, and takes checkpoints it was told to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from common.events import EventKind
from common.metrics import LearnerMetrics
from common.orders import OrderKind
from common.process import Process
from learner.standing import Standing
from learner.storage.archive import Archive

_RETRY_S = 2.0

log = logging.getLogger(__name__)


class Attention:
    """Reads the orders that stand and carries them out; between steps only."""

    def __init__(
        self,
        process: Process,
        archive: Archive,
        standing: Standing,
        metrics: LearnerMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process = process
        self._archive = archive
        self._standing = standing
        self._metrics = metrics
        self._clock = clock
        self._carried_out = 0
        self._next_try_s = 0.0

    async def begin(self) -> None:
        """Count what was ordered before this start as done: all that this learner holds is in a checkpoint, or new.

        So does an order that a kill cut off. The step that is told with it is that of the checkpoint which the learner
        came back from: what was trained after that is not there to be saved, and is trained again.
        """
        standing = await self._process.patiently("read the orders", self._process.orders.standing)
        self._carried_out = standing.checkpoints
        self._show(paused=standing.pause is not None)

    async def pay(self) -> bool:
        """Carry out what is ordered; whether the learner is to wait."""
        ordered = await self._process.patiently("read the orders", self._process.orders.standing)
        if ordered.checkpoints < self._carried_out:  # Redis lost its data: what is counted now was ordered since
            self._carried_out = 0
        self._show(paused=ordered.pause is not None)
        if ordered.checkpoints > self._carried_out and await self._checkpoint():
            self._carried_out = ordered.checkpoints
            self._show(paused=ordered.pause is not None)
        return ordered.pause is not None

    async def halt(self, why: str) -> None:
        """Order a pause in the learner's own name, and say why: neither this life nor the next goes on by itself."""
        process = self._process
        log.error(why)
        await process.patiently("order a pause", lambda: process.orders.pause(process.name, at_s=time.time()))
        order = {"order": OrderKind.PAUSE.value, "target": process.name, "by": process.name}
        await process.tell(EventKind.ORDER, order)
        await process.tell(EventKind.NOTICE, {"text": why})

    async def _checkpoint(self) -> bool:
        """Whether everything is in a checkpoint. A disk that does not take it is tried again after a while."""
        if not self._standing.has_news:
            return True
        if self._clock() < self._next_try_s:
            return False
        committed = await self._archive.commit(self._standing)
        self._next_try_s = 0.0 if committed else self._clock() + _RETRY_S
        return committed

    def _show(self, *, paused: bool) -> None:
        """Tell in heartbeat and metrics what stands and what was carried out."""
        self._metrics.paused.set(paused)
        self._process.details.update(
            paused=paused, checkpoint_order=self._carried_out, checkpoint_step=self._standing.saved_step or 0
        )
