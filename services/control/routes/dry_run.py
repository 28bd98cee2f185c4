"""POST, GET /v1/config/dry-run: what other configurations would do with the batch that the learner trains on now.

curl -s $DASHBOARD/v1/config/dry-run --json '{"candidates": [{"patch": {"algorithm": {"gamma": 0.3}}}]}'
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from common.config.base import Frozen
from common.config.live import LiveConfig
from common.config.store import Revision
from common.errors import ConfigRejected
from common.trials import KEPT_S, MOST_CANDIDATES, MOST_WAITING
from services.control.commands import LEARNER
from services.control.deps import Control, Controlled
from services.control.documents import conforming
from services.control.examples import answered
from services.control.findings import ANSWERED, WAITING, DryRunView, view_of
from services.control.overview import read_orders
from services.control.problems import Problem, documented
from services.control.routes.config import Document, body_of
from services.control.waiting import awaited

router = APIRouter(prefix="/v1/config", tags=["configuration"])
PATH = "/v1/config/dry-run"

TrialId = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="of a dry run", examples=["5f0c2d9e7a1b4c68"])]


class CandidateBody(Frozen):
    """A change to try. label: what to call it in the answer; "candidate 1" and so on if it is left out."""

    label: str = Field(default="", max_length=80, examples=["γ = 0.3"])
    patch: dict[str, Any] = Field(
        description="a JSON merge patch of the current configuration", examples=[{"algorithm": {"gamma": 0.3}}]
    )


class DryRunBody(Frozen):
    """Changes to try on the learner's next step."""

    candidates: list[CandidateBody] = Field(min_length=1, max_length=MOST_CANDIDATES)


_BODY = {"candidates": [{"label": "γ = 0.3", "patch": {"algorithm": {"gamma": 0.3}}}]}


@router.post(
    "/dry-run",
    summary="Try changes without making them",
    responses=answered(ANSWERED) | answered(WAITING, 202, DryRunView, located=True) | documented(400, 415, 422, 503),
    openapi_extra=body_of("DryRunBody", _BODY),
)
async def try_out(
    document: Document,
    control: Controlled,
    response: Response,
    wait_s: Annotated[float, Query(ge=0, le=60, description="how long to wait for the answer")] = 20.0,
) -> DryRunView:
    """What each candidate would do with the batch of the learner's next step: nothing is changed, nothing is trained.

    A patch is merged into the current configuration and validated like PATCH /v1/config. 202: the answer is not there
    yet, Location says where it will be for ten minutes.

    `curl -s $DASHBOARD/v1/config/dry-run --json '{"candidates": [{"patch": {"algorithm": {"gamma": 0.3}}}]}'`
    """
    wanted = conforming(DryRunBody, document)
    current = await control.config.current()
    if current is None:
        raise Problem(503, "no-revision", "there is no live configuration yet: try again in a moment")
    asked = await control.dry_runs.ask(current, await _candidates(control, current, wanted), control.clock())
    if asked is None:
        detail = f"{MOST_WAITING} dry runs wait for the learner already: try again after its next step"
        raise Problem(429, "too-many-dry-runs", detail, headers={"Retry-After": "5"})
    notice = await _why_late(control)
    answer = await awaited(lambda: control.dry_runs.answer(asked.trial_id), 0 if notice else wait_s, control)
    if answer is not None:
        return view_of(asked, answer)
    response.status_code = 202
    response.headers["Location"] = f"{PATH}/{asked.trial_id}"
    return view_of(asked, None, notice or f"the learner has not answered within {wait_s:g} s: ask again at Location")


@router.get(
    "/dry-run/{trial_id}",
    summary="The answer of a dry run",
    responses=answered(ANSWERED) | documented(404, 422, 503),
)
async def read(trial_id: TrialId, control: Controlled) -> DryRunView:
    """A dry run that was asked earlier, answered or waiting.

    `curl -s $DASHBOARD/v1/config/dry-run/5f0c2d9e7a1b4c68`
    """
    found = await control.dry_runs.find(trial_id, control.clock())
    if found is None:
        detail = f"there is no dry run {trial_id}: they are kept for {KEPT_S // 60} minutes; ask again with POST {PATH}"
        raise Problem(404, "no-dry-run", detail)
    return view_of(found, found.answer, "" if found.answer else await _why_late(control))


async def _candidates(control: Control, current: Revision, wanted: DryRunBody) -> list[tuple[str, LiveConfig]]:
    """Each candidate as a whole configuration; ConfigRejected names every problem of all of them."""
    candidates: list[tuple[str, LiveConfig]] = []
    problems: list[tuple[str, str]] = []
    for number, asked in enumerate(wanted.candidates):
        try:
            live = await control.steering.preview(current, asked.patch)
            candidates.append((asked.label or f"candidate {number + 1}", live))
        except ConfigRejected as error:
            at = f"candidates.{number}.patch"
            problems += [(f"{at}.{path}" if path else at, sentence) for path, sentence in error.problems]
    if problems:
        raise ConfigRejected(problems)
    return candidates


async def _why_late(control: Control) -> str:
    """Why the learner will not answer soon; "" if it works."""
    processes, standing = await read_orders(control)
    if not any(p.alive for p in processes if p.role == LEARNER):
        return "no learner is alive: this will be answered at the next step, once there is one"
    if standing.pause is not None:
        return "the learner is paused: this will be answered at its next step, after POST /v1/learner/resume"
    return ""
