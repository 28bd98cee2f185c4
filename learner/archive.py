"""The archive: when a checkpoint falls due, what it contains, and the acknowledgements that only follow its commit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial

from common.errors import SettingsError
from common.metrics import LearnerMetrics
from common.process import Process
from learner.checkpoint import Checkpoint, CheckpointStore
from learner.compute import ComputeThread
from learner.durable import NotWritten
from learner.slow_storage import writing
from learner.standing import Standing
from learner.storage_notices import StorageNotices
from learner.trainer import Trainer

_AT_A_TIME = 1000
_SETTLED_AGAIN = 4096

log = logging.getLogger(__name__)


class Archive:
    """Commits and restores what the learner is: standing and trainer together."""

    def __init__(self, process: Process, compute: ComputeThread, trainer: Trainer, metrics: LearnerMetrics) -> None:
        settings = process.settings
        self._process = process
        self._compute = compute
        self._trainer = trainer
        self._metrics = metrics
        self._settings = settings.checkpoints
        self._store = CheckpointStore(settings.checkpoints_directory, settings.checkpoints.keep)
        self._notices = StorageNotices(process)

    async def restore(self, standing: Standing) -> bool:
        """Go back to the newest checkpoint; False if there is none. Its acknowledgements are made again."""
        checkpoint = await self._compute.run(self._store.newest)
        if checkpoint is None:
            return False
        progress = checkpoint.progress
        try:
            self._trainer.restore(checkpoint.tensors, progress.updates)
        except (ValueError, KeyError) as error:
            raise SettingsError(
                f"the checkpoint of step {progress.step} in {self._process.settings.checkpoints_directory} does not "
                f"fit model.path {self._process.settings.model.path} ({error}): name the model it was made from, or "
                "start a run with another name and directory"
            ) from error
        standing.restore(progress)
        self._process.hold_version(progress.version)
        log.info("restored", extra={"step": progress.step, "from_version": progress.version})
        await self._settle(progress.seen)
        await self._acknowledge(standing)
        return True

    def is_due(self, standing: Standing) -> bool:
        """Whether enough was trained since the last checkpoint, in steps or in bytes that Redis has to keep."""
        steps = standing.step - (standing.saved_step or 0)
        return steps >= self._settings.every_steps or self.is_pressing(standing)

    def is_pressing(self, standing: Standing) -> bool:
        """Whether Redis has to keep more than it should until the next checkpoint."""
        return standing.ledger.unacknowledged_bytes > self._settings.unacknowledged_mb * 1_000_000

    async def commit(self, standing: Standing) -> bool:
        """Write a checkpoint, then acknowledge what it contains. False if the disk did not take it."""
        process = self._process
        progress = standing.progress(revision=process.revision, updates=self._trainer.updates)
        try:
            async with writing(process):
                await self._compute.run(lambda: self._store.commit(Checkpoint(progress, self._trainer.tensors())))
        except NotWritten as error:
            self._metrics.storage_failures.labels("checkpoint").inc()
            await self._notices.failed("checkpoint", error)
            return False
        standing.saved_step = progress.step
        self._metrics.checkpoints.inc()
        log.info("checkpoint committed", extra={"step": progress.step})
        await self._notices.worked("checkpoint")
        # Once more: a Redis that was restarted may have forgotten the last second of what it was told.
        await self._settle(progress.seen[-_SETTLED_AGAIN:])
        await self._acknowledge(standing)
        return True

    async def _acknowledge(self, standing: Standing) -> None:
        acknowledge = self._process.delivery.groups.acknowledge
        for ids in _portions(standing.ledger.unacknowledged):
            await self._process.patiently("acknowledge groups", partial(acknowledge, ids))
            standing.ledger.forget(ids)

    async def _settle(self, group_ids: Sequence[str]) -> None:
        for ids in _portions(group_ids):
            await self._process.patiently("return credit", partial(self._process.delivery.settle, ids))


def _portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _AT_A_TIME] for start in range(0, len(ids), _AT_A_TIME))
