"""Naive mix and mix: numbers worked by hand, and what ties them to GRPO and LUFFY."""

from __future__ import annotations

import math
from math import sqrt

import pytest
import torch
from learner_cases import (
    BigramPolicy,
    Lengths,
    asked,
    at_ratios,
    close,
    demonstration,
    group,
    mixed_groups,
    rollout,
    run_step,
    told,
    trajectory,
)

from common.config.algorithm import GRPO, LUFFY, AlgorithmConfig, LUFFYPaper, Mix, NaiveMix
from common.config.base import Norm, Shaping, Surrogate
from common.trajectory import Group
from learner.packing.layout import Layout
from learner.packing.plan import plan_step

FAILED, EXPERT = rollout(2, 0.0, seed=1), demonstration(3, 1.0, seed=2)
A = 0.5 / (sqrt(0.5) + 1e-6)
"""The demonstration's advantage in a group of those two; the rollout's is -A. Z = 5 response tokens."""

EXPERT_LOGPROBS = [math.log(p) for p in (0.1, 0.9, 1.0)]
LOGPROBS = EXPERT_LOGPROBS + at_ratios([FAILED], [1.5, 0.5])


def test_naive_mix_divides_expert_tokens_by_the_policy_itself() -> None:
    """Ratio one on all three: L = [-3A + A (1.5 + 0.8)]/5; slopes -A/5 there, 1.5A/5 and 0 (clipped) on the rollout."""
    result = told(asked(NaiveMix()), [group(FAILED, EXPERT)], LOGPROBS)
    assert result.terms == {
        "expert": pytest.approx(-3 * A / 5, rel=1e-12),
        "policy": pytest.approx(A * 2.3 / 5, rel=1e-12),
    }
    close(result.by_logprob_T, [-A / 5] * 3 + [1.5 * A / 5, 0.0])
    assert result.sums.record()["clip_fraction"] == {"policy": 0.5, "demonstration": 0.0}


def test_mix_divides_expert_tokens_by_what_wrote_them() -> None:
    """π_φ = 1, so r = p: L = [-A (0.1 + 0.9 + 1) + A (1.5 + 0.8)]/5; with A > 0 a small ratio is not clipped."""
    result = told(asked(Mix()), [group(FAILED, EXPERT)], LOGPROBS)
    assert result.value == pytest.approx(A * (-2.0 + 2.3) / 5, rel=1e-12)
    close(result.by_logprob_T, [-0.1 * A / 5, -0.9 * A / 5, -A / 5, 1.5 * A / 5, 0.0])


def test_mix_cuts_off_improbable_expert_tokens_that_are_to_be_avoided() -> None:
    """The demonstration failed: -min(-A r, -A clip(r)) = A max(r, 0.8) = 0.8A (clipped), 0.9A and A.

    In naive mix all three keep their slope.
    """
    groups = [group(rollout(2, 1.0, seed=1), demonstration(3, 0.0, seed=2))]
    logprobs = EXPERT_LOGPROBS + at_ratios([FAILED], [1.0, 1.0])
    result = told(asked(Mix()), groups, logprobs)
    assert result.terms["expert"] == pytest.approx(A * (0.8 + 0.9 + 1) / 5, rel=1e-12)
    close(result.by_logprob_T, [0.0, 0.9 * A / 5, A / 5, -A / 5, -A / 5])
    assert result.sums.record()["clip_fraction"] == {"policy": 0.0, "demonstration": pytest.approx(1 / 3)}
    close(told(asked(NaiveMix()), groups, logprobs).by_logprob_T, [A / 5] * 3 + [-A / 5] * 2)


@pytest.mark.parametrize(("ratio", "value", "slope"), [(1.5, 1.2, 0.0), (1.1, 1.1, 1.1), (0.4, 0.4, 0.4)])
def test_mix_clips_a_known_expert_ratio_above(ratio: float, value: float, slope: float) -> None:
    """p = ratio · π_φ, A > 0; Z = 3."""
    known = trajectory(Lengths(demonstration=1), 1.0, seed=5, expert_known=True)
    assert known.expert_logprobs is not None
    logprobs = [*at_ratios([FAILED], [1.0, 1.0]), float(known.expert_logprobs[2]) + math.log(ratio)]
    result = told(asked(Mix()), [group(known, FAILED)], logprobs)
    assert result.terms["expert"] == pytest.approx(-A * value / 3, rel=1e-12)
    assert result.by_logprob_T[2].item() == pytest.approx(-A * slope / 3, rel=1e-12)
    assert result.sums.record()["ratio"]["demonstration"] == pytest.approx(ratio)


