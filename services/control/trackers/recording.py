"""Recording: the event log followed into one tracker, from where it was left, whatever happens to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import RedisError

from common.connection import is_passing
from common.errors import TributaryError
from common.events import Event, EventKind
from common.process import Process
from common.settings import RunFile
from services.control.deps import Control
from services.control.trackers.desk import Desk
from services.control.trackers.event_files import EventFiles
from services.control.trackers.port import Place, Tracker
from services.control.trackers.rows import rows_of
from services.control.trackers.weights_and_biases import WeightsAndBiases

BATCH = 100
PACE_S = 1.0
# Between full batches: who catches up with a long log leaves most of the time to those who are served.
BREATH_S = 0.02
AGAIN_S, LONGEST_WAIT_S = 10.0, 300.0
LATE_S = 60.0
_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


def chosen_trackers(settings: RunFile) -> list[Tracker]:
    """The trackers that a run file asks for."""
    trackers: list[Tracker] = []
    if settings.trackers.tensorboard:
        trackers.append(EventFiles(settings.run.directory / "tensorboard"))
    if settings.trackers.wandb_project is not None:
        trackers.append(WeightsAndBiases(settings))
    return trackers


class Recording:
    """Writes the event log into a tracker. What fails is said once and tried again: the log keeps it meanwhile."""

    def __init__(self, process: Process, control: Control, tracker: Tracker) -> None:
        self._process = process
        self._control = control
        self._tracker = tracker
        self._desk = Desk(tracker.name)
        self._trouble = ""

    async def follow(self) -> None:
        """Follow the event log until told to stop; then write what is left, as far as that works at once."""
        try:
            place = await self._insist(self._tracker.resume)
            while place is not None:
                place = await self._go_on(place)
            await self._let(self._desk.ask(self._tracker.close))
        except Exception:  # a tracker's end is not the control plane's
            self._count()
            log.exception("%s is not written any more: start the control plane again", self._tracker.name)
        finally:
            self._desk.close()

    async def _go_on(self, place: Place) -> Place | None:
        """Write the next events. None: there are no more, and we are to stop."""
        news, stopping = self._control.chronicle.news, self._stopping  # before reading: nothing falls between
        batch = await self._read(place.after)
        if batch:
            rows, following = rows_of(batch, place)
            if await self._insist(lambda: self._tracker.write(rows, following) or True) is None:
                return None
            place = following
        elif stopping:
            return None
        else:
            await self._wait(news, LATE_S)
        await self._process.pause(BREATH_S if len(batch) == BATCH else PACE_S)
        return place

    async def _read(self, after: str) -> list[Event]:
        try:
            return await self._control.events.read(after, BATCH)
        except (RedisError, OSError) as error:
            if not is_passing(error):
                raise
            await self._process.pause(PACE_S)
            return []

    async def _insist(self, call: Callable[[], _Result]) -> _Result | None:
        """The result of a call to the tracker, tried until it works. None if we are to stop before it does."""
        wait_s = AGAIN_S
        while True:
            try:
                result = await self._let(self._desk.ask(call))
            except Exception as error:  # noqa: BLE001 - trackers are other people's code, and none may end the steering
                self._count()
                ours = isinstance(error, TributaryError | OSError)
                await self._say(str(error) if ours else f"{type(error).__name__}: {error}")
                if self._stopping:
                    return None
                await self._process.pause(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                await self._say("")
                return result

    async def _let(self, call: asyncio.Future[_Result]) -> _Result:
        """The result of a call that is under way. It is not given up when it takes long, as it may yet succeed."""
        while not call.done():
            await asyncio.wait({call}, timeout=LATE_S)
            if not call.done():
                await self._say(f"it has not answered for {LATE_S:g} s")
        return call.result()

    async def _say(self, trouble: str) -> None:
        """Tell that the tracker fails, or that it works again; once each, whatever else goes wrong in between."""
        before, self._trouble = self._trouble, trouble
        name = self._tracker.name
        self._process.details["trackers"] = self._process.details.get("trackers", {}) | {name: trouble}
        if bool(before) == bool(trouble):
            return
        if trouble:
            text = f"{name} does not take the record of the run ({trouble}): the record is kept, and tried again"
            log.error(text)
        else:
            text = f"{name} takes the record of the run again"
            log.info(text)
        try:
            await self._control.events.append(EventKind.NOTICE, {"text": text}, at_s=self._control.clock())
        except (RedisError, OSError) as error:
            log.warning("no event for a notice", extra={"error": str(error)})

    def _count(self) -> None:
        self._control.metrics.tracker_failures.labels(self._tracker.name).inc()

    @property
    def _stopping(self) -> bool:
        return self._process.stop.is_set()

    async def _wait(self, news: asyncio.Event, seconds: float) -> None:
        """Wait for news. Whoever stops the process wakes everyone who does."""
        try:
            await asyncio.wait_for(news.wait(), seconds)
        except TimeoutError:
            return


def recordings(process: Process, control: Control) -> list[Recording]:
    """The recordings that the run file asks for."""
    return [Recording(process, control, tracker) for tracker in chosen_trackers(process.settings)]
