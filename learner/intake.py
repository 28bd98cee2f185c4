"""Intake: groups from the stream, in order, decoded and checked ahead of need.

What this consumer was given and has not acknowledged comes first (after a restart: everything since the checkpoint),
then new entries. Any reply may be lost on its way, so after a call that brought none, entries that became ours
unnoticed are asked for before new ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from common.errors import WireError
from common.events import EventKind
from common.process import Process
from common.streams import Entry, UnusableRecord
from common.tasks import end
from common.trajectory import Group, Source, Trajectory
from common.wire import decode_group, encode_group, identity

CONSUMER = "learner"
_BLOCK_MS = 1000
_LARGEST_READ = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A group with the stream entry that brought it, and that entry's size in bytes."""

    entry_id: str
    group: Group
    bytes: int


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What the model can be trained on. longest: tokens of prompt and response together."""

    vocabulary: int
    longest: int

    def complaint(self, group: Group) -> str:
        """Why the model cannot be trained on `group`; "" if it can."""
        if not group.trajectories:
            return "the group has no trajectories"
        return next((c for c in map(self._trajectory_complaint, group.trajectories) if c), "")

    def _trajectory_complaint(self, trajectory: Trajectory) -> str:
        tokens, sources = trajectory.tokens, trajectory.sources
        if len(tokens) > self.longest:
            return f"a trajectory has {len(tokens)} tokens; the model's context holds {self.longest}"
        if trajectory.prompt_length == 0 or trajectory.response_length == 0:
            return (
                f"a trajectory has {trajectory.prompt_length} prompt and {trajectory.response_length} response tokens"
            )
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.vocabulary:
            return f"token ids span {tokens.min()}..{tokens.max()}; the vocabulary has {self.vocabulary} entries"
        if int(sources.max()) > max(Source):
            return f"source {sources.max()} is not known"
        if np.any(sources[: trajectory.prompt_length] != Source.PROMPT):
            return "prompt tokens stand after response tokens"
        return ""


class Intake:
    """Reads groups ahead while the learner works. `ahead`: groups held ready at most, about one step's worth."""

    def __init__(self, process: Process, acceptance: Acceptance) -> None:
        self.ahead = 1
        self._process = process
        self._acceptance = acceptance
        self._ready: deque[Arrival] = deque()
        self._arrived = asyncio.Event()
        self._came = asyncio.Event()
        self._taken = asyncio.Event()
        self._last = "0"
        self._may_hold_unseen = True
        self._reader: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read ahead."""
        self._reader = asyncio.create_task(self._run())
        self._reader.add_done_callback(lambda _: self._arrived.set())

    async def close(self) -> None:
        """Stop reading. What was read and not consumed stays pending in the stream."""
        if self._reader is not None:
            await end([self._reader])  # a failure was raised by `take`, or does not matter any more

    async def _run(self) -> None:
        while True:
            if len(self._ready) < self.ahead:
                for entry in await self._process.patiently("read groups", self._read):
                    self._last = entry.entry_id
                    await self._receive(entry)
            else:
                self._taken.clear()
                await self._taken.wait()

    def take(self) -> Arrival | None:
        """The next group, if one is ready. What ended the reader is raised here."""
        if self._ready:
            self._taken.set()
            return self._ready.popleft()
        if self._reader is not None and self._reader.done():
            self._reader.result()
        self._arrived.clear()
        return None

    async def wait(self) -> None:
        """Wait until a group is ready."""
        await self._arrived.wait()

    async def foremost(self, count: int) -> list[Group]:
        """The groups that will be taken next, once there are so many; they stay where they are."""
        while len(self._ready) < count:
            self._came.clear()
            await self._came.wait()
        return [arrival.group for arrival in islice(self._ready, count)]

    def put_back(self, arrivals: Sequence[Arrival]) -> None:
        """Return groups that were taken last, to be taken first."""
        self._ready.extendleft(reversed(arrivals))

    async def _read(self) -> list[Entry]:
        """The next entries. Until a reply has come it must be assumed that one was lost."""
        backlog, self._may_hold_unseen = self._may_hold_unseen, True
        count = min(max(self.ahead - len(self._ready), 1), _LARGEST_READ)
        groups = self._process.delivery.groups
        if backlog:
            entries = await groups.pending(CONSUMER, self._last, count)
            self._may_hold_unseen = bool(entries)
            return entries
        entries = await groups.take(CONSUMER, count, _BLOCK_MS)
        self._may_hold_unseen = False
        return entries

    async def _receive(self, entry: Entry) -> None:
        """Hold an entry's group ready, or put the entry into quarantine."""
        try:
            group = decode_group(entry.payload)
        except WireError as error:
            await quarantine(self._process, entry, str(error), identity(entry.payload))
            return
        complaint = self._acceptance.complaint(group)
        if complaint:
            await quarantine(self._process, entry, complaint, group.group_id)
            return
        self._ready.append(Arrival(entry.entry_id, group, len(entry.payload)))
        self._arrived.set()
        self._came.set()


async def quarantine(process: Process, entry: Entry, reason: str, group_id: str = "") -> None:
    """Move an entry of the groups stream to quarantine, counted and said; the credit of `group_id` returns."""
    delivery = process.delivery

    async def move() -> bool:
        return await delivery.quarantine(delivery.groups, entry, reason, by=process.name, group_id=group_id)

    await process.patiently("quarantine a group", move)
    process.metrics.quarantined.labels("groups").inc()
    log.warning("a group was quarantined", extra={"reason": reason, "entry": entry.entry_id, "group": group_id})
    await process.tell(EventKind.QUARANTINE, {"stream": "groups", "reason": reason, "id": group_id or entry.entry_id})


async def quarantine_dropped(process: Process, demonstrations: Sequence[Group], reason: str) -> None:
    """Put demonstrations that a rehearsal dropped into quarantine; counted and said."""
    records = [UnusableRecord(f"rehearsal:{g.group_id}", reason, encode_group(g)) for g in demonstrations]
    await process.patiently(
        "quarantine demonstrations", lambda: process.delivery.record_unusable(records, by=process.name)
    )
    process.metrics.quarantined.labels("demonstrations").inc(len(records))
    log.error(reason)
    await process.tell(EventKind.NOTICE, {"text": f"{reason}. They are in the quarantine"})
