"""GET /v1/prompts: the training prompts by how often the policy solves them, hardest first.

curl -s "$DASHBOARD/v1/prompts?solve_rate=0&min_attempts=16"
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from services.control.deps import Control, Controlled
from services.control.examples import answered
from services.control.problems import documented
from services.control.solve_rates import Band, Rank, SolveRate, page_of, read_solve_rates

router = APIRouter(prefix="/v1", tags=["state"])


class HintedRollouts(BaseModel):
    """Rollouts that continued a hint."""

    attempts: int
    solved: int


class PromptView(BaseModel):
    """A training prompt. attempts, solved: rollouts from the bare prompt. last: mean reward of the newest ones."""

    prompt_id: str
    text: str | None = Field(description="the beginning of it; null: it was not asked for since texts are kept")
    attempts: int
    solved: int
    solve_rate: float
    last: float | None
    hinted: HintedRollouts | None
    anchor: int | None = Field(description="the hint length that its last successful search found, in tokens")


class Prompts(BaseModel):
    """Prompts, hardest first. total: how many match. next: pass it as `after` for more; null: there are none."""

    total: int
    prompts: list[PromptView]
    next: str | None


_PROMPT = {
    "prompt_id": "train:17",
    "text": "12+30=",
    "attempts": 32,
    "solved": 0,
    "solve_rate": 0.0,
    "last": 0.0,
    "hinted": {"attempts": 8, "solved": 3},
    "anchor": None,
}


@router.get(
    "/prompts",
    summary="Training prompts by solve rate",
    responses=answered({"total": 1, "prompts": [_PROMPT], "next": None}) | documented(422, 503),
)
async def prompts(
    control: Controlled,
    solve_rate: Annotated[float | None, Query(ge=0, le=1, description="exactly this share was solved")] = None,
    solve_rate_min: Annotated[float, Query(ge=0, le=1, description="at least this share was solved")] = 0.0,
    solve_rate_max: Annotated[float, Query(ge=0, le=1, description="at most this share was solved")] = 1.0,
    min_attempts: Annotated[int, Query(ge=1, le=2**31, description="tried at least so often")] = 1,
    limit: Annotated[int, Query(ge=1, le=1000, description="most prompts in the answer")] = 100,
    place: Annotated[
        str | None,
        Query(alias="after", pattern="^[0-9]{1,9}/[1-9][0-9]{0,8}:[0-9]{1,12}$", description="`next` of an answer"),
    ] = None,
) -> Prompts:
    """Which prompts the policy never solves, sometimes solves, always solves: those that were tried at all.

    `curl -s "$DASHBOARD/v1/prompts?solve_rate=0&min_attempts=16"`
    """
    low, high = (solve_rate_min, solve_rate_max) if solve_rate is None else (solve_rate, solve_rate)
    records = await read_solve_rates(control.redis, control.keys)
    behind = None if place is None else _rank(place)
    page = await page_of(records, Band(min_attempts, low, high), behind, limit)
    following = _mark(page.prompts[-1]) if page.more else None
    return Prompts(total=page.total, prompts=await _views(control, page.prompts), next=following)


async def _views(control: Control, page: list[SolveRate]) -> list[PromptView]:
    client: Any = control.redis
    names = [prompt.prompt_id for prompt in page]
    texts: list[bytes | None] = await client.hmget(control.keys.prompt_texts, names) if names else []
    return [
        PromptView(
            prompt_id=prompt.prompt_id,
            text=None if text is None else text.decode("utf-8", "replace"),
            attempts=prompt.attempts,
            solved=prompt.solved,
            solve_rate=prompt.rate,
            last=prompt.last,
            hinted=HintedRollouts(attempts=prompt.hinted[0], solved=prompt.hinted[1]) if prompt.hinted else None,
            anchor=prompt.anchor,
        )
        for prompt, text in zip(page, texts, strict=True)
    ]


def _mark(prompt: SolveRate) -> str:
    """A place in the order, as it was when the answer was made: prompts move while they are trained on."""
    return f"{prompt.solved}/{prompt.attempts}:{prompt.row}"


def _rank(mark: str) -> Rank:
    share, _, row = mark.partition(":")
    solved, _, attempts = share.partition("/")
    return int(solved) / int(attempts), int(row)
