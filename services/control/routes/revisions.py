"""GET /v1/config/revisions and POST /v1/config/rollback: the history of the live configuration, and the way back.

curl -s "$DASHBOARD/v1/config/revisions?limit=5"
curl -s $DASHBOARD/v1/config/revisions/3
curl -s $DASHBOARD/v1/config/rollback --json '{"revision": 3}'
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from common.config.base import Frozen
from common.config.live import Json
from services.control.audit import Audit, Surroundings, read_audit
from services.control.deps import Control, Controlled
from services.control.documents import conforming
from services.control.examples import answered
from services.control.overview import read_processes
from services.control.problems import Problem, documented
from services.control.routes.config import (
    DECISION,
    REVISION,
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
    """When a process put a revision in force: the first learner step under it (null if it knew none), Unix time."""

    step: int | None
    at_s: float


class HistoricRevision(RevisionView):
    """A revision of the history. in_force: process → when it put the revision in force."""

    in_force: dict[str, InForceMark]
    step: int | None = Field(description="the learner's first step under it; null: the learner does not have it yet")


class AuditedRevision(HistoricRevision, Audit):
    """A revision with what it did. before, after: means over the steps around it, once the learner has it in force."""


class History(BaseModel):
    """Revisions, newest first. current: the number of the current one."""

    current: int
    revisions: list[HistoricRevision]


class Rollback(Frozen):
    """Which revision's configuration becomes current again."""

    revision: int = Field(description="the revision to return to", examples=[3])


_HISTORIC = {**REVISION, "in_force": {"learner": {"step": 118, "at_s": 1767225603.5}}, "step": 118}
_BEFORE = {
    "reward": 0.41,
    "entropy": 0.62,
    "grad_norm": 0.7,
    "loss": 0.02,
    "effective_sample_size": 0.97,
    "staleness": 1.2,
    "tokens_per_s": 1410.0,
    "accuracy": {"hard": 0.4},
}
_AFTER = {**_BEFORE, "reward": 0.48, "entropy": 0.58, "accuracy": {"hard": 0.46}}
_AUDITED = {**_HISTORIC, "before": _BEFORE, "after": _AFTER, "steps_before": 10, "steps_after": 10}


@router.get(
    "/revisions",
    summary="Every revision, newest first",
    responses=answered({"current": 7, "revisions": [_HISTORIC]}) | documented(422, 503),
)
async def revisions(
    control: Controlled,
    limit: Annotated[int, Query(ge=1, le=1000, description="most revisions in the answer")] = 100,
    before: Annotated[int | None, Query(ge=1, le=2**53, description="only revisions older than this one")] = None,
) -> History:
    """The history: each revision with who, when, why, what changed and where it came into force.

    `curl -s "$DASHBOARD/v1/config/revisions?limit=5"`
    """
    current, learners = await control.config.number(), await _learners(control)
    last = current if before is None else min(current, before - 1)
    marks = await control.config.in_force()
    records: list[Json] = []
    if last >= 1:
        records = await control.config.records(max(1, last - limit + 1), last)
    views = [_historic(record, marks.get(record["revision"], {}), learners) for record in records]
    return History(current=current, revisions=views[::-1])


@router.get(
    "/revisions/{revision}",
    summary="One revision and what it did",
    responses=answered(_AUDITED) | documented(404, 422, 503),
)
async def audited(
    control: Controlled, revision: Annotated[int, Path(ge=1, le=2**53, description="its number", examples=[3])]
) -> AuditedRevision:
    """Who, when, why, what changed, where it came into force, and the metrics of up to 10 steps before and after.

    `curl -s $DASHBOARD/v1/config/revisions/3`
    """
    current, learners = await control.config.number(), await _learners(control)
    if revision > current:
        raise Problem(404, "no-such-revision", f"there is no revision {revision}: {current} is the newest")
    record = (await control.config.records(revision, revision))[0]
    historic = _historic(record, (await control.config.in_force()).get(revision, {}), learners)
    began_s = min((mark.at_s for name, mark in historic.in_force.items() if name in learners), default=None)
    nothing = Audit(before=Surroundings(), after=Surroundings(), steps_before=0, steps_after=0)
    audit = nothing if began_s is None else await read_audit(control.events, revision, began_s)
    return AuditedRevision(**historic.model_dump(), **audit.model_dump())


@router.post(
    "/rollback",
    summary="Return to an earlier revision",
    responses=answered(DECISION) | WRITE_PROBLEMS,
    openapi_extra=body_of("Rollback", {"revision": 3}),
)
async def roll_back(document: Document, proposal: Proposed, control: Controlled, response: Response) -> DecisionView:
    """Make an earlier revision's configuration current again. It gets a new number; nothing is erased.

    `curl -s $DASHBOARD/v1/config/rollback --json '{"revision": 3}'`
    """
    wanted = conforming(Rollback, document)
    reason = proposal.reason or f"roll back to revision {wanted.revision}"
    by = type(proposal)(proposal.author, reason, proposal.expected)
    return decided(await control.steering.roll_back(wanted.revision, by), response)


async def _learners(control: Control) -> frozenset[str]:
    """The names of processes that are the learner; a run that is not under way yet has the usual one."""
    return frozenset(p.name for p in await read_processes(control) if p.role == "learner") | {"learner"}


def _historic(record: Json, marks: dict[str, Json], learners: frozenset[str]) -> HistoricRevision:
    in_force = _marks(marks)
    steps = [mark.step for name, mark in in_force.items() if name in learners and mark.step is not None]
    return HistoricRevision(**record, in_force=in_force, step=min(steps, default=None))


def _marks(marks: dict[str, Json]) -> dict[str, InForceMark]:
    return {process: InForceMark(step=mark.get("step"), at_s=mark["at_s"]) for process, mark in marks.items()}
