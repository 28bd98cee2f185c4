"""The feed: the event log as server-sent events, from any id on, until the client or the control plane leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

from redis.exceptions import RedisError
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from common.connection import is_passing
from common.events import Event, EventKind
from services.control.deps import Control
from services.control.tokens import Caller

HEARTBEAT_S = 5.0
UNREAD_S = 30.0
_BATCH = 500
_PAUSE_S = 1.0

log = logging.getLogger(__name__)


async def feed(control: Control, caller: Caller, after: str, kinds: frozenset[EventKind]) -> AsyncIterator[bytes]:
    """Events of these kinds after the id `after`, for as long as the caller is let in.

    A comment every 5 s shows that the line is alive.
    """
    yield b"retry: 1000\n: the events of this run follow\n\n"
    while caller.admitted() and not control.stop.is_set():
        news = control.chronicle.news  # taken before reading, so that nothing falls between the two
        try:
            async with control.chronicle.reading:
                batch = await control.events.read(after, _BATCH)
        except (RedisError, OSError) as error:
            if not is_passing(error):
                raise
            yield b": redis is away\n\n"
            await _wait(news, _PAUSE_S)
            continue
        if batch:
            after = batch[-1].event_id
            told = b"".join(_message(event) for event in batch if event.kind in kinds)
            # An id without data moves the client's place past events that it did not ask for.
            yield told or f"id: {after}\n\n".encode()
        elif not await _wait(news, HEARTBEAT_S):
            yield b": alive\n\n"


class FeedResponse(StreamingResponse):
    """A feed on its way to a client. One that leaves it unread for UNREAD_S is let go: it may come back and go on."""

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def stream_response(self, send: Send) -> None:
        """Send the lines."""

        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(UNREAD_S):
                await send(message)

        try:
            await super().stream_response(send_soon)
        except TimeoutError:
            log.warning("a client does not read the events that it asked for: it is let go")


def _message(event: Event) -> bytes:
    document = {"id": event.event_id, "kind": event.kind, "at_s": event.at_s, "data": event.data}
    return f"id: {event.event_id}\nevent: {event.kind}\ndata: {json.dumps(document)}\n\n".encode()


async def _wait(news: asyncio.Event, seconds: float) -> bool:
    """Whether there were news within so many seconds."""
    try:
        await asyncio.wait_for(news.wait(), seconds)
    except TimeoutError:
        return False
    return True
