"""Ratios and their shapes: values and gradients worked by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import Lengths, asked, close, demonstration, group, in_float64, rollout, trajectory

from common.config.algorithm import LUFFY
from common.trajectory import Trajectory
from learner.batch import MicroBatch, PolicyOutputs
from learner.packing.layout import Layout
from learner.packing.plan import plan_step
from learner.ratios import (
    LOG_RATIO_LIMIT,
    Shape,
    clamped,
    expert_ratio,
    gamma_shaped,
    log_shaped,
    own_ratio,
    policy_log_ratio,
    power_shaped,
    ratio,
    sequence_log_ratio,
    sqrt_shaped,
    unshaped,
)
from learner.selectors import policy_tokens


def test_a_ratio_is_the_quotient_of_the_two_probabilities_and_its_own_gradient() -> None:
    logprobs_T = torch.tensor([0.6, 0.1], dtype=torch.float64).log().requires_grad_()
    reference_T = torch.tensor([0.4, 0.5], dtype=torch.float64).log()
    ratio_T = ratio(logprobs_T, reference_T)
    torch.testing.assert_close(ratio_T, torch.tensor([1.5, 0.2], dtype=torch.float64))
    ratio_T.sum().backward()
    torch.testing.assert_close(logprobs_T.grad, torch.tensor([1.5, 0.2], dtype=torch.float64))


@pytest.mark.parametrize("logprob", [-math.inf, -1e30, -1e4, 0.0])
@pytest.mark.parametrize("reference", [-1e30, -1e4, 0.0])
def test_a_ratio_stays_finite_with_its_gradient_however_far_apart_the_policies_are(
    logprob: float, reference: float
) -> None:
    logprobs_T = torch.tensor([logprob], dtype=torch.float32, requires_grad=True)
    ratio_T = ratio(logprobs_T, torch.tensor([reference], dtype=torch.float32))
    ratio_T.square().sum().backward()
    assert math.exp(-LOG_RATIO_LIMIT) * 0.99 <= ratio_T.item() <= math.exp(LOG_RATIO_LIMIT) * 1.01
    assert logprobs_T.grad is not None
    assert torch.isfinite(logprobs_T.grad).all()


@pytest.mark.parametrize(
    ("shape", "x", "value", "slope"),
    [
        (partial(gamma_shaped, gamma=0.1), 0.1, 0.5, 2.5),
        (partial(gamma_shaped, gamma=0.1), 0.9, 0.9, 0.1),
        (partial(gamma_shaped, gamma=0.1), 1.0, 1 / 1.1, 0.1 / 1.21),
        (partial(gamma_shaped, gamma=1.0), 1.0, 0.5, 0.25),
        (unshaped, 0.3, 0.3, 1.0),
        (sqrt_shaped, 0.25, 0.5, 1.0),
        (partial(power_shaped, exponent=0.5), 0.25, 0.5, 1.0),
        (partial(power_shaped, exponent=2.0), 0.5, 0.25, 1.0),
        (log_shaped, 0.5, -math.log(2), 2.0),
        (log_shaped, 1.0, 0.0, 1.0),
        (partial(clamped, low=0.1, high=0.8, shape=sqrt_shaped), 0.04, math.sqrt(0.1), 0.0),
        (partial(clamped, low=0.1, high=0.8, shape=sqrt_shaped), 0.25, 0.5, 1.0),
        (partial(clamped, low=None, high=0.8, shape=unshaped), 0.9, 0.8, 0.0),
        (partial(clamped, low=0.1, high=None, shape=unshaped), 0.9, 0.9, 1.0),
        (partial(clamped, low=None, high=None, shape=unshaped), 0.9, 0.9, 1.0),
    ],
)
def test_a_shape_has_the_value_and_slope_worked_by_hand(shape: Shape, x: float, value: float, slope: float) -> None:
    x_T = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    shaped_T = shape(x_T)
    shaped_T.sum().backward()
    assert shaped_T.item() == pytest.approx(value, rel=1e-12)
    assert x_T.grad is not None
    assert x_T.grad.item() == pytest.approx(slope, rel=1e-12)


def test_gamma_shaping_amplifies_improbable_tokens_tenfold_and_damps_certain_ones() -> None:
    """f'(x) = γ/(x+γ)²: 10 at x → 0, and 0.083 at x = 1, for γ = 0.1."""
    x_T = torch.tensor([1e-9, 1.0], dtype=torch.float64, requires_grad=True)
    gamma_shaped(x_T, gamma=0.1).sum().backward()
    torch.testing.assert_close(x_T.grad, torch.tensor([10.0, 0.1 / 1.21], dtype=torch.float64), rtol=1e-6, atol=0)


