"""Guarding: keeps watch over every step in the operator's place, and does what a guard says when its figure runs off.

What a guard has seen and whether it is spent is read from the event log and the history, so that a control plane that
was restarted, or a second one, neither forgets a step nor fires twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator

from redis.exceptions import RedisError

from common.config.guards import Guard, PauseLearner, RollBack, SetValues
from common.config.live import Json, dump_live
from common.config.store import Author, Revision
from common.connection import is_passing
from common.errors import ConfigRejected, LostRace, TributaryError
from common.events import Event, EventKind
from services.control.deps import Control
from services.control.firings import Firing, Step, firings
from services.control.problems import Problem
from services.control.steering import Proposal

# No caller has this address, so nobody can make a revision that passes for a guard's.
ORIGIN = "guards"
_PREFIX = "guard:"
_MOST_STEPS = 4000
_BATCH = 1000
_PAGE = 100
_PAUSE_S = 1.0

log = logging.getLogger(__name__)


class Observed:
    """What the event log told since an operator's last revision. place: the id of the newest event that was read."""

    def __init__(self) -> None:
        self.place = "0"
        self._steps: deque[Step] = deque(maxlen=_MOST_STEPS)
        self._told: dict[str, int] = {}

    def note(self, event: Event) -> None:
        """Take in one event; they come in the order of the log."""
        self.place = event.event_id
        step = Step.of(event.data) if event.kind is EventKind.STEP else None
        if step is not None:
            # A learner that was restored makes its steps since the checkpoint again: those are the ones that count.
            while self._steps and self._steps[-1].number >= step.number:
                self._steps.pop()
            self._steps.append(step)
        elif event.kind is EventKind.NOTICE and "guard" in event.data:
            self._told[str(event.data["guard"])] = _number(event)

    def steps(self, revision: int) -> list[Step]:
        """The steps under a revision, oldest first."""
        return [step for step in self._steps if step.revision == revision]

    def told_since(self, revision: int) -> set[str]:
        """Names of the guards that fired without making a revision, under this revision or a later one."""
        return {name for name, number in self._told.items() if number >= revision}