def test_a_dual_clip_bounds_both_sums() -> None:
    """c = 1.4 and A < 0 for both: the expert's ratio 1.5 and the rollout's 2 count as 1.4, without a slope."""
    known = trajectory(Lengths(demonstration=1), 0.0, seed=5, expert_known=True)
    assert known.expert_logprobs is not None
    failed, right = rollout(1, 0.0, seed=6), rollout(1, 1.0, seed=7)
    logprobs = [float(known.expert_logprobs[2]) + math.log(1.5), *at_ratios([failed, right], [2.0, 1.0])]
    config = Mix(dual_clip=1.4, divide_by_std=False)
    result = told(asked(config), [group(known, failed, right)], logprobs)
    assert result.value == pytest.approx((1.4 / 3 + 1.4 / 3 - 2 / 3) / 3, rel=1e-12)
    close(result.by_logprob_T, [0.0, 0.0, -2 / 9])
    assert result.sums.record()["clip_fraction"] == {"policy": 0.5, "demonstration": 1.0}


@pytest.mark.parametrize("config_class", [NaiveMix, Mix])
def test_the_tokens_of_a_hint_are_the_experts(config_class: type[NaiveMix | Mix]) -> None:
    """A hint of p = 0.1 with A > 0 in a group of Z = 4: its slope is that of the ratio, 1 or 0.1."""
    hinted = trajectory(Lengths(hint=1, sampled=1), 1.0, seed=3)
    logprobs = [math.log(0.1), *at_ratios([hinted, FAILED], [1.0, 1.0, 1.0, 1.0])[1:]]
    result = told(asked(config_class()), [group(hinted, FAILED)], logprobs)
    ratio = 1.0 if config_class is NaiveMix else 0.1
    close(result.by_logprob_T, [-A * ratio / 4, -A / 4, A / 4, A / 4])


def same_step(one: AlgorithmConfig, other: AlgorithmConfig, groups: list[Group]) -> None:
    """Assert that two configurations make the same of these groups."""
    found, wanted = (
        run_step(asked(config), plan_step(asked(config), groups, Layout(20)), BigramPolicy()) for config in (one, other)
    )
    assert any(gradient.any() for gradient in wanted[0])
    for mine, theirs in zip(found[0], wanted[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-15)
    assert found[1].record()["loss"] == pytest.approx(wanted[1].record()["loss"], rel=1e-12)


@pytest.mark.parametrize("config_class", [NaiveMix, Mix])
def test_without_demonstrations_a_mix_is_grpo_with_a_token_mean(config_class: type[NaiveMix | Mix]) -> None:
    plain = [
        group(*(m for m in g.trajectories if not m.is_demonstration and not m.hint_length)) for g in mixed_groups()
    ]
    same_step(config_class(), GRPO(norm=Norm.TOKEN_MEAN), plain)


def test_a_mix_whose_clip_never_acts_is_luffy_without_shaping() -> None:
    unshaped = {"shaping": Shaping.NONE, "divide_by_std": True, "entropy_bonus": 0.0}
    wide = Mix(surrogate=Surrogate.UNCLIPPED, clip_low=0.999999, clip_high=1e6)
    same_step(wide, LUFFYPaper(surrogate=Surrogate.UNCLIPPED, **unshaped), mixed_groups())
    same_step(wide, LUFFY(norm=Norm.TOKEN_MEAN, **unshaped), mixed_groups())


def test_mix_is_the_papers_luffy_without_shaping_where_right_experts_are_within_the_clip() -> None:
    """π_φ = 1: no ratio is above one, and with A > 0 none below is clipped."""
    groups = [group(*(m for m in g.trajectories if m.expert_logprobs is None)) for g in mixed_groups()]
    same_step(Mix(), LUFFYPaper(shaping=Shaping.NONE, divide_by_std=True, entropy_bonus=0.0), groups[:1])


@pytest.mark.parametrize("config_class", [NaiveMix, Mix])
def test_equal_rewards_give_no_gradient(config_class: type[NaiveMix | Mix]) -> None:
    members = (rollout(3, 0.3, seed=1), rollout(5, 0.3, seed=2), demonstration(4, 0.3, seed=3))
    algorithm = asked(config_class())
    gradients, _ = run_step(algorithm, plan_step(algorithm, [group(*members)], Layout(99)), BigramPolicy())
    assert not any(gradient.any() for gradient in gradients)
