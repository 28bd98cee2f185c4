"""GET /v1/events and /v1/series: the event log, as it grows and as rows.

curl -sN "$DASHBOARD/v1/events?kind=step"
curl -s  "$DASHBOARD/v1/series?kind=step&kind=evaluation&newest=true&limit=500"
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from common.config.live import Json
from common.events import Event, EventKind, EventLog
from services.control.deps import Called, Controlled
from services.control.examples import answered
from services.control.feed import FeedResponse, feed
from services.control.places import Place, is_start, order
from services.control.problems import Problem, documented

router = APIRouter(prefix="/v1", tags=["events"])
_MOST_SCANNED = 20_000
_BATCH = 1000
_MOST_LISTENERS = 100

EventId = Annotated[Place, Query(description="id of an event; 0: the start")]
Kinds = Annotated[list[EventKind] | None, Query(description="only these kinds; all if none is named")]


class EventView(BaseModel):
    """One event. id: grows, and is what `after` and Last-Event-ID take. data: depends on the kind."""

    id: str
    kind: EventKind
    at_s: float = Field(description="Unix time in seconds")
    data: Json


class Series(BaseModel):
    """Events, oldest first. next: pass it as `after` to go on. more: whether there were more already.

    previous: with `newest`, pass it as `before` to go further back; null once the beginning is reached.
    """

    events: list[EventView]
    next: str
    more: bool
    previous: str | None = None


_ROWS = {
    "events": [
        {
            "id": "1767225600000-0",
            "kind": "evaluation",
            "at_s": 1767225600.0,
            "data": {"dataset": "hard", "version": 110, "step": 110, "accuracy": 0.46},
        }
    ],
    "next": "1767225600000-0",
    "more": False,
    "previous": None,
}
_LINES = """id: 1767225600000-0
event: notice
data: {"id": "1767225600000-0", "kind": "notice", "at_s": 1767225600.0, "data": {"text": "the run has ended"}}

"""


@router.get("/series", summary="Events as rows", responses=answered(_ROWS) | documented(422, 503))
async def series(
    control: Controlled,
    kind: Kinds = None,
    after: EventId = "0",
    limit: Annotated[int, Query(ge=1, le=10_000, description="most events in the answer")] = 1000,
    newest: Annotated[bool, Query(description="the newest events instead of the ones right after `after`")] = False,
    before: Annotated[EventId | None, Query(description="with `newest`: the newest ones before this event")] = None,
) -> Series:
    """The history behind a plot: events after an id, or the newest ones, oldest first.

    An answer looks at 20 000 events of the log at most, so it may hold fewer than `limit`: go on while `more` is true,
    or with `newest` while `previous` is not null.

    `curl -s "$DASHBOARD/v1/series?kind=step&newest=true&limit=500"`
    """
    kinds = frozenset(kind or EventKind)
    if newest:
        return await _newest(control.events, kinds, (after, before or "+"), limit)
    return await _following(control.events, kinds, after, limit)


async def _following(events: EventLog, kinds: frozenset[EventKind], after: str, limit: int) -> Series:
    rows: list[Event] = []
    for _ in range(_MOST_SCANNED // _BATCH):
        batch = await events.read(after, _BATCH)
        wanted = [e for e in batch if e.kind in kinds]
        room = limit - len(rows)
        rows += wanted[:room]
        if len(wanted) > room:
            return _series(rows, rows[-1].event_id, more=True)
        after = batch[-1].event_id if batch else after
        if len(batch) < _BATCH:
            return _series(rows, after, more=False)
    return _series(rows, after, more=True)


async def _newest(events: EventLog, kinds: frozenset[EventKind], between: tuple[str, str], limit: int) -> Series:
    after, before = between
    if is_start(before):
        return _series([], after, more=False)
    rows: list[Event] = []
    end = after
    for _ in range(_MOST_SCANNED // _BATCH):
        batch = await events.read_back(before, _BATCH)
        if before == "+" and batch:
            end = max(end, batch[0].event_id, key=order)
        fresh = [e for e in batch if order(e.event_id) > order(after)]
        wanted = [e for e in fresh if e.kind in kinds]
        room = limit - len(rows)
        rows += wanted[:room]
        if len(wanted) > room:
            before = rows[-1].event_id
            break
        if len(fresh) < _BATCH:
            return _series(rows[::-1], end, more=False)
        before = batch[-1].event_id
        if len(rows) == limit:
            break
    return _series(rows[::-1], end, more=False, previous=before)


async def _seat(control: Controlled) -> AsyncIterator[None]:
    """A place among the listeners, from before anything is awaited until the answer has ended in whatever way."""
    chronicle = control.chronicle
    if chronicle.listeners >= _MOST_LISTENERS:
        detail = f"{_MOST_LISTENERS} clients follow the events already: close some"
        raise Problem(503, "too-many-listeners", detail, headers={"Retry-After": "10"})
    chronicle.listeners += 1
    control.metrics.listeners.set(chronicle.listeners)
    try:
        yield
    finally:
        chronicle.listeners -= 1
        control.metrics.listeners.set(chronicle.listeners)


@router.get(
    "/events",
    dependencies=[Depends(_seat)],
    summary="The event feed",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-sent events: `id`, `event` (its kind), `data` ({id, kind, at_s, data} as JSON)",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _LINES}},
        },
        **documented(422, 503),
    },
)
async def events(
    control: Controlled,
    caller: Called,
    kind: Kinds = None,
    after: Annotated[
        EventId | None, Query(description="begin after this event; without it, with what comes next")
    ] = None,
    last_event_id: Annotated[Place | None, Header(alias="Last-Event-ID", description="goes before `after`")] = None,
) -> StreamingResponse:
    """Events as they happen. A client that comes back with Last-Event-ID misses nothing that is kept.

    `curl -sN "$DASHBOARD/v1/events?kind=step&kind=revision"`
    """
    async with control.chronicle.reading:
        start = last_event_id or after or await control.events.last_id()
    return FeedResponse(feed(control, caller, start, frozenset(kind or EventKind)))


def _series(events: Sequence[Event], following: str, *, more: bool, previous: str | None = None) -> Series:
    views = [EventView(id=e.event_id, kind=e.kind, at_s=e.at_s, data=e.data) for e in events]
    return Series(events=views, next=following, more=more, previous=previous)
