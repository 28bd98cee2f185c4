"""POST, GET /v1/demonstrations: expert answers that operators add to prompts while the run goes on.

curl -s $DASHBOARD/v1/demonstrations --json '{"prompt_id": "train:17", "text": "12+30=42"}'
"""

from __future__ import annotations

import logging
import re
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field
from redis.exceptions import RedisError

from common.additions import LONGEST_TEXT, Addition, AdditionState, AdditionVerdict, TooManyAdditions
from common.config.base import Frozen
from common.events import EventKind
from services.control.deps import Called, Control, Controlled
from services.control.documents import conforming
from services.control.examples import answered
from services.control.places import EntryId
from services.control.problems import Problem, documented
from services.control.routes.config import Document, body_of

router = APIRouter(prefix="/v1/demonstrations", tags=["orders"])
PATH = "/v1/demonstrations"
PREVIEW_CHARACTERS = 200
_PROMPT_ID = re.compile("train:(0|[1-9][0-9]{0,11})")

log = logging.getLogger(__name__)


class DemonstrationBody(Frozen):
    """An expert answer to a training prompt, as text."""

    prompt_id: str = Field(max_length=200, description="as in GET /v1/prompts", examples=["train:17"])
    text: str = Field(min_length=1, max_length=LONGEST_TEXT, description="the whole answer", examples=["12+30=42"])


class DemonstrationSummary(BaseModel):
    """A demonstration that was added. state: waiting (it is being graded), in use, or refused, for a reason.

    text: its beginning. characters: how long it is. reward: its grade, once there is one.
    """

    id: str
    prompt_id: str
    state: AdditionState
    reason: str
    reward: float | None
    by: str
    at_s: float = Field(description="Unix time in seconds")
    text: str
    characters: int


class DemonstrationView(DemonstrationSummary):
    """The same with its whole text."""


class Demonstrations(BaseModel):
    """The demonstrations that were added last, newest first."""

    demonstrations: list[DemonstrationSummary]


_WAITING: dict[str, Any] = {
    "id": "1767225600000-0",
    "prompt_id": "train:17",
    "state": "waiting",
    "reason": "",
    "reward": None,
    "by": "ada",
    "at_s": 1767225600.0,
    "text": "12+30=42",
    "characters": 8,
}
_IN_USE = {**_WAITING, "state": "in use", "reward": 1.0}
_PROBLEMS = documented(422, 503)


@router.post(
    "",
    status_code=202,
    summary="Add an expert answer to a prompt",
    responses=answered(_WAITING, 202, located=True) | documented(400, 404, 415, 422, 503),
    openapi_extra=body_of("DemonstrationBody", {"prompt_id": "train:17", "text": "12+30=42"}),
)
async def add(document: Document, control: Controlled, caller: Called, response: Response) -> DemonstrationView:
    """Have a demonstration graded and, if it is right, used from the prompt's next request on.

    What became of it is at Location. It is only shown to the policy by algorithms and hint policies that take
    demonstrations.

    `curl -s $DASHBOARD/v1/demonstrations --json '{"prompt_id": "train:17", "text": "12+30=42"}'`
    """
    body = conforming(DemonstrationBody, document)
    if not body.text.strip():
        raise Problem(422, "invalid-body", "text: it is empty: send the whole answer")
    await _check_prompt(control, body.prompt_id)
    at_s = control.clock()
    try:
        addition_id = await control.additions.add(body.prompt_id, body.text, caller.name, at_s=at_s)
    except TooManyAdditions as error:
        raise Problem(422, "no-room", str(error)) from error
    addition = Addition(addition_id, body.prompt_id, body.text, caller.name, at_s)
    await _tell(control, addition)
    response.headers["Location"] = f"{PATH}/{addition_id}"
    return DemonstrationView(**_fields(addition, AdditionVerdict(AdditionState.WAITING)))


@router.get(
    "",
    summary="Demonstrations that were added",
    responses=answered({"demonstrations": [_IN_USE]}) | _PROBLEMS,
)
async def demonstrations(
    control: Controlled, limit: Annotated[int, Query(ge=1, le=200, description="most in the answer")] = 50
) -> Demonstrations:
    """Those that were added last, and what became of each. `curl -s $DASHBOARD/v1/demonstrations`."""
    additions = await control.additions.newest(limit)
    verdicts = await control.additions.verdicts([a.addition_id for a in additions])
    rows = [_fields(a, verdicts[a.addition_id]) for a in additions]
    return Demonstrations(
        demonstrations=[DemonstrationSummary(**row | {"text": row["text"][:PREVIEW_CHARACTERS]}) for row in rows]
    )


@router.get(
    "/{addition_id}",
    summary="A demonstration that was added",
    responses=answered(_IN_USE) | _PROBLEMS | documented(404),
)
async def demonstration(
    addition_id: Annotated[EntryId, Path(description="as POST answered it", examples=["1767225600000-0"])],
    control: Controlled,
) -> DemonstrationView:
    """What became of one. `curl -s $DASHBOARD/v1/demonstrations/1767225600000-0`."""
    addition = await control.additions.find(addition_id)
    if addition is None:
        detail = f"no demonstration {addition_id} was added: GET {PATH} lists those that were"
        raise Problem(404, "no-demonstration", detail)
    verdicts = await control.additions.verdicts([addition_id])
    return DemonstrationView(**_fields(addition, verdicts[addition_id]))


async def _check_prompt(control: Control, prompt_id: str) -> None:
    """A Problem (404) unless the data set has this prompt. Before its size is known the curriculum judges."""
    client: Any = control.redis
    told: bytes | None = await client.hget(control.keys.facts, "train_prompts")
    row = _PROMPT_ID.fullmatch(prompt_id)
    count = int(told) if told is not None and told.isdigit() and len(told) < 16 else None
    if row is None or (count is not None and int(row[1]) >= count):
        known = "train:0, train:1 and so on" if count is None else f"train:0 to train:{count - 1}"
        raise Problem(404, "no-prompt", f"there is no training prompt {prompt_id!r}: they are called {known}")


async def _tell(control: Control, addition: Addition) -> None:
    """Write the event of an addition. It stands even if Redis goes away before its event is written."""
    data = {"id": addition.addition_id, "prompt_id": addition.prompt_id, "by": addition.by}
    data |= {"state": AdditionState.WAITING.value, "reason": ""}
    try:
        await control.events.append(EventKind.ADDITION, data, at_s=addition.at_s)
    except (RedisError, OSError) as error:
        log.warning("no event for an addition", extra={"addition": addition.addition_id, "error": str(error)})


def _fields(addition: Addition, verdict: AdditionVerdict) -> dict[str, Any]:
    return {
        "id": addition.addition_id,
        "prompt_id": addition.prompt_id,
        "state": verdict.state,
        "reason": verdict.reason,
        "reward": verdict.reward,
        "by": addition.by,
        "at_s": addition.at_s,
        "text": addition.text,
        "characters": len(addition.text),
    }
