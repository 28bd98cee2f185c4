"""The archive: when a checkpoint falls due, what it contains, and the acknowledgements that only follow its commit.

A checkpoint is a copy of the state, taken between two steps and written beside the training by a thread of its own.
One is written at a time. One that falls due meanwhile is taken at the first step boundary after that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

from common.errors import RedisUnavailable, SettingsError
from common.events import EventKind
from common.metrics import LearnerMetrics
from common.process import Process
from common.tasks import end
from learner.compute import GRACE_S, ComputeThread
from learner.ledger import Ledger
from learner.memory import is_shortage
from learner.standing import Standing
from learner.storage.checkpoint import Checkpoint, CheckpointStore
from learner.storage.durable import NotWritten
from learner.storage.slow_storage import writing
from learner.storage.state_copy import StateCopy
from learner.storage.storage_notices import StorageNotices
from learner.trainer import Trainer

_AT_A_TIME = 1000
_SETTLED_AGAIN = 4096

log = logging.getLogger(__name__)


def _nothing() -> None:
    """The last work of a thread."""


class Archive:
    """Commits and restores what the learner is: standing and trainer together."""

    def __init__(
        self,
        process: Process,
        compute: ComputeThread,
        trainer: Trainer,
        metrics: LearnerMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = process.settings
        self._process = process
        self._compute = compute
        self._trainer = trainer
        self._metrics = metrics
        self._clock = clock
        self._settings = settings.checkpoints
        self._store = CheckpointStore(settings.checkpoints_directory, settings.checkpoints.keep)
        self._notices = StorageNotices(process)
        self._copy = StateCopy()
        self._taken: Checkpoint | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="archive")
        self._work: asyncio.Task[bool] | None = None

    async def restore(self, standing: Standing) -> bool:
        """Go back to the newest checkpoint; False if there is none. Its acknowledgements are made again."""
        checkpoint = await self._compute.run(self._store.newest)
        if checkpoint is None:
            return False
        progress = checkpoint.progress
        try:
            await self._compute.run(lambda: self._trainer.restore(checkpoint.tensors, progress.updates))
        except (ValueError, KeyError) as error:
            raise SettingsError(
                f"the checkpoint of step {progress.step} in {self._process.settings.checkpoints_directory} does not "
                f"fit model.path {self._process.settings.model.path} ({error}): name the model it was made from, or "
                "start a run with another name and directory"
            ) from error
        standing.restore(progress)
        self._process.hold_version(progress.version)
        log.info("restored", extra={"step": progress.step, "from_version": progress.version})
        for complaint in self._store.complaints:
            lost = f"{complaint}. What was trained after step {progress.step} and acknowledged with it is lost"
            await self._process.tell(EventKind.NOTICE, {"text": lost})
        await self._settle(progress.seen)
        await self._acknowledge(progress.unacknowledged, standing.ledger)
        return True

    def is_due(self, standing: Standing) -> bool:
        """Whether a checkpoint is to be taken now: none is being written, and enough was trained since the last one, in
        steps or in bytes that Redis has to keep.
        """
        if self._is_writing:
            return False
        steps = standing.step - (standing.saved_step or 0)
        return steps >= self._settings.every_steps or self.is_pressing(standing)

    def is_pressing(self, standing: Standing) -> bool:
        """Whether Redis has to keep more than it should until the next checkpoint."""
        return standing.ledger.unacknowledged_bytes > self._settings.unacknowledged_mb * 1_000_000

    async def take_if_due(self, standing: Standing) -> float:
        """Copy the state as it is if a checkpoint is due, for `begin` to write; the seconds that this took."""
        began_s = self._clock()
        if self.is_due(standing):
            await self._take(standing)
        return self._clock() - began_s

    def begin(self, standing: Standing) -> None:
        """Have what was taken written, if anything was, while training goes on."""
        if self._taken is not None:
            checkpoint, self._taken = self._taken, None
            self._work = asyncio.create_task(self._write(checkpoint, standing))

    async def settled(self) -> bool:
        """Wait until nothing is being written any more. False if the disk did not take it."""
        work, self._work = self._work, None
        if work is None:
            return True
        async with writing(self._process):
            return await work

    async def commit(self, standing: Standing) -> bool:
        """Wait until everything up to now is in a checkpoint and acknowledged. False if the disk did not take it."""
        try:
            await self.settled()
        except RedisUnavailable as error:  # we must stop: what it could not acknowledge is in the next one as well
            log.warning(str(error))
        if not standing.has_news:
            return True
        if not await self._take(standing):
            return False
        self.begin(standing)
        return await self.settled()

    async def close(self) -> None:
        """Give up what is being written; if it is soon done, it is whole and may be restored."""
        if self._work is not None:
            await end([self._work])
        last = self._executor.submit(_nothing)
        self._executor.shutdown(wait=False)
        wait([last], timeout=GRACE_S)

    @property
    def _is_writing(self) -> bool:
        return self._work is not None and not self._work.done()

    async def _take(self, standing: Standing) -> bool:
        """Copy the state; False if there is no memory for that. Raises what ended the writing of the checkpoint before
        it, if anything did.
        """
        await self.settled()
        began_s = self._clock()
        progress = standing.progress(revision=self._process.revision, updates=self._trainer.updates)
        try:
            tensors = await self._compute.run(lambda: self._copy.take(self._trainer.tensors()))
        except (RuntimeError, MemoryError) as error:
            if self._trainer.ranks.size > 1 or not is_shortage(error):
                raise
            await self._failed(NotWritten(f"memory does not suffice for a copy of the state: {error}"))
            return False
        self._taken = Checkpoint(progress, tensors)
        self._metrics.checkpoint_seconds.labels("copy").observe(self._clock() - began_s)
        return True

    async def _write(self, checkpoint: Checkpoint, standing: Standing) -> bool:
        """Commit a checkpoint, then acknowledge what it contains. False if the disk did not take it."""
        progress, began_s = checkpoint.progress, self._clock()
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._store.commit, checkpoint)
        except NotWritten as error:
            await self._failed(error)
            return False
        standing.saved_step = self._process.details["checkpoint_step"] = progress.step
        self._metrics.checkpoint_seconds.labels("write").observe(self._clock() - began_s)
        self._metrics.checkpoints.inc()
        log.info("checkpoint committed", extra={"step": progress.step})
        await self._notices.worked("checkpoint")
        # Once more: a Redis that was restarted may have forgotten the last second of what it was told.
        await self._settle(progress.seen[-_SETTLED_AGAIN:])
        await self._acknowledge(progress.unacknowledged, standing.ledger)
        return True

    async def _failed(self, error: NotWritten) -> None:
        self._metrics.storage_failures.labels("checkpoint").inc()
        await self._notices.failed("checkpoint", error)

    async def _acknowledge(self, entry_ids: Sequence[str], ledger: Ledger) -> None:
        acknowledge = self._process.delivery.groups.acknowledge
        for ids in _portions(entry_ids):
            await self._process.patiently("acknowledge groups", partial(acknowledge, ids))
            ledger.forget(ids)

    async def _settle(self, group_ids: Sequence[str]) -> None:
        for ids in _portions(group_ids):
            await self._process.patiently("return credit", partial(self._process.delivery.settle, ids))


def _portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _AT_A_TIME] for start in range(0, len(ids), _AT_A_TIME))
