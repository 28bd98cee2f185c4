"""GET /v1/groups: groups as the learner saw them, newest first, and token by token.

curl -s "$DASHBOARD/v1/groups?prompt_id=train:17"
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from services.control.deps import Controlled
from services.control.examples import answered
from services.control.places import EntryId, is_start
from services.control.portraits import GroupPortrait, GroupSummary, portrait, summary
from services.control.problems import Problem, documented

router = APIRouter(prefix="/v1/groups", tags=["state"])


class Groups(BaseModel):
    """Groups, newest first. previous: pass it as `before` for older ones; null: there are none."""

    groups: list[GroupSummary]
    previous: str | None
    notice: str = Field(default="", description="why tokens are shown by their ids, if they are")


_SUMMARY = {
    "id": "1767225600000-0",
    "group_id": "train:3fa1b2c4:940:train:17",
    "prompt_id": "train:17",
    "step": 118,
    "revision": 4,
    "version": 117,
    "algorithm": "luffy",
    "generator": "generator-1",
    "at_s": 1767225600.0,
    "rewards": [0.0, 1.0],
    "kinds": ["rollout", "demonstration"],
    "tokens": 4,
    "prompt": "12+30=",
}
_POLICY = {
    "kind": "rollout",
    "reward": 0.0,
    "reward_parts": {},
    "advantage": -0.5,
    "versions": [116],
    "tokens": {
        "id": [4, 5, 13, 6, 3, 14, 7, 1],
        "text": ["1", "2", "+", "3", "0", "=", "4", "<eos>"],
        "source": ["prompt"] * 6 + ["policy"] * 2,
        "version": [None] * 6 + [116, 116],
        "behaviour_logprob": [None] * 6 + [-0.41, -1.2],
        "policy_logprob": [None] * 6 + [-0.4, -1.31],
        "expert_logprob": [None] * 8,
        "ratio": [None] * 6 + [1.01005, 0.895834],
    },
}


@router.get(
    "",
    summary="Groups as the learner saw them",
    responses=answered({"groups": [_SUMMARY], "previous": None, "notice": ""}) | documented(422, 503),
)
async def groups(
    control: Controlled,
    limit: Annotated[int, Query(ge=1, le=100, description="most groups in the answer")] = 20,
    before: Annotated[EntryId | None, Query(description="only groups older than this id")] = None,
    prompt_id: Annotated[str, Query(max_length=200, description="only groups of this prompt")] = "",
) -> Groups:
    """A few groups of each step are kept for a while: [learner] examined_groups. `curl -s $DASHBOARD/v1/groups`."""
    if before is not None and is_start(before):
        return Groups(groups=[], previous=None)
    found = await control.examined.newest(limit, before=before or "+", prompt_id=prompt_id)
    spelling = await control.words.spelling()
    rows = await asyncio.to_thread(lambda: [summary(kept, spelling) for kept in found])
    return Groups(
        groups=[GroupSummary.model_validate(row) for row in rows],
        previous=found[-1].entry_id if len(found) == limit else None,
        notice=spelling.notice,
    )


@router.get(
    "/{entry_id}",
    summary="A group token by token",
    response_model=GroupPortrait,
    responses=answered({**_SUMMARY, "trajectories": [_POLICY], "notice": ""}) | documented(404, 422, 503),
)
async def group(
    entry_id: Annotated[EntryId, Path(description="of a group in GET /v1/groups", examples=["1767225600000-0"])],
    control: Controlled,
) -> Response:
    """Text, source, version, log-probs and ratio of every token, advantage and reward of every trajectory.

    `curl -s $DASHBOARD/v1/groups/1767225600000-0`
    """
    kept = await control.examined.entry(entry_id)
    if kept is None:
        detail = f"no group {entry_id} is kept (any more): GET /v1/groups lists those that are"
        raise Problem(404, "no-group", detail)
    spelling = await control.words.spelling()
    # Written in a thread: a group of long trajectories has more numbers than the loop may wait for.
    body = await asyncio.to_thread(lambda: json.dumps(portrait(kept, spelling), allow_nan=False))
    return Response(body, media_type="application/json")
