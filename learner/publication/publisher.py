"""The publisher: new weight versions beside the training, each complete and proved first, announced afterwards.

One snapshot is being written and one may wait. A newer one takes the place of the one that waits: generators want the
newest weights, not all of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TypeVar

from common.durable import NotWritten
from common.errors import WeightsError
from common.events import EventKind
from common.metrics import LearnerMetrics, PublicationMetrics
from common.process import Process
from common.tasks import end
from common.weights import Manifest, PublicationKind, WeightAnnouncements
from learner.compute import GRACE_S
from learner.publication.broadcaster import Broadcaster
from learner.publication.snapshot import Snapshot
from learner.publication.weight_store import Publication, WeightStore
from learner.storage.slow_storage import writing
from learner.storage.storage_notices import StorageNotices

_ALIVE_S = 60.0
_READ = 200
_LOOK_S = 0.1
_WHAT = "weight version"
Result = TypeVar("Result")

log = logging.getLogger(__name__)


def _nothing() -> None:
    """The last work of a thread."""


class Publisher:
    """Writes snapshots to a weight store in a thread of its own, and tells the generators.

    lost: called with a snapshot that could not be published. release: with one that a newer one replaced.
    """

    def __init__(
        self,
        process: Process,
        store: WeightStore,
        metrics: LearnerMetrics,
        *,
        lost: Callable[[Snapshot], None],
        release: Callable[[Snapshot], None],
    ) -> None:
        self._process = process
        self._store = store
        self._failures = metrics.storage_failures.labels(_WHAT)
        self._metrics = PublicationMetrics(process.registry)
        self._lost = lost
        self._release = release
        self._announcements = WeightAnnouncements(process.redis, process.keys)
        self._broadcaster = Broadcaster(process)
        self._notices = StorageNotices(process)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publisher")
        self._last = 0
        self._waiting: Snapshot | None = None
        self._writing: Snapshot | None = None
        self._passed_over = 0
        self._work: asyncio.Task[None] | None = None

    async def open(self) -> list[Manifest]:
        """Find out which numbers are taken; the versions announced last, newest first."""
        announced = await self._process.patiently(
            "read the announced weight versions", lambda: self._announcements.recent(_READ)
        )
        there: list[int] = []
        try:
            there = await self._in_thread(self._store.open)
        except (NotWritten, WeightsError) as error:  # numbers that nobody was told of may be given again
            await self.failed(error)
        self._last = max([0, *(manifest.version for manifest in announced), *there])
        return announced

    def next_version(self) -> int:
        """A number that no version has had, nor that of the learner's checkpoint."""
        self._last = max(self._last, self._process.version) + 1
        return self._last

    @property
    def unannounced(self) -> int:
        """Optimiser updates whose snapshots are taken, and that no generator can have yet."""
        held = (snapshot.updates or 0 for snapshot in (self._waiting, self._writing) if snapshot is not None)
        return self._passed_over + sum(held)

    def make_way(self) -> None:
        """Give the snapshot that waits up for one that is about to be taken: its memory is for that one."""
        if self._waiting is not None:
            self._metrics.coalesced.inc()
            self._passed_over += self._waiting.updates or 0
            self._release(self._waiting)
            self._waiting = None

    def submit(self, snapshot: Snapshot) -> None:
        """Publish a snapshot as soon as the one before it is done. Raises what ended the publisher, if anything did."""
        self.make_way()
        if self._passed_over:
            snapshot = replace(snapshot, updates=self._passed_over + (snapshot.updates or 0))
            self._passed_over = 0
        self._waiting = snapshot
        if self._work is not None and self._work.done():
            self._work.result()
            self._work = None
        if self._work is None:
            self._work = asyncio.create_task(self._publish_waiting())

    async def settled(self) -> bool:
        """Whether nothing waits and nothing is being written any more. Waits for that, but if the process has to stop
        not for longer than GRACE_S. Raises what ended the publisher, if anything did.
        """
        waited_s = 0.0
        async with writing(self._process):
            while self._work is not None and not self._work.done():
                if self._process.stop.is_set():
                    if waited_s >= GRACE_S:
                        return False
                    waited_s += _LOOK_S
                await asyncio.wait({self._work}, timeout=_LOOK_S)
        if self._work is not None:
            self._work.result()
        return True

    async def close(self) -> None:
        """Break off what is being written. It leaves nothing that anybody was told of."""
        self._store.close()
        if self._work is not None:
            await end([self._work])
        last = self._executor.submit(_nothing)
        self._executor.shutdown(wait=False)
        # Not awaited: nothing that is told to hurry may pass over it. Only sending one large file can take longer.
        wait([last], timeout=GRACE_S)

    async def _publish_waiting(self) -> None:
        while (snapshot := self._waiting) is not None:
            self._writing, self._waiting = snapshot, None
            began_s = time.monotonic()
            try:
                publication = await self._in_thread(lambda snapshot=snapshot: self._store.write(snapshot))
            except (NotWritten, WeightsError) as error:
                self._writing = None
                self._lost(snapshot)
                await self.failed(error)
                continue
            await self._process.patiently(
                "announce a weight version", lambda manifest=publication.manifest: self._announce(manifest)
            )
            self._writing = None
            self._process.hold_version(snapshot.version)
            await self._broadcaster.send(snapshot)
            await self._notices.worked(_WHAT)
            await self._tell(publication, snapshot, time.monotonic() - began_s)
            await self._prune()

    async def _announce(self, manifest: Manifest) -> None:
        """Announce once: after a lost reply the stream already ends with this version."""
        newest = await self._announcements.newest()
        if newest is None or newest.version < manifest.version:
            await self._announcements.announce(manifest)

    async def _tell(self, publication: Publication, snapshot: Snapshot, seconds: float) -> None:
        """Enter a publication into metrics, log and events."""
        manifest, metrics = publication.manifest, self._metrics
        stages = {
            "snapshot": snapshot.seconds,
            "canary": publication.canary_s,
            "encode": publication.encode_s,
            "write": publication.write_s,
            "total": snapshot.seconds + seconds,
        }
        for stage, took_s in stages.items():
            metrics.seconds.labels(stage).observe(took_s)
        metrics.published.inc()
        metrics.anchors.inc(manifest.kind is PublicationKind.ANCHOR)
        metrics.bytes.inc(manifest.bytes)
        metrics.full_bytes.inc(manifest.full_bytes)
        metrics.at.set_to_current_time()
        if manifest.changed is not None:
            metrics.changed.set(manifest.changed)
        told = {
            "step": manifest.step,
            "kind": manifest.kind.value,
            "base": manifest.base,
            "bytes": manifest.bytes,
            "full_bytes": manifest.full_bytes,
            "changed": manifest.changed,
            "snapshot_s": round(snapshot.seconds, 6),
            "canary_s": round(publication.canary_s, 6),
            "encode_s": round(publication.encode_s, 6),
            "write_s": round(publication.write_s, 6),
            "seconds": round(stages["total"], 6),
        }
        log.info("published", extra={"published": manifest.version, **told})
        await self._process.tell(EventKind.PUBLICATION, {"version": manifest.version, **told})

    async def _prune(self) -> None:
        """Remove versions that nobody needs any more."""
        keep = self._process.settings.weights.keep
        fetching = await self._process.patiently("read the heartbeats", self._fetching)
        try:
            await self._in_thread(lambda: self._store.prune(keep, fetching))
        except WeightsError as error:  # they are removed with a later version
            log.warning("old weight versions not removed", extra={"error": str(error)})

    async def _fetching(self) -> set[int]:
        """The versions that live generators are fetching, going by their heartbeats."""
        beats: dict[bytes, bytes] = await self._process.redis.hgetall(self._process.keys.processes)  # pyright: ignore
        fields = [json.loads(beat) for beat in beats.values()]
        alive_since_s = time.time() - _ALIVE_S
        alive = [f for f in fields if f["role"] == "generator" and f["at_s"] >= alive_since_s]
        return {int(f["fetching"]) for f in alive if f.get("fetching")}

    async def failed(self, error: NotWritten | WeightsError) -> None:
        """Count and tell that a version could not be made; the caller knows what to do about it."""
        self._failures.inc()
        await self._notices.failed(_WHAT, error)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
