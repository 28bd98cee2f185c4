"""Ratios and their shapes: values and gradients worked by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from learner.ratios import LOG_RATIO_LIMIT, Shape, gamma_shaped, log_shaped, ratio, sqrt_shaped, unshaped


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
        (log_shaped, 1.0, math.log(2), 0.5),
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
