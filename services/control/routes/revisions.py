"""GET /v1/config/revisions and POST /v1/config/rollback: the history of the live configuration, and the way back.

curl -s "$DASHBOARD/v1/config/revisions?limit=5"
curl -s $DASHBOARD/v1/config/rollback --json '{"revision": 3}'
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field, ValidationError

from common.config.base import Frozen
from common.config.live import Json
from common.errors import ConfigRejected
from services.control.deps import Controlled
from services.control.problems import documented
from services.control.routes.config import (
    WRITE_PROBLEMS,
    DecisionView,
    Document,
    Proposed,
    RevisionView,
    body_of,
    decided,
)

router = APIRouter(prefix="/v1/config", tags=["configuration"])


class InForceMark(BaseModel):
    """When a process put a revision in force: the learner's step then (null if it knew none), and Unix time."""

    step: int | None
    at_s: float


class HistoricRevision(RevisionView):
    """A revision of the history. in_force: process → when it put the revision in force."""

    in_force: dict[str, InForceMark]


class History(BaseModel):
    """Revisions, newest first. current: the number of the current one."""

    current: int
    revisions: list[HistoricRevision]


class Rollback(Frozen):
    """Which revision's configuration becomes current again."""

    revision: int = Field(description="the revision to return to", examples=[3])


@router.get("/revisions", summary="Every revision, newest first", responses=documented(401, 403, 422, 503))
async def revisions(
    control: Controlled,
    limit: Annotated[int, Query(ge=1, le=1000, description="most revisions in the answer")] = 100,
    before: Annotated[int | None, Query(ge=1, le=2**53, description="only revisions older than this one")] = None,
) -> History:
    """The history: each revision with who, when, why, what changed and where it came into force.

    `curl -s "$DASHBOARD/v1/config/revisions?limit=5"`
    """
    current = await control.config.number()
    last = current if before is None else min(current, before - 1)
    marks = await control.config.in_force()
    records: list[Json] = []
    if last >= 1:
        records = await control.config.records(max(1, last - limit + 1), last)
    views = [HistoricRevision(**record, in_force=_marks(marks.get(record["revision"], {}))) for record in records]
    return History(current=current, revisions=views[::-1])


@router.post(
    "/rollback",
    summary="Return to an earlier revision",
    responses=WRITE_PROBLEMS,
    openapi_extra=body_of("Rollback", {"revision": 3}),
)
async def roll_back(document: Document, proposal: Proposed, control: Controlled, response: Response) -> DecisionView:
    """Make an earlier revision's configuration current again. It gets a new number; nothing is erased.

    `curl -s $DASHBOARD/v1/config/rollback --json '{"revision": 3}'`
    """
    try:
        wanted = Rollback.model_validate(document, strict=True)
    except ValidationError as error:
        problems = [(".".join(map(str, e["loc"])), str(e["msg"])) for e in error.errors(include_url=False)]
        raise ConfigRejected(problems) from error
    reason = proposal.reason or f"roll back to revision {wanted.revision}"
    by = type(proposal)(proposal.author, reason, proposal.expected)
    return decided(await control.steering.roll_back(wanted.revision, by), response)


def _marks(marks: dict[str, Json]) -> dict[str, InForceMark]:
    return {process: InForceMark(step=mark.get("step"), at_s=mark["at_s"]) for process, mark in marks.items()}
