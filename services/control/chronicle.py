"""The chronicle: follows the event log, remembers what is newest, and wakes whoever waits for more."""

from __future__ import annotations

import asyncio
import logging

from redis.exceptions import RedisError

from common.connection import is_passing
from common.events import Event, EventKind, EventLog

_BLOCK_MS = 1000
_BATCH = 1000
_LOOK_BACK = 20_000
_PAUSE_S = 0.5
_MOST_READERS = 32

log = logging.getLogger(__name__)


class Chronicle:
    """What the event log said last. `step`: the newest step. `evaluations`: the newest one of each data set.

    listeners: how many feeds wait for its news. reading: what they hold while they read, as news wake all at once and
    connections to Redis (100) must still suffice for everyone else.
    """

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._newest_id = "0"
        self._news = asyncio.Event()
        self.listeners = 0
        self.reading = asyncio.Semaphore(_MOST_READERS)
        self.step: Event | None = None
        self.evaluations: dict[str, Event] = {}

    @property
    def news(self) -> asyncio.Event:
        """Set as soon as there is an event newer than now. Take it *before* reading, wait for it after."""
        return self._news

    def wake(self) -> None:
        """Wake everyone who waits for news."""
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self) -> None:
        """Follow the event log until cancelled. While Redis is away it tries again twice a second."""
        caught_up = False
        while True:
            try:
                if not caught_up:
                    await self._look_back()
                    caught_up = True
                batch = await self._events.read(self._newest_id, _BATCH, _BLOCK_MS)
            except (RedisError, OSError) as error:
                if not is_passing(error):
                    raise
                log.warning("redis is away: following events", extra={"error": str(error)})
                await asyncio.sleep(_PAUSE_S)
                continue
            if batch:
                for event in batch:
                    self._note(event)
                self._newest_id = batch[-1].event_id
                self.wake()

    async def _look_back(self) -> None:
        """Learn what was newest before we came, from the last _LOOK_BACK events."""
        before, seen, kept = "+", 0, list[Event]()
        while seen < _LOOK_BACK:
            batch = await self._events.read_back(before, _BATCH)
            kept += [e for e in batch if e.kind in (EventKind.STEP, EventKind.EVALUATION)]
            if before == "+" and batch:
                self._newest_id = batch[0].event_id
            if len(batch) < _BATCH:
                break
            before, seen = batch[-1].event_id, seen + len(batch)
        for event in reversed(kept):
            self._note(event)

    def _note(self, event: Event) -> None:
        if event.kind is EventKind.STEP:
            self.step = event
        elif event.kind is EventKind.EVALUATION:
            self.evaluations[str(event.data.get("dataset"))] = event