class Guarding:
    """Watches over the steps of one run. There is nothing to do, and nothing is read, while no guard is set."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._observed: Observed | None = None

    async def watch(self) -> None:
        """Look at every new step until cancelled. While Redis is away it tries again once a second."""
        seen = ""
        while True:
            news, newest = self._control.chronicle.news, self._control.chronicle.step
            if newest is not None and newest.event_id != seen:
                try:
                    while await self.look():
                        pass
                except (RedisError, OSError, Problem) as error:
                    if isinstance(error, RedisError | OSError) and not is_passing(error):
                        raise
                    log.warning("the guards could not be looked at", extra={"error": str(error)})
                    await asyncio.sleep(_PAUSE_S)
                    continue
                except TributaryError as error:  # a configuration of another version of this project
                    log.error("the guards cannot be read", extra={"error": str(error)})
                seen = newest.event_id
            await news.wait()

    async def look(self) -> bool:
        """Let the first guard fire that the newest steps call upon. False if there is none, so nothing was done."""
        current = await self._control.config.current()
        if current is None or not current.live.guards:
            self._observed = None
            return False
        observed = await self._observe(current)
        called_upon = firings(current.live.guards, observed.steps(current.number))
        if not called_upon:
            return False
        spent = await self._spent(current, observed)
        firing = next((f for f in called_upon if f.guard.name not in spent), None)
        if firing is None:
            return False
        try:
            await self._fire(firing, current)
        except LostRace as error:  # somebody else steers: look again at what is current now
            log.info("a guard came too late", extra={"guard": firing.guard.name, "current": error.current})
        return True

    async def _observe(self, current: Revision) -> Observed:
        """What the log told up to now. At first, or when guards are set anew, it is read back as far as it counts."""
        events = self._control.events
        if self._observed is None:
            self._observed = await self._recall((await self._operators(current))["revision"])
        while batch := await events.read(self._observed.place, _BATCH):
            for event in batch:
                self._observed.note(event)
        return self._observed

    async def _recall(self, base: int) -> Observed:
        """What the log tells since revision `base`; all of it if that revision's event is not kept any more."""
        observed, before, kept, reached = Observed(), "+", list[Event](), False
        while not reached and (batch := await self._control.events.read_back(before, _BATCH)):
            if before == "+":
                observed.place = batch[0].event_id
            before = batch[-1].event_id
            for event in batch:
                reached = event.kind is EventKind.REVISION and _number(event) <= base
                if reached:
                    break
                if event.kind is EventKind.NOTICE or (event.kind is EventKind.STEP and len(kept) < _MOST_STEPS):
                    kept.append(event)
        for event in reversed(kept):
            observed.note(event)
        return observed

    async def _spent(self, current: Revision, observed: Observed) -> set[str]:
        """Names of the guards that fired since an operator's last revision."""
        names: set[str] = set()
        async for record in self._back(current.number):
            if not _is_guards(record):
                return names | observed.told_since(record["revision"])
            names.add(record["author"].removeprefix(_PREFIX))
        return names | observed.told_since(0)

    async def _fire(self, firing: Firing, current: Revision) -> None:
        guard = firing.guard
        match guard.action:
            case RollBack():
                await self._roll_back(firing, current)
            case SetValues(patch=patch):
                await self._change(firing, current, dict(patch), "")
            case PauseLearner():
                await self._control.commands.pause(_PREFIX + guard.name)
                await self._tell(guard, current, f"{firing.reason}: the learner is paused")
        log.warning("a guard fired", extra={"guard": guard.name, "why": firing.reason})

    async def _roll_back(self, firing: Firing, current: Revision) -> None:
        earlier = await self._earlier(current)
        if earlier is None:
            text = f"{firing.reason}, but there is no earlier configuration to return to"
            await self._tell(firing.guard, current, text)
            return
        config = {**earlier["config"], "guards": dump_live(current.live)["guards"]}
        why = f": back to the configuration of revision {earlier['revision']}"
        await self._change(firing, current, config, why, whole=True)

    async def _change(self, firing: Firing, current: Revision, change: Json, why: str, *, whole: bool = False) -> None:
        """Make the revision of a firing. change: a patch, or a whole configuration."""
        author = Author(_PREFIX + firing.guard.name, ORIGIN)
        proposal = Proposal(author, firing.reason + why, frozenset({current.number}))
        steering = self._control.steering
        try:
            decision = await (steering.replace(change, proposal) if whole else steering.patch(change, proposal))
        except ConfigRejected as error:
            text = f"{firing.reason}, but the configuration that it asks for is refused: {error}"
            await self._tell(firing.guard, current, text)
            return
        if not decision.changed:
            await self._tell(firing.guard, current, f"{firing.reason}, and what it asks for is in force already")

    async def _earlier(self, current: Revision) -> Json | None:
        """The newest configuration of an operator that was not in force yet since an operator's last revision."""
        tried, is_earlier = list[Json](), False
        async for record in self._back(current.number):
            config = _unguarded(record["config"])
            if not is_earlier:
                tried.append(config)
                is_earlier = not _is_guards(record)
            elif not _is_guards(record) and config not in tried:
                return record
        return None

    async def _operators(self, current: Revision) -> Json:
        """The newest revision that no guard made."""
        async for record in self._back(current.number):
            if not _is_guards(record):
                return record
        return current.record()

    async def _back(self, number: int) -> AsyncIterator[Json]:
        """The records of the history from a revision back to the first."""
        while number > 0:
            records = await self._control.config.records(max(1, number - _PAGE + 1), number)
            for record in reversed(records):
                yield record
            number -= _PAGE

    async def _tell(self, guard: Guard, current: Revision, text: str) -> None:
        """Say that a guard fired without making a revision. From now on it is spent."""
        data = {"text": text, "guard": guard.name, "revision": current.number}
        await self._control.events.append(EventKind.NOTICE, data, at_s=self._control.clock())


def _number(event: Event) -> int:
    """The revision that an event names; 0 if it names none."""
    number = event.data.get("revision")
    return number if isinstance(number, int) else 0


def _is_guards(record: Json) -> bool:
    return record["origin"] == ORIGIN and record["author"].startswith(_PREFIX)


def _unguarded(config: Json) -> Json:
    return {key: value for key, value in config.items() if key != "guards"}
