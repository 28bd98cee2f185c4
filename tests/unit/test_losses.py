"""Per-token losses: values and gradients worked by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from common.trajectory import Source
from learner.batch import PolicyOutputs, TokenBatch
from learner.losses import (
    Clip,
    TokenLoss,
    clipped_surrogate,
    is_clipped,
    negative_entropy,
    negative_logprob,
    shaped_surrogate,
    surrogate,
)
from learner.ratios import gamma_shaped


def one_token(advantage: float, *, behaviour: float = 1.0, expert: float = 1.0) -> TokenBatch:
    """A batch of one token whose π_old and π_φ are given as probabilities."""
    real = partial(torch.tensor, dtype=torch.float64)
    return TokenBatch(
        labels_T=torch.tensor([3]),
        sources_T=torch.tensor([Source.POLICY], dtype=torch.uint8),
        advantages_T=real([advantage]),
        behaviour_logprobs_T=real([behaviour]).log(),
        expert_logprobs_T=real([expert]).log(),
        has_expert_T=torch.tensor([True]),
        segment_T=torch.tensor([0]),
        rewards_N=real([1.0]),
        is_demonstration_N=torch.tensor([False]),
    )


def outcome(token_loss: TokenLoss, batch: TokenBatch, probability: float) -> tuple[float, float]:
    """Value of the loss and its derivative by log p, where the policy gives the token this probability."""
    logprobs_T = torch.tensor([probability], dtype=torch.float64).log().requires_grad_()
    loss_T: Tensor = token_loss(batch, PolicyOutputs(logprobs_T, torch.zeros_like(logprobs_T)))
    (gradient_T,) = torch.autograd.grad(loss_T.sum(), logprobs_T)
    return loss_T.item(), gradient_T.item()


def test_imitation_costs_the_negative_logprob_with_slope_minus_one() -> None:
    value, slope = outcome(negative_logprob, one_token(0.0), 0.5)
    assert (value, slope) == pytest.approx((0.6931471805599453, -1.0))


def test_the_entropy_bonus_is_the_negative_entropy() -> None:
    entropy_T = torch.tensor([1.25], dtype=torch.float64, requires_grad=True)
    loss_T = negative_entropy(one_token(0.0), PolicyOutputs(torch.zeros(1), entropy_T))
    loss_T.sum().backward()
    assert loss_T.item() == -1.25
    assert entropy_T.grad is not None
    assert entropy_T.grad.item() == -1.0


@pytest.mark.parametrize(("probability", "behaviour"), [(0.6, 0.4), (0.2, 0.4), (0.4, 0.4)])
@pytest.mark.parametrize("advantage", [2.0, -0.5])
def test_the_surrogate_is_ratio_times_advantage_and_so_is_its_slope(
    probability: float, behaviour: float, advantage: float
) -> None:
    expected = -probability / behaviour * advantage
    assert outcome(surrogate, one_token(advantage, behaviour=behaviour), probability) == pytest.approx(
        (expected, expected)
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope", "clipped"),
    [
        (1.5, 1.0, -1.2, 0.0, True),
        (1.5, -1.0, 1.5, 1.5, False),
        (0.5, 1.0, -0.5, -0.5, False),
        (0.5, -1.0, 0.8, 0.0, True),
        (1.0, 2.0, -2.0, -2.0, False),
        (1.1, -2.0, 2.2, 2.2, False),
        (0.9, 0.0, 0.0, 0.0, False),
    ],
)
def test_the_clipped_surrogate_cuts_off_only_what_moves_too_far_in_its_own_favour(
    ratio: float, advantage: float, value: float, slope: float, clipped: bool
) -> None:
    batch = one_token(advantage, behaviour=0.4)
    found = outcome(partial(clipped_surrogate, clip=Clip(0.2, 0.2)), batch, 0.4 * ratio)
    assert found == pytest.approx((value, slope), abs=1e-12)
    outputs = PolicyOutputs(torch.tensor([0.4 * ratio], dtype=torch.float64).log(), torch.zeros(1))
    assert is_clipped(batch, outputs, clip=Clip(0.2, 0.2)).item() is clipped


def test_clip_higher_leaves_more_room_above_than_below() -> None:
    loss = partial(clipped_surrogate, clip=Clip(0.2, 0.28))
    assert outcome(loss, one_token(1.0), 1.27) == pytest.approx((-1.27, -1.27))
    assert outcome(loss, one_token(1.0), 1.29) == pytest.approx((-1.28, 0.0))


@pytest.mark.parametrize("advantage", [0.875, -0.125])
@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_the_shaped_surrogate_pulls_with_gamma_x_over_x_plus_gamma_squared(
    advantage: float, probability: float, gamma: float
) -> None:
    loss = partial(shaped_surrogate, shape=partial(gamma_shaped, gamma=gamma))
    expected = (
        -advantage * probability / (probability + gamma),
        -advantage * gamma * probability / (probability + gamma) ** 2,
    )
    assert outcome(loss, one_token(advantage), probability) == pytest.approx(expected, rel=1e-12)


def test_the_shaped_surrogate_divides_by_the_experts_probability_where_it_is_known() -> None:
    """x = 0.2/0.5 = 0.4 with γ = 0.1: f = 0.8, slope γx/(x+γ)² = 0.04/0.25 = 0.16."""
    loss = partial(shaped_surrogate, shape=partial(gamma_shaped, gamma=0.1))
    assert outcome(loss, one_token(1.0, expert=0.5), 0.2) == pytest.approx((-0.8, -0.16), rel=1e-12)
