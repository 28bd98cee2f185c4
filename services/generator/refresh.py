"""Refresh: a generator follows the announced weight versions, applies the newest in flight and proves it.

A version is fetched and proved by its digests while sampling goes on (weight_cache.py), put into the engine, and then
proved by its canary. Whatever goes wrong is counted and told. Weights that are not whole never reach the engine: those
that were held go on being served under their own version. If the canary refutes what the engine serves, nothing that it
samples is given out: requests go back to others until the version, made anew of an anchor, or a later one is proved.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from common.errors import WeightsError
from common.events import EventKind
from common.metrics import GeneratorMetrics
from common.process import Process
from common.weights import Manifest, PublicationKind, WeightAnnouncements
from services.generator.canary import Proved, WrongWeights, judge, sing
from services.generator.engine import EngineDead, EngineError, WeightUpdateFailed
from services.generator.fast_path import FastPath
from services.generator.rollouts import SamplingEngine
from services.generator.weight_cache import Ready, WeightCache
from services.generator.weight_update import WeightUpdate

BLOCK_MS = 1000
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
CANARY_LIMIT_S = 120.0
FALLBACKS = 3
_REPAIRS = 3

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Door(Protocol):
    """Where requests come in. See services.generator.intake.Intake, which is one."""

    async def shut(self) -> None:
        """Give up what is in flight, for others to take, and take nothing more."""
        ...

    def reopen(self) -> None:
        """Take requests again."""
        ...


class Refresh:
    """Keeps an engine on the newest weights.

    step: the learner step that the held ones come from. proved: set while nothing speaks against what the engine
    serves; nothing that it sampled may be given out before.
    """

    def __init__(
        self,
        process: Process,
        engine: SamplingEngine,
        metrics: GeneratorMetrics,
        cache: WeightCache,
        door: Door,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.step = 0
        self.proved = asyncio.Event()
        self.proved.set()
        self._process = process
        self._engine = engine
        self._metrics = metrics
        self._cache = cache
        self._door = door
        self._clock = clock
        self._fast_path = FastPath(process)
        self._announced = WeightAnnouncements(process.redis, process.keys)
        self._retry_wait_s = FIRST_WAIT_S
        self._served: Manifest | None = None
        self._proof: Proved | None = None
        self._is_refuted = False
        self._is_shut = False
        process.details["fetching"] = 0

    async def catch_up(self) -> None:
        """Before serving: apply the newest version that is whole. If none is, the base model is served as version 0."""
        try:
            await asyncio.to_thread(self._cache.open)
        except WeightsError as error:
            await self._failed(str(error))
        for manifest in await self._read("read the announced weights", lambda: self._announced.recent(FALLBACKS)) or []:
            if await self._take(manifest):
                return
        self._process.hold_version(self._engine.version)

    async def follow(self) -> None:
        """Apply newer versions as they are announced, for ever. Raises EngineDead if an update cannot be repaired."""
        try:
            await self._follow()
        finally:
            self._cache.close()

    async def _follow(self) -> None:
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
        is_behind = self._engine.version < looked_at or self._is_refuted
        if newest is None and is_behind and self._clock() >= retry_at_s:
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
        """Come to a version, if need be from the anchor of its chain; whether the engine serves it, proved, now."""
        self._process.details["fetching"] = manifest.version
        try:
            anew = self._is_refuted
            if await self._attempt(manifest, anew=anew):
                return True
            if anew or (manifest.kind is PublicationKind.ANCHOR and not self._is_refuted):
                return False  # there is no other way to it
            self._metrics.reseeds.inc()
            return await self._attempt(manifest, anew=True) or await self._fall_back(manifest)
        finally:
            self._process.details["fetching"] = 0

    async def _fall_back(self, manifest: Manifest) -> bool:
        """Come as far as the anchor of a version whose chain is broken; never the version itself, so False."""
        if not self._is_refuted and manifest.anchor > self._engine.version:
            try:
                anchor = await asyncio.to_thread(self._cache.published, manifest.anchor)
            except WeightsError as error:
                await self._failed(str(error))
            else:
                await self._attempt(anchor, anew=True)
        return False

    async def _attempt(self, manifest: Manifest, *, anew: bool) -> bool:
        """Fetch, apply and prove one version. anew: from its chain's anchor, and with nothing left in the engine."""
        began_s = self._clock()
        try:
            fetched_s, fetched_bytes = began_s, 0
            pause_s = None if anew else await self._broadcast(manifest)
            if pause_s is None:
                ready = await asyncio.to_thread(self._cache.advance, manifest, self._heed, anew=anew)
                fetched_s, fetched_bytes = self._clock(), ready.fetched_bytes
                pause_s = await self._apply(ready, anew=anew)
            applied_s = self._clock()
            await self._prove(manifest)
        except WrongWeights as error:
            await self._refuted(error)
            return False
        except (WeightsError, WeightUpdateFailed) as error:
            await self._failed(f"version {manifest.version} is not applied: {error}")
            return False
        timings = {
            "pause_s": pause_s,
            "apply_s": applied_s - fetched_s,
            "fetch_s": fetched_s - began_s,
            "canary_s": self._clock() - applied_s,
        }
        await self._accepted(manifest, fetched_bytes, {name: round(value, 4) for name, value in timings.items()})
        return True

    async def _broadcast(self, manifest: Manifest) -> float | None:
        """Take part in the broadcast of a version, if there is one; the pause. None: it is to come from the store."""
        update = await self._fast_path.invitation(manifest.version)
        if update is None:
            return None
        self.proved.clear()
        try:
            pause_s = await self._engine.apply(update)
        except WeightUpdateFailed as error:
            if self._engine.healthy:
                self._settle()
            else:
                self._served = None  # mixed weights: the store's are loaded completely
            await self._failed(f"version {manifest.version} was not received, it is taken from the store: {error}")
            return None
        self._served = manifest
        return pause_s

    def _heed(self) -> None:
        """Called while a version is fetched."""
        if self._process.stop.is_set():
            raise WeightsError("this generator is stopping")

    async def _apply(self, ready: Ready, *, anew: bool) -> float:
        """The pause. An update that broke half-way leaves the engine paused on mixed weights: repeat it at once."""
        manifest, served = ready.manifest, self._served
        update = WeightUpdate(manifest.version, ready.path)
        if served is not None and not anew:
            changed = {name for name, proof in manifest.tensors.items() if served.tensors.get(name) != proof}
            deltas = ready.deltas if ready.base == served.version else ()
            update = WeightUpdate(manifest.version, ready.path, changed, deltas)
        self.proved.clear()
        for _ in range(_REPAIRS):
            try:
                pause_s = await self._engine.apply(update)
            except WeightUpdateFailed as error:
                if self._engine.healthy:  # refused: what was served before still is
                    self._settle()
                    raise
                log.warning("an update broke; it is repeated", extra={"applied": manifest.version, "error": str(error)})
                update = WeightUpdate(manifest.version, ready.path)
            else:
                self._served = manifest
                return pause_s
        raise EngineDead(f"the engine holds mixed weights: {_REPAIRS} updates to version {manifest.version} broke")

    async def _prove(self, manifest: Manifest) -> None:
        """Compare the engine with the learner. Raises WrongWeights."""
        canary = manifest.canary
        if canary is None:
            log.info("this version brings no canary", extra={"applied": manifest.version})
        else:
            try:
                async with asyncio.timeout(CANARY_LIMIT_S):
                    logprobs = await sing(self._engine, canary)
            except EngineDead:
                raise
            except TimeoutError as error:
                raise WrongWeights(
                    f"version {manifest.version}: its canary was not scored within {CANARY_LIMIT_S} s"
                ) from error
            except EngineError as error:
                raise WrongWeights(f"version {manifest.version}: its canary cannot be scored: {error}") from error
            self._proof = judge(manifest.version, logprobs, canary, self._proof)
            self._metrics.canary_difference.set(self._proof.reading.largest)
        self._is_refuted = False
        self._settle()

    def _settle(self) -> None:
        """Give out answers again, unless what the engine serves is refuted."""
        if not self._is_refuted:
            self.proved.set()

    async def _accepted(self, manifest: Manifest, fetched_bytes: int, timings: dict[str, float]) -> None:
        """Enter a proved version into heartbeat, metrics, log and events; take requests if that was not so."""
        metrics = self._metrics
        self.step = manifest.step
        self._process.hold_version(self._engine.version)
        if self._is_shut:
            self._is_shut, self._process.trouble = False, ""
            self._door.reopen()
        metrics.updates.inc()
        metrics.pause.observe(timings["pause_s"])
        metrics.fetched_bytes.inc(fetched_bytes)
        log.info("weights applied", extra={"applied": manifest.version, **timings})
        told = {
            "generator": self._process.name,
            "version": manifest.version,
            "bytes": fetched_bytes,
            "canary": None if manifest.canary is None or self._proof is None else self._proof.reading.largest,
        }
        await self._process.tell(EventKind.UPDATE, told | timings)

    async def _refuted(self, error: WrongWeights) -> None:
        """The engine serves something else than it was given: take nothing, give nothing out, and say so."""
        self._metrics.canary_failures.inc()
        again, self._is_refuted, self._served = self._is_refuted, True, None
        if again:  # made anew, and wrong again
            self._process.trouble = str(error)
        log.error("weights refuted", extra={"error": str(error)})
        self._is_shut = True
        await self._door.shut()
        remedy = "restart it if the next version does not repair it" if again else "it begins again with an anchor"
        await self._process.tell(
            EventKind.NOTICE, {"text": f"{self._process.name}: {error}; it serves nothing, {remedy}"}
        )

    async def _failed(self, sentence: str) -> None:
        self._metrics.update_failures.inc()
        held = self._engine.version
        log.error("weights not applied", extra={"error": sentence})
        await self._process.tell(
            EventKind.NOTICE, {"text": f"{self._process.name}: {sentence}; it goes on with version {held}"}
        )
