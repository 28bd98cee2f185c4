"""Normalisers: counts and shares worked by hand."""

from __future__ import annotations

import pytest
import torch
from learner_cases import Lengths, asked, demonstration, group, in_float64, rollout, trajectory

from common.config.algorithm import LUFFY
from common.config.base import Norm
from learner.batch import TokenBatch
from learner.normalisers import normaliser
from learner.packing.layout import Layout
from learner.packing.plan import plan_step
from learner.selectors import Selector, expert_tokens, policy_tokens, response_tokens


@pytest.fixture
def batch() -> TokenBatch:
    """Rows in the plan's order: a demonstration of 4, a hint of 1 with 2 sampled, a rollout of 1; N = 3, T = 8."""
    members = (rollout(1), trajectory(Lengths(hint=1, sampled=2)), demonstration(4))
    (micro,) = plan_step(asked(LUFFY()), [group(*members)], Layout(10**6)).micro_batches
    return in_float64(micro).tokens


@pytest.mark.parametrize(
    ("norm", "over", "count", "shares"),
    [
        (Norm.TOKEN_MEAN, policy_tokens, 3, [1] * 8),
        (Norm.TOKEN_MEAN, expert_tokens, 5, [1] * 8),
        (Norm.TOKEN_MEAN, response_tokens, 8, [1] * 8),
        (Norm.SEQUENCE_MEAN, policy_tokens, 2, [1] * 4 + [1 / 2] * 3 + [1]),
        (Norm.SEQUENCE_MEAN, expert_tokens, 2, [1 / 4] * 4 + [1] * 3 + [1]),
        (Norm.SEQUENCE_MEAN, response_tokens, 3, [1 / 4] * 4 + [1 / 3] * 3 + [1]),
        (Norm.CONSTANT, policy_tokens, 30, [1] * 8),
    ],
)
def test_a_norm_counts_and_shares_as_worked_by_hand(
    batch: TokenBatch, norm: Norm, over: Selector, count: float, shares: list[float]
) -> None:
    found = normaliser(norm, over=over, longest_response=10)
    assert found.count(batch) == count
    torch.testing.assert_close(found.shares(batch), torch.tensor(shares, dtype=torch.float64))


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("over", [policy_tokens, expert_tokens, response_tokens])
def test_counts_of_micro_batches_add_up_to_the_count_of_the_whole(norm: Norm, over: Selector) -> None:
    groups = [
        group(rollout(3), rollout(5), demonstration(4)),
        group(rollout(1), trajectory(Lengths(hint=2, sampled=2))),
    ]
    algorithm, found = asked(LUFFY()), normaliser(norm, over=over, longest_response=10)

    def count(micro_batch_tokens: int) -> float:
        return sum(
            found.count(m.tokens) for m in plan_step(algorithm, groups, Layout(micro_batch_tokens)).micro_batches
        )

    assert count(1) == count(12) == count(10**6)
