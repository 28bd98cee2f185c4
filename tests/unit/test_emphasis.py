"""Weights read from entropy: values worked by hand, detached, and finite whatever the policy says."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from learner_cases import asked, demonstration, group, in_float64, rollout
from torch import Tensor

from common.config.algorithm import LUFFY
from learner.batch import PolicyOutputs, TokenBatch
from learner.emphasis import (
    at_least,
    entropy_means,
    entropy_sums,
    exp_entropy,
    given_entropy,
    most_uncertain,
    sequence_entropy,
    threshold,
    token_entropy,
)
from learner.packing.layout import Layout
from learner.packing.plan import plan_step
from learner.selectors import demonstration_tokens, hint_tokens, policy_tokens, response_tokens


def batch() -> TokenBatch:
    """A demonstration of three tokens, then rollouts of two and one."""
    members = group(demonstration(3), rollout(2, 0.0), rollout(1, 1.0))
    (micro,) = map(in_float64, plan_step(asked(LUFFY()), [members], Layout(99)).micro_batches)
    return micro.tokens


def said(*entropy: float) -> PolicyOutputs:
    entropy_T = torch.tensor(entropy, dtype=torch.float64, requires_grad=True)
    return PolicyOutputs(torch.full_like(entropy_T, -1.0).requires_grad_(), entropy_T)


def numbers(tensor: Tensor) -> list[float]:
    assert not tensor.requires_grad, "a weight sends no gradient"
    return tensor.tolist()


SAID = (1.0, 2.0, 6.0, 4.0, 5.0, 0.5)


def test_the_entropy_of_a_sequence_is_the_mean_over_its_own_tokens() -> None:
    assert numbers(sequence_entropy(batch(), said(*SAID), over=response_tokens)) == [3, 3, 3, 4.5, 4.5, 0.5]
    assert numbers(sequence_entropy(batch(), said(*SAID), over=policy_tokens)) == [0, 0, 0, 4.5, 4.5, 0.5]
    assert numbers(token_entropy(batch(), said(*SAID))) == list(SAID)
    assert numbers(given_entropy(batch(), said(*SAID), entropy=2.0)) == [2.0] * 6


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_weight_is_an_exponential(sign: int) -> None:
    weight_T = exp_entropy(batch(), said(*SAID), entropy=token_entropy, sign=sign, scale=0.5)
    assert numbers(weight_T) == pytest.approx([0.5 * math.exp(sign * h) for h in SAID])


@pytest.mark.parametrize("entropy", [math.inf, -math.inf, 1e30, -1e30])
def test_the_weight_is_finite_at_any_entropy(entropy: float) -> None:
    for sign in (-1, 1):
        for of in (token_entropy, partial(sequence_entropy, over=response_tokens)):
            assert exp_entropy(batch(), said(*[entropy] * 6), entropy=of, sign=sign, scale=1.0).isfinite().all()


def test_sums_over_parts_give_the_mean_of_the_whole() -> None:
    over = (demonstration_tokens, policy_tokens, hint_tokens)
    sums = entropy_sums(batch(), said(*SAID), over=over)
    assert numbers(sums) == [9, 3, 9.5, 3, 0, 0]
    assert entropy_means(torch.cat([sums, sums + torch.tensor([1, 1] * 3)]), 3) == [19 / 7, 20 / 7, 1.0]
    assert entropy_means(torch.zeros(0), 3) == [0.0] * 3


def test_the_most_uncertain_tokens_are_counted_per_trajectory() -> None:
    kept_T = most_uncertain(batch(), said(*SAID), over=response_tokens, share=0.5)
    assert numbers(kept_T) == [0, 1, 1, 0, 1, 1]
    assert numbers(most_uncertain(batch(), said(*SAID), over=policy_tokens, share=1.0)) == [0, 0, 0, 1, 1, 1]
    assert not most_uncertain(batch(), said(*SAID), over=hint_tokens, share=1.0).any()


@pytest.mark.parametrize(("share", "wanted"), [(0.0, math.inf), (0.2, 9.0), (0.21, 7.0), (0.6, 5.0), (1.0, 1.0)])
def test_the_threshold_is_what_the_ceiling_of_the_share_reaches(share: float, wanted: float) -> None:
    assert threshold(torch.tensor([5.0, 1.0, 9.0, 7.0, 3.0]), share) == wanted


def test_a_share_of_nothing_has_no_threshold() -> None:
    assert threshold(torch.zeros(0), 0.5) == math.inf
    assert not at_least(batch(), said(*SAID), entropy=math.inf).any()


def test_a_rounded_share_does_not_keep_one_token_too_many() -> None:
    """0.07 · 100 is 7.000000000000001 in floating point."""
    assert threshold(torch.arange(100.0), 0.07) == 93.0


def test_tokens_at_the_threshold_are_taken_to_the_last_bit() -> None:
    near = 2.0 * (1 - 1e-7)
    assert numbers(at_least(batch(), said(1.0, 2.0, 6.0, near, 1.99, 0.0), entropy=2.0)) == [0, 1, 1, 1, 0, 0]
    assert numbers(at_least(batch(), said(*[0.0] * 6), entropy=0.0)) == [1] * 6
