"""GET /v1/algorithms and /v1/hint-policies: what can be asked for, with papers, needs, defaults and JSON schemas."""

from __future__ import annotations

import inspect
from functools import cache

from fastapi import APIRouter
from pydantic import BaseModel, Field

from common.config.algorithm import ALGORITHMS, AlgorithmConfig
from common.config.base import Material
from common.config.hints import HINT_POLICIES, HintConfig
from common.config.live import Json
from services.control.examples import answered

router = APIRouter(prefix="/v1", tags=["catalogue"])


class AlgorithmView(BaseModel):
    """An algorithm. requires: material without which it learns nothing. accepts: what it can use."""

    kind: str = Field(examples=["luffy"])
    title: str
    paper: str
    summary: str
    requires: list[Material]
    accepts: list[Material]
    published_hints: Json = Field(
        description="the hint policy that its authors fed it with", examples=[{"kind": "none"}]
    )
    defaults: Json = Field(description="the published settings: what the kind alone stands for")
    json_schema: Json = Field(alias="schema", description="JSON schema of its parameters")


class HintPolicyView(BaseModel):
    """A hint policy. provides: what material its groups hold. suggestion: a valid beginning."""

    kind: str = Field(examples=["fixed"])
    title: str
    summary: str
    provides: list[Material] = Field(description="with the suggestion's parameters")
    defaults: Json
    suggestion: Json = Field(description="a document that is valid as it stands")
    json_schema: Json = Field(alias="schema", description="JSON schema of its parameters")


class Algorithms(BaseModel):
    """Every algorithm."""

    algorithms: list[AlgorithmView]


class HintPolicies(BaseModel):
    """Every hint policy."""

    hint_policies: list[HintPolicyView]


_LUFFY = {
    "kind": "luffy",
    "title": "LUFFY",
    "paper": "https://arxiv.org/abs/2504.14945",
    "summary": "Demonstrations as off-policy members of the group, their ratio shaped by x/(x+γ).",
    "requires": ["demonstrations"],
    "accepts": ["demonstrations", "hints"],
    "published_hints": {"kind": "demonstration"},
    "defaults": {"kind": "luffy", "rollouts": 7, "gamma": 0.1},
    "schema": {"type": "object", "properties": {"gamma": {"type": "number", "exclusiveMinimum": 0}}},
}
_FIXED = {
    "kind": "fixed",
    "title": "Fixed hint",
    "summary": "The policy continues the leading part of a demonstration: a ratio of it, or a number of tokens.",
    "provides": ["hints"],
    "defaults": {"kind": "fixed", "ratio": 0.5},
    "suggestion": {"kind": "fixed", "ratio": 0.5},
    "schema": {"type": "object", "properties": {"ratio": {"type": "number", "maximum": 1}}},
}


@router.get("/algorithms", summary="Every algorithm", responses=answered({"algorithms": [_LUFFY]}))
async def algorithms() -> Algorithms:
    """What a batch can teach. `curl -s $DASHBOARD/v1/algorithms`."""
    return _algorithms()


@router.get("/hint-policies", summary="Every hint policy", responses=answered({"hint_policies": [_FIXED]}))
async def hint_policies() -> HintPolicies:
    """What the policy can be shown of demonstrations. `curl -s $DASHBOARD/v1/hint-policies`."""
    return _hint_policies()


@cache
def _algorithms() -> Algorithms:
    # Made once, as are the hint policies: their schemas take long enough to hold up everyone else's call.
    return Algorithms(algorithms=[_algorithm(a) for a in ALGORITHMS])


@cache
def _hint_policies() -> HintPolicies:
    return HintPolicies(hint_policies=[_hint_policy(h) for h in HINT_POLICIES])


def _algorithm(config: type[AlgorithmConfig]) -> AlgorithmView:
    return AlgorithmView(
        kind=config.model_fields["kind"].default,
        title=config.title,
        paper=config.paper,
        summary=inspect.getdoc(config) or "",
        requires=sorted(config.requires),
        accepts=sorted(config.accepts),
        published_hints=config.published_hints,
        defaults=config.model_construct().model_dump(mode="json"),
        schema=config.model_json_schema(),
    )


def _hint_policy(config: type[HintConfig]) -> HintPolicyView:
    suggested = config.model_validate(config.suggestion)
    return HintPolicyView(
        kind=config.model_fields["kind"].default,
        title=config.title,
        summary=inspect.getdoc(config) or "",
        provides=sorted(suggested.provides),
        defaults=config.model_construct().model_dump(mode="json"),
        suggestion=suggested.model_dump(mode="json"),
        schema=config.model_json_schema(),
    )
