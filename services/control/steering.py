"""Steering: how a proposal becomes the next revision, or is refused with a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from common.config.algorithm import ALGORITHMS
from common.config.base import Material
from common.config.hints import NoHints
from common.config.live import Json, LiveConfig, dump_live, merge_patch, parse_live
from common.config.store import Author, ConfigStore, Revision
from common.errors import ConfigRejected, LostRace
from common.events import EventKind, EventLog
from common.keys import Keys
from services.control.problems import Problem

_MOST_RACES = 100
QUEUE_S = 5.0

log = logging.getLogger(__name__)
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Proposal:
    """Who proposes a change and why. expected: revisions that it may change; None: whichever is current."""

    author: Author
    reason: str = ""
    expected: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The revision that is current after a proposal, and whether the proposal made it."""

    revision: Revision
    changed: bool


class Steering:
    """Changes the live configuration of one run. clock: Unix time in seconds."""

    def __init__(self, redis: Redis, keys: Keys, clock: Clock) -> None:
        self._redis = redis
        self._keys = keys
        self._config = ConfigStore(redis, keys)
        self._events = EventLog(redis, keys)
        self._clock = clock
        # Races between our own callers are settled here; those with other control planes by compare-and-set.
        self._turn = asyncio.Lock()

    async def seed(self, live: LiveConfig) -> Revision | None:
        """Make the run file's configuration revision 1; None if there is a revision already."""
        if await self._config.number() > 0:
            return None
        try:
            first = await self._config.replace(live, 0, Author("run file", "run file"), at_s=self._clock())
        except LostRace:
            return None
        await self._tell(first)
        return first

    async def replace(self, document: Json, proposal: Proposal) -> Decision:
        """Put a whole configuration in place of the current one; keys that are left out take their defaults."""
        return await self._change(lambda current: document, proposal)

    async def patch(self, patch: Json, proposal: Proposal) -> Decision:
        """Apply a JSON merge patch; after a lost race it is merged into the newer configuration."""
        return await self._change(lambda current: merge_patch(dump_live(current.live), patch), proposal)

    async def roll_back(self, number: int, proposal: Proposal) -> Decision:
        """Make the configuration of an earlier revision current again, as a new revision."""
        newest = await self._config.number()
        if not 1 <= number <= newest:
            raise ConfigRejected([("revision", f"there is no revision {number}: choose one from 1 to {newest}")])
        record = (await self._config.records(number, number))[0]
        return await self._change(lambda current: record["config"], proposal)

    async def preview(self, current: Revision, patch: Json) -> LiveConfig:
        """What `patch` would make of a revision; ConfigRejected where it would be refused."""
        live = parse_live(merge_patch(dump_live(current.live), patch))
        await self._check_data(live)
        return live

    async def _change(self, build: Callable[[Revision], Json], proposal: Proposal) -> Decision:
        async with self._queue():
            for _ in range(_MOST_RACES):
                current = await self._config.current()
                if current is None:
                    raise Problem(503, "no-revision", "there is no live configuration yet: try again in a moment")
                if proposal.expected is not None and current.number not in proposal.expected:
                    raise LostRace(max(proposal.expected, default=0), current.number)
                live = parse_live(build(current))
                if live == current.live:
                    return Decision(current, changed=False)
                await self._check_data(live)
                try:
                    revision = await self._config.replace(
                        live, current.number, proposal.author, at_s=self._clock(), reason=proposal.reason
                    )
                except LostRace:
                    if proposal.expected is not None:
                        raise
                    continue
                await self._tell(revision)
                return Decision(revision, changed=True)
        raise Problem(
            503, "contended", "too many others change the configuration: try again", headers={"Retry-After": "1"}
        )

    @contextlib.asynccontextmanager
    async def _queue(self) -> AsyncIterator[None]:
        """Our turn. While Redis is frozen each turn lasts seconds, so whoever waits long is sent away, not queued."""
        try:
            async with asyncio.timeout(QUEUE_S):
                await self._turn.acquire()
        except TimeoutError:
            detail = f"other changes of the configuration have been under way for {QUEUE_S:g} s: try again"
            raise Problem(503, "contended", detail, headers={"Retry-After": "5"}) from None
        try:
            yield
        finally:
            self._turn.release()

    async def _check_data(self, live: LiveConfig) -> None:
        """Refuse what feeds on demonstrations, whole or as hints, if the run's training data has none."""
        if not (live.algorithm.requires or live.hints.provides):
            return
        count: Any = await self._redis.hget(self._keys.facts, "train_demonstrations")  # pyright: ignore
        if count is None or not count.isdigit() or count.strip(b"0"):  # unknown, or some
            return
        raise ConfigRejected([_starving(live)])

    async def _tell(self, revision: Revision) -> None:
        """Write the event of a revision. The revision stands even if Redis goes away before its event is written."""
        try:
            await self._events.append(EventKind.REVISION, revision.record(), at_s=revision.at_s)
        except (RedisError, OSError) as error:
            log.warning("no event for a revision", extra={"accepted": revision.number, "error": str(error)})
        else:
            log.info("revision accepted", extra={"accepted": revision.number, "author": revision.author.name})


def _starving(live: LiveConfig) -> tuple[str, str]:
    """Path and sentence for a configuration whose data has no demonstrations."""
    data = "start the run with a data set whose [data.columns] demonstration names its column of them"
    without_hints = json.dumps({"hints": NoHints().model_dump(mode="json")})
    algorithm, hints = live.algorithm, live.hints
    if algorithm.requires:
        others = ", ".join(f'"{a.model_fields["kind"].default}"' for a in ALGORITHMS if not a.requires)
        feeds = "hints, the beginnings of demonstrations" if Material.HINTS in algorithm.requires else "demonstrations"
        return "algorithm.kind", (
            f'algorithm "{algorithm.kind}" learns from {feeds}, and the training data has no demonstration that can be '
            f"used: choose one of {others} with {without_hints}, or {data}"
        )
    return "hints.kind", (
        f'hint policy "{hints.kind}" shows demonstrations, or the beginnings of them, and the training data has none '
        f"that can be used: set {without_hints} in the same change, or {data}"
    )
