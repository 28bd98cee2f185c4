"""The publisher: a new weight version, complete and verified first, announced afterwards."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping

from torch import Tensor

from common.events import EventKind
from common.process import Process
from common.weights import Manifest, WeightAnnouncements
from learner.slow_storage import writing
from learner.weight_store import Origin, WeightStore

_ALIVE_S = 60.0

log = logging.getLogger(__name__)


class Publisher:
    """Publishes versions to a weight store and tells the generators."""

    def __init__(self, process: Process, store: WeightStore) -> None:
        self._process = process
        self._store = store
        self._announcements = WeightAnnouncements(process.redis, process.keys)

    async def recent(self, count: int) -> list[Manifest]:
        """The last `count` announced versions, newest first."""
        return await self._process.patiently(
            "read the announced weight versions", lambda: self._announcements.recent(count)
        )

    async def publish(self, weights: Mapping[str, Tensor], origin: Origin) -> Manifest:
        """Publish `weights` as a version higher than any before it. NotWritten or WeightsError if the disk fails."""
        newest = await self.recent(1)
        async with writing(self._process):
            on_disk = await asyncio.to_thread(self._store.versions)
            version = 1 + max([self._process.version, *(m.version for m in newest), *on_disk])
            manifest = await asyncio.to_thread(self._store.write, version, weights, origin)
        await self._process.patiently("announce a weight version", lambda: self._announce(manifest))
        self._process.hold_version(version)
        log.info("published", extra={"published": version, "step": origin.step, "bytes": manifest.bytes})
        return manifest

    async def conclude(self, manifest: Manifest, seconds: float) -> None:
        """Tell operators about a publication, and remove versions that nobody needs any more."""
        data = {
            "version": manifest.version,
            "step": manifest.step,
            "kind": manifest.kind.value,
            "bytes": manifest.bytes,
        }
        await self._process.tell(EventKind.PUBLICATION, {**data, "seconds": seconds})
        held = await self._process.patiently("read the heartbeats", self._held)
        async with writing(self._process):
            await asyncio.to_thread(self._store.prune, self._process.settings.weights.keep, held)

    async def _announce(self, manifest: Manifest) -> None:
        """Announce once: after a lost reply the stream already ends with this version."""
        newest = await self._announcements.newest()
        if newest is None or newest.version < manifest.version:
            await self._announcements.announce(manifest)

    async def _held(self) -> set[int]:
        """The versions that live generators hold, going by their heartbeats."""
        beats: dict[bytes, bytes] = await self._process.redis.hgetall(self._process.keys.processes)  # pyright: ignore
        fields = [json.loads(beat) for beat in beats.values()]
        alive_since_s = time.time() - _ALIVE_S
        return {int(f["version"]) for f in fields if f["role"] == "generator" and f["at_s"] >= alive_since_s}
