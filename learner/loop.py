"""The learner's loop: take, step, publish, acknowledge."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch

from common.config.live import LiveConfig
from common.durable import NotWritten
from common.errors import RedisUnavailable
from common.events import EventKind
from common.metrics import LearnerMetrics
from common.process import Process
from common.settings import RunFile
from common.stores.opening import storage_to_write
from common.streams import Entry
from common.wire import encode_group
from learner import memory
from learner.attention import Attention
from learner.compute import ComputeThread
from learner.divergence import Diverged, Divergence
from learner.forward.model import longest, publication_dtype, vocabulary
from learner.forward.reference import ReferenceMissing
from learner.gathering import Batch, Gathering
from learner.insight.inspection import Inspected, Inspection
from learner.intake import Intake, quarantine, quarantine_dropped
from learner.outcome import Abandoned, StepOutcome, Verdict
from learner.packing.foresight import foreseeing
from learner.publication.canary import canary_tokens
from learner.publication.publisher import Publisher
from learner.publication.snapshot import Origin, Snapshot, Snapshots
from learner.publication.weight_store import WeightStore
from learner.record import Material, StepRecord, Timeline
from learner.standing import Standing
from learner.storage.archive import Archive
from learner.trainer import Trainer

_RETRY_S = 2.0
_WAITS = (
    "training waits until a checkpoint can be written: Redis holds more than checkpoints.unacknowledged_mb of groups "
    "that no checkpoint contains"
)

log = logging.getLogger(__name__)


def _snapshots(settings: RunFile, trainer: Trainer) -> Snapshots:
    """What takes the snapshots of a run, with its canary."""
    model, dtype = trainer.model, publication_dtype(settings.model.dtype, trainer.device)
    tokens = canary_tokens(settings.run.name, settings.run.seed, vocabulary(model), longest(settings, model))
    # What several GPUs hold together need not fit into one, unless it is to be broadcast from there.
    device = torch.device("cpu") if trainer.ranks.size > 1 and settings.weights.transfer == "store" else trainer.device
    return Snapshots(trainer.shell, dtype, tokens, source=trainer.weights, device=device)


class Learner:
    """One learner from its checkpoint, if there is one, to its last step or until it is told to stop."""

    def __init__(
        self,
        process: Process,
        compute: ComputeThread,
        trainer: Trainer,
        intake: Intake,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process = process
        self._clock = clock
        self._compute = compute
        self._trainer = trainer
        self._intake = intake
        self._metrics = LearnerMetrics(process.registry)
        self._standing = Standing()
        self._archive = Archive(process, compute, trainer, self._metrics)
        self._attention = Attention(process, self._archive, self._standing, self._metrics)
        self._inspection = Inspection(process, compute, self._metrics)
        self._snapshots = _snapshots(process.settings, trainer)
        self._publisher = self._make_publisher(process)
        self._metrics.unpublished.set_function(lambda: self._standing.unpublished + self._publisher.unannounced)
        self._snapshot_s = -math.inf
        self._divergence = Divergence()
        self._pressed_s = 0.0
        self._limit = process.settings.learner.max_steps

    async def run(self) -> int:
        """Train; the exit code."""
        try:
            return await self._live()
        finally:
            await self._publisher.close()
            await self._archive.close()

    async def _live(self) -> int:
        try:
            await self._resume()
            await memory.tell(self._trainer.budget.news(), self._process, self._metrics)
            self._intake.start()
            await self._train()
            if self._is_complete and not self._process.stop.is_set():
                return await self._finish()
        except RedisUnavailable:  # told to stop while Redis was away: what is on disk needs no Redis
            if not self._process.stop.is_set():
                raise
        finally:
            await self._intake.close()
        return await self._leave()

    @property
    def _is_complete(self) -> bool:
        return self._limit is not None and self._standing.step >= self._limit

    def _make_publisher(self, process: Process) -> Publisher:
        settings, release = process.settings, self._snapshots.give_back
        store = WeightStore(
            storage_to_write(settings), settings.weights.anchor_every, scratch=settings.run.directory, release=release
        )
        return Publisher(process, store, self._metrics, lost=self._lose, release=release)

    async def _resume(self) -> None:
        """Restore the newest checkpoint; generators then get its weights under a new number."""
        standing = self._standing
        restored = await self._archive.restore(standing)
        announced = await self._publisher.open()
        for manifest in announced:
            standing.lineage.note(manifest.version, manifest.step)
        await self._attention.begin()
        # Weights that were published and never saved are in use by generators, and lost here.
        standing.owes_version = restored or bool(announced)
        self._process.state = "running"
        self._show()
        if not self._is_complete:  # max_steps may have been raised since the run said that it was done
            await self._process.patiently("take back the end", self._untell_finished)
        else:
            log.info("nothing is left to train", extra={"step": standing.step, "max_steps": self._limit})
        if standing.owes_version:
            await self._publish(standing.publish_again)

    async def _train(self) -> None:
        """Step after step, until the last one or until told to stop."""
        gathering = Gathering(
            self._process, self._intake, self._standing, self._attention, self._metrics, mend=self._publish_lost
        )
        while not self._is_complete:
            batch = await gathering.collect(self._standing.step + 1)
            if batch is None:
                return
            await self._step(batch)

    async def _step(self, batch: Batch) -> None:
        started_s = time.monotonic()
        live = batch.revision.live
        material = Material.of(batch.groups, self._standing.lineage)
        version, keep = self._standing.version, await self._inspection.is_due()
        try:
            async with foreseeing(self._intake, live, self._trainer.foresee):
                outcome = await self._compute.run(
                    lambda: self._trainer.step(live, batch.groups, self._compute.heed, keep_evidence=keep)
                )
        except Abandoned as reason:
            log.warning(str(reason), extra={"step": self._standing.step + 1})
            return
        except ReferenceMissing as error:
            await self._attention.halt(f"{error}. The learner is paused until it is resumed")
            if self._trainer.ranks.size > 1:  # others are in the middle of this step
                raise
            self._intake.put_back([*batch.arrivals, *batch.twins])
            return
        self._enter(batch, outcome)
        await memory.tell(self._trainer.budget.news(), self._process, self._metrics)
        publish_s = await self._publish_if_due(live)
        await self._release(batch, outcome)
        checkpoint_s = self._pressed_s + await self._archive.take_if_due(self._standing)
        step_s = batch.wait_s + self._pressed_s + time.monotonic() - started_s
        record = StepRecord(
            step=self._standing.step,
            revision=batch.revision.number,
            version=self._standing.version,
            algorithm=live.algorithm.kind,
            hints=live.hints.kind,
            updates=self._trainer.updates,
            material=material,
            outcome=outcome,
            stale_dropped=batch.dropped,
            timeline=Timeline(batch.wait_s, publish_s, checkpoint_s, step_s),
        )
        self._metrics.staleness_bound.set(live.max_staleness)
        record.measure(self._metrics)
        self._show(record)
        await self._process.tell(EventKind.STEP, record.event())
        if outcome.evidence is not None:
            await self._inspection.conduct(
                Inspected(record.step, version, batch.revision, batch.groups, outcome.evidence)
            )
        if complaint := self._divergence.complaint:
            await self._archive.settled()
            why = (
                f"{complaint}: the learner goes back to step {self._standing.saved_step or 0} and is paused; lower the "
                "learning rate or choose another algorithm, then resume it"
            )
            await self._attention.halt(why)
            raise Diverged(why)
        self._archive.begin(self._standing)  # only now: what is in a checkpoint was told before
        began_s = self._clock()
        if self._archive.is_pressing(self._standing):
            await self._relieve()
        self._pressed_s = self._clock() - began_s

    async def _relieve(self) -> None:
        """Redis is full of trained groups: wait for a checkpoint that contains them instead of adding to them."""
        process, archive, told = self._process, self._archive, False
        committed = await archive.settled()
        while archive.is_pressing(self._standing):
            if not committed:
                if not told:
                    told = True
                    await process.tell(EventKind.NOTICE, {"text": _WAITS})
                process.beat()
                await process.pause(_RETRY_S)
                if process.stop.is_set():
                    return
            committed = await archive.commit(self._standing)

    def _enter(self, batch: Batch, outcome: StepOutcome) -> None:
        """Note a step. Nothing is awaited here: a checkpoint sees the whole step or nothing of it."""
        standing = self._standing
        standing.step += 1
        standing.unpublished += outcome.updated
        self._divergence.enter(outcome)
        if outcome.verdict is Verdict.NOT_FINITE:
            return
        for arrival in (*batch.arrivals, *batch.twins):
            standing.ledger.consume(arrival)

    async def _release(self, batch: Batch, outcome: StepOutcome) -> None:
        """Return the credit of the groups, with the version that this step became: what is asked for now is to be
        sampled with it. Those of a step that was not finite go to quarantine.
        """
        if outcome.rehearsal and (dropped := outcome.rehearsal.dropped):
            text = f"the rehearsal of step {self._standing.step} was not finite"
            await quarantine_dropped(
                self._process, dropped, f"{text}: its {len(dropped)} demonstrations were dropped from the buffer"
            )
        if outcome.verdict is not Verdict.NOT_FINITE:
            ids, made = [arrival.group.group_id for arrival in batch.arrivals], self._standing.version
            await self._process.patiently("return credit", lambda: self._process.delivery.settle(ids, made))
            return
        reason = f"loss or gradient of step {self._standing.step} was not finite (gradient norm {outcome.grad_norm})"
        log.error(reason)
        for arrival in (*batch.arrivals, *batch.twins):
            entry = Entry(arrival.entry_id, encode_group(arrival.group))
            await quarantine(self._process, entry, reason, arrival.group.group_id)

    async def _publish_if_due(self, live: LiveConfig) -> float:
        """Publish when enough updates have gathered and enough time has passed, or when a version is owed.

        The seconds that held the step back: those of the snapshot.
        """
        now_s = self._clock()
        due = self._standing.unpublished >= live.publish_every or self._standing.owes_version
        if due and now_s - self._snapshot_s >= live.publish_min_interval_s:
            await self._publish()
        return self._clock() - now_s

    async def _publish_lost(self) -> None:
        """Publish in place of a version that was lost, while no step comes that would: generators may be waiting."""
        if self._standing.owes_version and self._clock() - self._snapshot_s >= _RETRY_S:
            await self._publish(self._standing.publish_instead)

    async def _publish(self, enter: Callable[[int], int | None] | None = None) -> None:
        """Give the weights as they are to the publisher, under a new number. enter: notes it; as a further version."""
        self._snapshot_s = began_s = self._clock()
        version = self._publisher.next_version()
        updates = (enter or self._standing.publish)(version)
        origin = Origin(self._standing.step, self._process.revision)
        self._publisher.make_way()
        try:
            snapshot = await self._compute.run(lambda: self._snapshots.take(version, origin, updates))
        except (RuntimeError, MemoryError) as error:
            if self._trainer.ranks.size > 1 or not memory.is_shortage(error):
                raise
            self._standing.lose(updates)
            await self._publisher.failed(NotWritten(f"memory does not suffice for a copy of the weights: {error}"))
            return
        self._publisher.submit(replace(snapshot, seconds=self._clock() - began_s))

    def _lose(self, snapshot: Snapshot) -> None:
        """A snapshot could not be published: its updates go with the next one."""
        self._standing.lose(snapshot.updates)

    async def _finish(self) -> int:
        """The last step is done: publish and save what is not yet, and say so. Tried until it works or we must stop."""
        process, standing = self._process, self._standing
        while not await self._settle_last():
            process.beat()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.stop.wait(), _RETRY_S)
                return 1
        await self._attention.pay()  # a checkpoint that was ordered during the last step is there
        version = process.version
        await process.patiently("tell the end", lambda: self._tell_finished(version))
        text = f"training is complete: step {standing.step}, weight version {version}"
        log.info(text)
        await process.tell(EventKind.NOTICE, {"text": text})
        return 0

    async def _settle_last(self) -> bool:
        """Whether nothing is left to publish or to save."""
        standing = self._standing
        if standing.unpublished or standing.owes_version:
            await self._publish()
        if not await self._publisher.settled() or standing.owes_version:
            return False
        return not standing.has_news or await self._archive.commit(standing)

    async def _tell_finished(self, version: int) -> None:
        await self._process.redis.hset(self._process.keys.facts, "finished", str(version))  # pyright: ignore

    async def _untell_finished(self) -> None:
        await self._process.redis.hdel(self._process.keys.facts, "finished", "evaluated")  # pyright: ignore

    async def _leave(self) -> int:
        """Told to stop: save what is not saved. A version that is being written gets a little time to be announced."""
        try:
            if self._standing.has_news:
                await self._archive.commit(self._standing)
            await self._publisher.settled()
        except RedisUnavailable as error:
            log.warning(str(error))
        return 0

    def _show(self, record: StepRecord | None = None) -> None:
        """Put the state into the heartbeat."""
        self._metrics.rehearsal_buffer.set(self._trainer.waiting)
        self._process.details.update(
            step=self._standing.step,
            max_steps=self._limit,
            updates=self._trainer.updates,
            micro_batch_tokens=self._trainer.layout.tokens,
            checkpoint_step=self._standing.saved_step or 0,
            waiting=record is None,
            tokens_per_s=record.tokens_per_s if record else 0.0,
            staleness=(record.material.staleness or 0.0) if record else 0.0,
        )
