"""Refresh: a generator follows the announced weight versions, applies the newest in flight and proves it.

A version is fetched and proved by its digests while sampling goes on (weight_cache.py), put into the engine, and then
proved by its canary. Whatever goes wrong is counted and told. Weights that are not whole never reach the engine: those
that were held go on being served under their own version. If the canary refutes what the engine serves, nothing that it
samples is given out: requests go back to others until the version, made anew of an anchor, or a later one is proved.
So it is with an engine that an update left with mixed weights, if nothing can be had to replace them with.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from common.errors import WeightsError
from common.events import EventKind
from common.metrics import GeneratorMetrics
from common.process import Process
from common.weights import Manifest, PublicationKind, WeightAnnouncements
from services.generator.canary import Proved, WrongWeights, compare, judge, sing
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
_EVERY = 1000
"""More than are kept of the announcements."""

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
        self._is_over = False
        self._wrong = ""
        self._unreadable = ""
        process.details["fetching"] = 0

    async def catch_up(self) -> None:
        """Before serving: apply the newest version that can be had. Without one the base model is version 0."""
        held: Manifest | None = None
        try:
            held = await asyncio.to_thread(self._cache.open)
        except WeightsError as error:
            await self._failed(str(error))
        announced = await self._recent(FALLBACKS)
        if announced and not await self._take(announced[0]):
            others = announced[1:]
            if held is not None and held in await self._recent(_EVERY):  # else another run of this name left it
                others.append(held)
            for manifest in sorted(others, key=lambda other: -other.version):
                if self._process.stop.is_set() or await self._take(manifest):
                    break
        self._process.hold_version(self._engine.version if self._proof_holds else self._process.version)

    async def _recent(self, count: int) -> list[Manifest]:
        return await self._process.patiently("read the announced weights", lambda: self._announced.recent(count))

    async def follow(self) -> None:
        """Apply newer versions as they are announced, for ever. Raises EngineDead if an update cannot be repaired."""
        try:
            await self._follow()
        finally:
            self._is_over = True
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
        patiently = self._process.patiently
        newest = await patiently("await weights", lambda: self._announced.wait_newer(looked_at, BLOCK_MS))
        if newest is not None:
            return newest
        is_behind = self._engine.version < looked_at or not self._proof_holds
        if is_behind and self._clock() >= retry_at_s:
            return await patiently("read the newest weights", self._announced.newest)
        return await self._look_closer()

    async def _look_closer(self) -> Manifest | None:
        """What was announced last, if it is not newer by its number and yet another one than what is served.

        That happens when everything but this generator begins again. What cannot be read at all is told once.
        """
        try:
            last = await self._process.patiently("read the last announcement", self._announced.last)
        except WeightsError as error:
            if str(error) != self._unreadable:
                self._unreadable = str(error)
                await self._failed(f"the last announcement is passed over: {error}")
            return None
        self._unreadable, served = "", self._served
        if last is None or served is None or last.version > served.version or last.at_s <= served.at_s:
            return None
        if last.tensors == served.tensors:
            return None
        await self._refute(
            f"version {last.version} was announced after version {served.version}, which is served: the run began again"
        )
        return last

    async def _take(self, manifest: Manifest) -> bool:
        """Come to a version, if need be from the anchor of its chain; whether the engine serves it, proved, now."""
        self._process.details["fetching"] = manifest.version
        try:
            is_taken = await self._come_to(manifest)
        except _Stopping:
            return False
        finally:
            self._process.details["fetching"] = 0
        if not is_taken and not self._proof_holds:
            self._process.trouble = self._wrong
            await self._leave_service()
        return is_taken

    async def _come_to(self, manifest: Manifest) -> bool:
        anew = self._is_refuted
        if await self._attempt(manifest, anew=anew):
            return True
        if anew or (manifest.kind is PublicationKind.ANCHOR and not self._is_refuted):
            return False  # there is no other way to it
        self._metrics.reseeds.inc()
        return await self._attempt(manifest, anew=True) or await self._fall_back(manifest)

    async def _fall_back(self, manifest: Manifest) -> bool:
        """Come as far as the anchor of a version whose chain is broken; never the version itself, so False."""
        held = self._cache.held
        is_farther = manifest.anchor > (held.version if held is not None else self._engine.version)
        if not self._is_refuted and is_farther:
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
            pause_s = await self._broadcast(manifest, anew=anew)
            if pause_s is None:
                ready = await asyncio.to_thread(self._cache.advance, manifest, self._heed, anew=anew)
                fetched_s, fetched_bytes = self._clock(), ready.fetched_bytes
                pause_s = await self._apply(ready, anew=anew)
            self._metrics.pause.observe(pause_s)
            applied_s = self._clock()
            await self._prove(manifest)
        except WrongWeights as error:
            self._metrics.canary_failures.inc()
            await self._refute(str(error))
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

    async def _broadcast(self, manifest: Manifest, *, anew: bool) -> float | None:
        """Take part in the broadcast of a version, if there is one; the pause. None: it is to come from the store."""
        if anew:
            await self._fast_path.decline(manifest.version)
            return None
        update = await self._fast_path.invitation(manifest.version)
        if update is None:
            return None
        self.proved.clear()
        try:
            pause_s = await self._engine.apply(update)
        except WeightUpdateFailed as error:
            if self._engine.healthy:
                self._settle()
            else:  # mixed weights: the store's are loaded completely
                self._served, self._wrong = None, f"version {manifest.version} broke half-way: {error}"
            await self._failed(f"version {manifest.version} was not received, it is taken from the store: {error}")
            return None
        self._served = manifest
        return pause_s

    def _heed(self) -> None:
        """Called while a version is fetched."""
        if self._process.stop.is_set() or self._is_over:
            raise _Stopping

    async def _apply(self, ready: Ready, *, anew: bool) -> float:
        """The pause. What cannot be prepared, or broke half-way, is loaded completely, at once, from the same file.

        An update that broke leaves the engine paused on mixed weights: that is part of the pause.
        """
        manifest, served = ready.manifest, self._served
        update = WeightUpdate(manifest.version, ready.path)
        if served is not None and not anew and manifest.tensors:
            changed = {name for name, proof in manifest.tensors.items() if served.tensors.get(name) != proof}
            deltas = ready.deltas if ready.base == served.version else ()
            update = WeightUpdate(manifest.version, ready.path, changed, deltas)
        self.proved.clear()
        broken_s: float | None = None
        for _ in range(_REPAIRS):
            began_s = self._clock()
            try:
                pause_s = await self._engine.apply(update)
            except WeightUpdateFailed as error:
                if self._engine.healthy and update.changed is None:  # refused: what was served before still is
                    self._settle()
                    raise
                if not self._engine.healthy and broken_s is None:
                    broken_s = began_s
                log.warning("an update broke; it is repeated", extra={"applied": manifest.version, "error": str(error)})
                update = WeightUpdate(manifest.version, ready.path)
            else:
                self._served = manifest
                return pause_s if broken_s is None else self._clock() - broken_s
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
            self._metrics.canary_difference.set(compare(logprobs, canary).largest)
            self._proof = judge(manifest.version, logprobs, canary, self._proof)
        self._is_refuted = False
        self._settle()

    @property
    def _proof_holds(self) -> bool:
        """Whether nothing speaks against what the engine serves."""
        return self._engine.healthy and not self._is_refuted

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
        metrics.fetched_bytes.inc(fetched_bytes)
        log.info("weights applied", extra={"applied": manifest.version, **timings})
        told = {
            "generator": self._process.name,
            "version": manifest.version,
            "bytes": fetched_bytes,
            "canary": None if manifest.canary is None or self._proof is None else self._proof.reading.largest,
        }
        await self._process.tell(EventKind.UPDATE, told | timings)

    async def _refute(self, why: str) -> None:
        """The engine serves something else than it should: take nothing, give nothing out, and say so."""
        again, self._is_refuted, self._served = self._is_refuted, True, None
        self._wrong = why
        log.error("weights refuted", extra={"error": why})
        await self._leave_service()
        remedy = "restart it if the next version does not repair it" if again else "it begins again with an anchor"
        await self._process.tell(
            EventKind.NOTICE, {"text": f"{self._process.name}: {why}; it serves nothing, {remedy}"}
        )

    async def _leave_service(self) -> None:
        """Take nothing and give nothing out until a version is proved."""
        self.proved.clear()
        if not self._is_shut:
            self._is_shut = True
            await self._door.shut()

    async def _failed(self, sentence: str) -> None:
        self._metrics.update_failures.inc()
        log.error("weights not applied", extra={"error": sentence})
        rest = f"it goes on with version {self._engine.version}" if self._proof_holds else "it serves nothing"
        await self._process.tell(EventKind.NOTICE, {"text": f"{self._process.name}: {sentence}; {rest}"})


class _Stopping(Exception):
    """This generator ends: what is being fetched is not needed any more."""
