"""GET /v1/quarantine: the messages that could not be used, newest first. `curl -s $DASHBOARD/v1/quarantine`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from services.control.deps import Controlled
from services.control.examples import answered
from services.control.places import EntryId, is_start
from services.control.problems import documented

router = APIRouter(prefix="/v1", tags=["state"])


class QuarantinedMessage(BaseModel):
    """One message that could not be used."""

    id: str
    at_s: float = Field(description="Unix time in seconds")
    stream: str
    reason: str
    by: str = Field(description="the process that put it there")
    group_id: str
    bytes: int = Field(description="size of the message")


class Quarantine(BaseModel):
    """Messages that could not be used, newest first. total: how many there are."""

    total: int
    messages: list[QuarantinedMessage]


_MESSAGE = {
    "id": "1767225600000-0",
    "at_s": 1767225600.0,
    "stream": "groups",
    "reason": "the message is cut short",
    "by": "learner",
    "group_id": "",
    "bytes": 812,
}


@router.get(
    "/quarantine",
    summary="Messages that could not be used",
    responses=answered({"total": 1, "messages": [_MESSAGE]}) | documented(422, 503),
)
async def quarantine(
    control: Controlled,
    limit: Annotated[int, Query(ge=1, le=1000, description="most messages in the answer")] = 100,
    before: Annotated[EntryId | None, Query(description="only messages older than this id")] = None,
) -> Quarantine:
    """What was put aside, why and by whom. `curl -s $DASHBOARD/v1/quarantine`."""
    key = control.keys.quarantine
    entries: Any = []
    if before is None or not is_start(before):
        entries = await control.redis.xrevrange(key, max="+" if before is None else f"({before}", count=limit)
    return Quarantine(total=await control.redis.xlen(key), messages=[_message(*entry) for entry in entries])


def _message(entry_id: bytes, fields: dict[bytes, bytes]) -> QuarantinedMessage:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode("utf-8", "replace")

    return QuarantinedMessage(
        id=entry_id.decode(),
        at_s=int(entry_id.partition(b"-")[0]) / 1000,
        stream=text(b"stream"),
        reason=text(b"reason"),
        by=text(b"by"),
        group_id=text(b"id"),
        bytes=len(fields.get(b"payload", b"")),
    )
