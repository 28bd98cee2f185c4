"""Feasibility: what cannot be carried out is refused with the reason, before anything is sampled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_engine import encode
from tiny_tokenizer import EOS

from common.trajectory import AnchorSearch, Demonstration, GroupPlan, Purpose, Request, Sampling
from services.generator.feasibility import RequestRefused, fitted

DEMONSTRATION = Demonstration(np.array([*encode("a;b;#3"), EOS], np.int32), boundaries=(2, 4))
REQUEST = Request(
    request_id="r1",
    prompt_id="p1",
    purpose=Purpose.TRAIN,
    revision=3,
    prompt_tokens=encode("1+2="),
    answer="3",
    plan=GroupPlan(plain=2),
    sampling=Sampling(1.0, 16),
)
SEARCH = AnchorSearch(cuts=(2, 4), members=4, probes=4, above=0.0, below=1.0)


def with_plan(plan: GroupPlan, **changes: Any) -> Request:
    return replace(REQUEST, plan=plan, demonstrations=(DEMONSTRATION,), **changes)


def searching(plan: GroupPlan | None = None, **changes: Any) -> Request:
    return with_plan(plan or GroupPlan(plain=2), search=replace(SEARCH, **changes))


@pytest.mark.parametrize(
    ("request_", "context", "said"),
    [
        (replace(REQUEST, prompt_tokens=encode("")), 64, "the prompt is empty"),
        (REQUEST, 4, "the prompt has 4 tokens and the model's context 4: nothing is left"),
        (with_plan(GroupPlan(plain=0)), 64, "no members"),
        (with_plan(GroupPlan(plain=-1, demonstrations=1)), 64, "counts from zero"),
        (with_plan(GroupPlan(plain=1, demonstrations=1, gate=-1)), 64, "counts from zero"),
        (replace(REQUEST, sampling=Sampling(1.0, 0)), 64, "max_tokens is 0"),
        (replace(REQUEST, plan=GroupPlan(1, 1, 2)), 64, "needs 1 demonstrations and the request brings 0"),
        (with_plan(GroupPlan(1, demonstrations=2)), 64, "needs 2 demonstrations and the request brings 1"),
        (with_plan(GroupPlan(1, demonstrations=2, gate=0)), 64, "needs 2 demonstrations and the request brings 1"),
        (with_plan(GroupPlan(0, 1, 7)), 64, "a hint of 7 tokens leaves nothing to sample"),
        (with_plan(GroupPlan(0, 1, 5)), 9, "hint plus continuation may have 5"),
        (replace(REQUEST, score_demonstration=True), 64, "needs 1 demonstrations"),
        (with_plan(GroupPlan(1, demonstrations=1), purpose=Purpose.GRADE), 64, "one demonstration and no rollouts"),
        (replace(REQUEST, plan=GroupPlan(0, demonstrations=1), purpose=Purpose.GRADE), 64, "the request brings 0"),
    ],
)
def test_an_impossible_plan_is_refused_with_the_reason(request_: Request, context: int, said: str) -> None:
    with pytest.raises(RequestRefused, match=said):
        fitted(request_, context)


@pytest.mark.parametrize(
    ("request_", "context", "said"),
    [
        (replace(REQUEST, search=SEARCH), 64, "a search needs a demonstration to cut, and the request brings none"),
        (replace(searching(), purpose=Purpose.EVALUATE), 64, "it cannot search for a hint"),
        (
            replace(searching(GroupPlan(0, demonstrations=1)), purpose=Purpose.GRADE),
            64,
            "the purpose is to grade, not to train: it cannot search for a hint",
        ),
        (searching(GroupPlan(2, 2, 2)), 64, "the plan asks for 2 of its own"),
        (searching(GroupPlan(0)), 64, "the plan has none"),
        (searching(members=0), 64, "not 4 of 0"),
        (searching(probes=0), 64, "not 0 of 4"),
        (searching(probes=-1), 64, "not -1 of 4"),
        (searching(above=0.5, below=0.5), 64, "lies between 0.5 and 0.5"),
        (searching(above=-0.1), 64, "between -0.1 and 1.0"),
        (searching(below=1.1), 64, "between 0.0 and 1.1"),
        (searching(above=float("nan")), 64, "between nan and 1.0"),
        (searching(cuts=(4, 2)), 64, "rise from 1 token, and these do not: 4, 2"),
        (searching(cuts=(2, 2)), 64, "these do not: 2, 2"),
        (searching(cuts=(0, 2)), 64, "these do not: 0, 2"),
        (searching(cuts=(-3, 2)), 64, "these do not: -3, 2"),
        (searching(cuts=(2, 7)), 64, "a cut after 7 tokens leaves nothing of a demonstration of 7"),
        (searching(anchor=-1), 64, "an anchor is a number of tokens, not -1"),
        (searching(GroupPlan(0), always=True), 6, "no cut leaves anything to sample within 2 tokens"),
    ],
)
def test_an_impossible_search_is_refused_with_the_reason(request_: Request, context: int, said: str) -> None:
    with pytest.raises(RequestRefused, match=said):
        fitted(request_, context)


@pytest.mark.parametrize(
    "request_",
    [
        searching(),
        searching(cuts=()),
        searching(GroupPlan(0), always=True),
        searching(GroupPlan(2, demonstrations=1, gate=0)),
        with_plan(GroupPlan(2, gate=0)),
        with_plan(GroupPlan(0, demonstrations=1), purpose=Purpose.GRADE),
    ],
)
def test_what_can_be_carried_out_only_has_its_length_fitted(request_: Request) -> None:
    assert fitted(request_, 64) == request_ or fitted(request_, 64).plan == request_.plan
    assert fitted(request_, 9).sampling == Sampling(1.0, 5)
