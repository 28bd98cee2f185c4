"""The divergence from the frozen reference, k3: values and gradients worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import Lengths, asked, at_ratios, close, group, in_float64, rollout, told, trajectory

from common.config.algorithm import GRPO, REINFORCE, DrGRPO, Mix
from learner.batch import PolicyOutputs
from learner.losses import divergence
from learner.objective import loss
from learner.packing.layout import Layout
from learner.packing.plan import plan_step

FLAT = (rollout(3, 1.0, seed=1), rollout(1, 1.0, seed=2))
"""No advantage: only the divergence is left of the loss."""


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_k3_and_its_slope_share_the_norm_of_the_policy_term() -> None:
    """x = π_ref/π_θ = 2, ¼, 1 and 4: k3 = x - log x - 1, slope 1 - x. Mean per sequence, then over the two; β = ½."""
    k3 = [2 - math.log(2) - 1, 0.25 + math.log(4) - 1, 0.0, 4 - math.log(4) - 1]
    result = told(
        asked(GRPO(kl_coefficient=0.5)), [group(*FLAT)], logs(0.2, 0.4, 0.3, 0.1), reference=logs(0.4, 0.1, 0.3, 0.4)
    )
    assert result.terms["kl"] == pytest.approx(0.5 * (sum(k3[:3]) / 3 + k3[3]) / 2, rel=1e-12)
    assert result.value == pytest.approx(result.terms["kl"], rel=1e-12)
    close(result.by_logprob_T, [0.5 * (1 - 2) / 6, 0.5 * 0.75 / 6, 0.0, 0.5 * (1 - 4) / 2])
    assert not result.by_entropy_T.any()


@pytest.mark.parametrize("config_class", [DrGRPO, REINFORCE])
def test_the_constant_norm_holds_for_the_divergence_too(config_class: type[DrGRPO | REINFORCE]) -> None:
    """Two sequences of at most 10."""
    flat = (rollout(3, 0.0, seed=1), rollout(1, 0.0, seed=2))
    result = told(
        asked(config_class(kl_coefficient=0.1), longest_response=10),
        [group(*flat)],
        logs(0.2, 0.2, 0.2, 0.2),
        reference=logs(0.4, 0.2, 0.2, 0.2),
    )
    assert result.terms["kl"] == pytest.approx(0.1 * (1 - math.log(2)) / 20, rel=1e-12)
    close(result.by_logprob_T, [-0.1 / 20, 0.0, 0.0, 0.0])


def test_what_the_expert_wrote_is_not_held_to_the_reference() -> None:
    hinted = trajectory(Lengths(hint=1, sampled=1), 1.0, seed=3)
    shown = trajectory(Lengths(demonstration=2), 1.0, seed=4)
    logprobs = [*at_ratios((hinted,), [0.2, 1.0]), *logs(0.2, 0.2)]
    reference = [*logs(0.9), logprobs[1] + math.log(2), *logs(0.9, 0.9)]
    result = told(asked(Mix(kl_coefficient=0.1)), [group(hinted, shown)], logprobs, reference=reference)
    assert result.terms["kl"] == pytest.approx(0.1 * (1 - math.log(2)) / 4, rel=1e-12)
    close(result.by_logprob_T, [0.0, -0.1 / 4, 0.0, 0.0])


def test_a_reference_that_agrees_costs_nothing_and_pulls_nowhere() -> None:
    result = told(asked(GRPO(kl_coefficient=1.0)), [group(*FLAT)], logs(0.2, 0.4, 0.3, 0.1))
    assert result.value == 0.0
    assert not result.by_logprob_T.any()


def test_without_the_reference_the_loss_says_what_is_missing() -> None:
    algorithm = asked(GRPO(kl_coefficient=0.5))
    plan = plan_step(algorithm, [group(*FLAT)], Layout(99))
    (micro,) = map(in_float64, plan.micro_batches)
    with pytest.raises(ValueError, match="needs_reference"):
        loss(algorithm, plan, micro, PolicyOutputs(torch.zeros(4), torch.zeros(4)))


@given(policy=st.floats(-40, 0), reference=st.floats(-40, 0))
def test_k3_is_never_negative_and_never_overflows(policy: float, reference: float) -> None:
    (micro,) = plan_step(asked(GRPO()), [group(rollout(1))], Layout(99)).micro_batches
    logprobs_T = torch.tensor([policy], requires_grad=True)
    k3_T = divergence(micro.tokens, PolicyOutputs(logprobs_T, torch.zeros(1), torch.tensor([reference])))
    k3_T.sum().backward()
    assert k3_T.item() >= -1e-6
    assert math.isfinite(k3_T.item())
    assert logprobs_T.grad is not None
    assert torch.isfinite(logprobs_T.grad).all()
