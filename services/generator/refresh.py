"""Refresh: a generator follows the announced weight versions and applies the newest in flight.

A version is verified against its digests before the engine pauses for it. Whatever goes wrong is counted and told, and
the weights that were held go on being served under their own version; the next attempt comes after a growing wait, or
as soon as a newer version is announced. Versions in between are skipped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from common.errors import WeightsError
from common.events import EventKind
from common.metrics import GeneratorMetrics
from common.process import Process
from common.weights import Manifest, WeightAnnouncements, verify
from services.generator.engine import EngineDead, WeightUpdateFailed
from services.generator.rollouts import SamplingEngine

TENSORS_FILE = "model.safetensors"
BLOCK_MS = 1000
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
FALLBACKS = 3
_REPAIRS = 3

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Refresh:
    """Keeps an engine on the newest weights. `step` is the learner step that the held ones come from."""

    def __init__(
        self,
        process: Process,
        engine: SamplingEngine,
        metrics: GeneratorMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.step = 0
        self._process = process
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._announced = WeightAnnouncements(process.redis, process.keys)
        self._retry_wait_s = FIRST_WAIT_S

    async def catch_up(self) -> None:
        """Before serving: apply the newest version that is whole. If none is, the base model is served as version 0."""
        for manifest in await self._read("read the announced weights", lambda: self._announced.recent(FALLBACKS)) or []:
            if await self._take(manifest):
                return
        self._process.hold_version(self._engine.version)

    async def follow(self) -> None:
        """Apply newer versions as they are announced, for ever. Raises EngineDead if an update cannot be repaired."""
        looked_at, retry_at_s = self._engine.version, self._clock()
        while True:
            manifest = await self._newer(looked_at, retry_at_s)
            if manifest is None:
                continue
            looked_at, began_s = manifest.version, self._clock()
            if await self._take(manifest):
                self._retry_wait_s = FIRST_WAIT_S
            else:
                retry_at_s = began_s + self._retry_wait_s
                self._retry_wait_s = min(2 * self._retry_wait_s, LONGEST_WAIT_S)

    async def _newer(self, looked_at: int, retry_at_s: float) -> Manifest | None:
        """The newest version if nobody looked at it yet, or if it failed and its next attempt is due."""
        newest = await self._read("await weights", lambda: self._announced.wait_newer(looked_at, BLOCK_MS))
        if newest is None and self._engine.version < looked_at and self._clock() >= retry_at_s:
            return await self._read("read the newest weights", self._announced.newest)
        return newest

    async def _read(self, what: str, call: Callable[[], Awaitable[Result]]) -> Result | None:
        """What `call` reads from the stream of announcements; None, after a wait, if that is no manifest."""
        try:
            return await self._process.patiently(what, call)
        except WeightsError as error:
            await self._failed(str(error))
            await self._process.pause(self._retry_wait_s)
            self._retry_wait_s = min(2 * self._retry_wait_s, LONGEST_WAIT_S)
            return None

    async def _take(self, manifest: Manifest) -> bool:
        """Verify and apply one version; whether the engine serves it now."""
        began_s = self._clock()
        try:
            directory = await asyncio.to_thread(verify, manifest)
            fetch_s = self._clock() - began_s
            pause_s = await self._apply(manifest, directory / TENSORS_FILE)
        except (WeightsError, WeightUpdateFailed) as error:
            await self._failed(f"weight version {manifest.version}: {error}")
            return False
        self.step = manifest.step
        self._process.hold_version(self._engine.version)
        self._metrics.updates.inc()
        self._metrics.pause.observe(pause_s)
        apply_s = self._clock() - began_s - fetch_s
        timings = {"pause_s": round(pause_s, 4), "apply_s": round(apply_s, 4), "fetch_s": round(fetch_s, 4)}
        log.info("weights applied", extra={"applied": manifest.version, **timings})
        await self._process.tell(
            EventKind.UPDATE, {"generator": self._process.name, "version": manifest.version, **timings}
        )
        return True

    async def _apply(self, manifest: Manifest, tensors: Path) -> float:
        """The pause. An update that broke half-way leaves the engine paused on mixed weights: repeat it at once."""
        for _ in range(_REPAIRS):
            try:
                return await self._engine.apply(manifest.version, tensors)
            except WeightUpdateFailed as error:
                if self._engine.healthy:
                    raise
                log.warning("an update broke; it is repeated", extra={"applied": manifest.version, "error": str(error)})
        raise EngineDead(f"the engine holds mixed weights: {_REPAIRS} updates to version {manifest.version} broke")

    async def _failed(self, sentence: str) -> None:
        self._metrics.update_failures.inc()
        held = self._engine.version
        log.error("weights not applied", extra={"error": sentence})
        await self._process.tell(
            EventKind.NOTICE, {"text": f"{self._process.name}: {sentence}; it goes on with version {held}"}
        )