@given(x=st.floats(1e-8, 1e8), gamma=st.floats(1e-3, 10), exponent=st.floats(0.01, 2))
def test_every_shape_rises_with_the_ratio_and_has_a_finite_slope(x: float, gamma: float, exponent: float) -> None:
    for shape in (
        partial(gamma_shaped, gamma=gamma),
        partial(power_shaped, exponent=exponent),
        unshaped,
        sqrt_shaped,
        log_shaped,
    ):
        x_T = torch.tensor([x], dtype=torch.float64, requires_grad=True)
        shape(x_T).sum().backward()
        assert x_T.grad is not None
        assert 0 < x_T.grad.item() < math.inf


@pytest.mark.parametrize("shape", [log_shaped, sqrt_shaped, partial(power_shaped, exponent=0.1), unshaped])
def test_a_shape_is_finite_where_the_policy_thinks_the_expert_impossible(shape: Shape) -> None:
    """The logarithm of the ratio stops at -20, and so does f(x) = log x."""
    logprobs_T = torch.tensor([-1e4], requires_grad=True)
    shaped_T = shape(ratio(logprobs_T, torch.tensor([0.0])))
    shaped_T.sum().backward()
    assert shaped_T.item() >= -LOG_RATIO_LIMIT * (1 + 1e-6)
    assert logprobs_T.grad is not None
    assert torch.isfinite(logprobs_T.grad).all()


@pytest.mark.parametrize("logprob", [0.0, -0.3, -1e4, -math.inf])
def test_the_own_ratio_is_one_with_the_slope_of_the_logprob(logprob: float) -> None:
    """A probability of zero has no slope, and no NaN either."""
    batch = micro_of(rollout(1)).tokens
    logprobs_T = torch.tensor([logprob], dtype=torch.float64, requires_grad=True)
    ratio_T = own_ratio(batch, PolicyOutputs(logprobs_T, torch.zeros(1)))
    ratio_T.sum().backward()
    assert ratio_T.item() == 1.0
    assert logprobs_T.grad is not None
    assert logprobs_T.grad.item() == (1.0 if math.isfinite(logprob) else 0.0)


def test_the_sequence_ratio_is_the_geometric_mean_over_what_the_policy_sampled() -> None:
    """Ratios 2, ½ and 1.331 = 1.1³ after two tokens of a hint; each has a third of the slope of the logarithm."""
    batch = micro_of(trajectory(Lengths(hint=2, sampled=3), seed=3)).tokens
    ratios_T = torch.tensor([7.0, 9.0, 2.0, 0.5, 1.331], dtype=torch.float64)
    logprobs_T = (batch.behaviour_logprobs_T + ratios_T.log()).requires_grad_()
    mean = partial(sequence_log_ratio, of=policy_log_ratio, over=policy_tokens)
    mean_T = mean(batch, PolicyOutputs(logprobs_T, torch.zeros(5)))
    close(mean_T.detach(), [math.log(1.1)] * 5)
    mean_T[-1].backward()
    assert logprobs_T.grad is not None
    close(logprobs_T.grad, [0.0, 0.0, 1 / 3, 1 / 3, 1 / 3])


def test_the_expert_ratio_divides_by_one_where_the_expert_policy_is_not_known() -> None:
    unknown, known = demonstration(1), trajectory(Lengths(demonstration=1), expert_known=True)
    assert known.expert_logprobs is not None
    batch = micro_of(unknown, known).tokens
    found_T = expert_ratio(batch, PolicyOutputs(torch.tensor([0.3, 0.3], dtype=torch.float64).log(), torch.zeros(2)))
    close(found_T, [0.3, 0.3 / math.exp(float(known.expert_logprobs[2]))])


def micro_of(*members: Trajectory) -> MicroBatch:
    """One micro-batch of these members."""
    (micro,) = plan_step(asked(LUFFY()), [group(*members)], Layout(10**6)).micro_batches
    return in_float64(micro)
