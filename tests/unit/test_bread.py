"""BREAD: numbers worked by hand; it is GRPO on the groups that branch."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from learner_cases import (
    BigramPolicy,
    Lengths,
    asked,
    at_ratios,
    close,
    group,
    mixed_groups,
    rollout,
    run_step,
    told,
    trajectory,
)

from common.config.algorithm import BREAD, GRPO
from learner.packing.layout import Layout
from learner.packing.plan import plan_step

RIGHT = trajectory(Lengths(hint=3, sampled=2), 1.0, seed=1, expert_known=True)
WRONG = trajectory(Lengths(hint=3, sampled=1), 0.0, seed=2, expert_known=True)
A = 0.5 / (sqrt(0.5) + 1e-6)


def test_a_branched_group_is_grpo_on_what_follows_the_anchor() -> None:
    """Ratios 1 and 1.5 (clipped at 1.2) with A, 1.1 with -A; lengths 2 and 1: L = ½ (-A 2.2/2 + 1.1A)."""
    logprobs = at_ratios([RIGHT, WRONG], [0.1, 0.2, 0.3, 1.0, 1.5, 0.1, 0.2, 0.3, 1.1])
    result = told(asked(BREAD()), [group(RIGHT, WRONG)], logprobs)
    assert result.value == pytest.approx(0.5 * (-A * 1.1 + A * 1.1), abs=1e-15)
    close(result.by_logprob_T, [0.0, 0.0, 0.0, -A / 4, 0.0, 0.0, 0.0, 0.0, 1.1 * A / 2])
    assert not result.by_entropy_T.any()


def test_the_anchor_is_context_and_appears_in_no_figure() -> None:
    logprobs = at_ratios([RIGHT, WRONG], [0.1, 0.2, 0.3, 1.0, 1.0, 0.1, 0.2, 0.3, 1.0])
    result = told(asked(BREAD()), [group(RIGHT, WRONG)], logprobs)
    assert set(result.sums.record()["ratio"]) == {"policy"}
    assert result.plan.tokens == 3


def test_a_plain_group_that_was_not_branched_is_grpo_too() -> None:
    members = (rollout(3, 1.0, seed=1), rollout(1, 0.0, seed=2))
    logprobs = at_ratios(members, [1.0, 1.5, 0.5, 0.5])
    found, wanted = (told(asked(config), [group(*members)], logprobs) for config in (BREAD(), GRPO()))
    assert found.value == wanted.value
    assert torch.equal(found.by_logprob_T, wanted.by_logprob_T)


def test_bread_is_grpo_on_any_groups() -> None:
    found, wanted = (
        run_step(asked(config), plan_step(asked(config), mixed_groups(), Layout(20)), BigramPolicy())
        for config in (BREAD(), GRPO())
    )
    assert any(gradient.any() for gradient in wanted[0])
    for mine, other in zip(found[0], wanted[0], strict=True):
        assert torch.equal(mine, other)


def test_a_group_that_fails_from_its_last_anchor_too_teaches_nothing() -> None:
    members = [trajectory(Lengths(hint=3, sampled=n), 0.0, seed=n) for n in (2, 1)]
    assert not told(asked(BREAD()), [group(*members)], [-1.0] * 9).by_logprob_T.any()
