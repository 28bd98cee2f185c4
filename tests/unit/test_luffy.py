"""LUFFY: numbers worked by hand, and what ties it to Dr.GRPO."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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

from common.config.algorithm import LUFFY, DrGRPO, LUFFYPaper
from common.config.base import Norm, Shaping, Surrogate
from common.trajectory import Group
from learner.packing.layout import Layout
from learner.packing.plan import plan_step

FAILED, EXPERT = rollout(2, 0.0, seed=1), demonstration(3, 1.0, seed=2)
"""A failed rollout of two tokens and a demonstration of three: A = -½ and ½; the demonstration is the first row."""

EXPERT_LOGPROBS = [math.log(p) for p in (0.1, 0.9, 1.0)]


def rollout_logprobs(ratios: list[float]) -> list[float]:
    return at_ratios([FAILED], ratios)


def test_luffy_as_its_authors_ran_it() -> None:
    """π_φ = 1, so x = p: f = 0.5, 0.9, 1/1.1 with slopes 0.25, 0.09, 0.1/1.21. Ratios 1 and 1.5, not clipped.

    Both sums are divided by two sequences of at most 10; the entropy bonus is the mean of 2 and 4, times 0.001.
    """
    result = told(
        asked(LUFFY(), longest_response=10),
        [group(FAILED, EXPERT)],
        EXPERT_LOGPROBS + rollout_logprobs([1.0, 1.5]),
        [9.0, 9.0, 9.0, 2.0, 4.0],
    )
    terms = result.sums.record()["terms"]
    assert terms["expert"] == pytest.approx(-0.5 * (0.5 + 0.9 + 1 / 1.1) / 20, rel=1e-12)
    assert terms["policy"] == pytest.approx(0.5 * 2.5 / 20, rel=1e-12)
    assert terms["entropy"] == pytest.approx(-0.001 * 3, rel=1e-12)
    assert result.value == pytest.approx(sum(terms.values()), rel=1e-12)
    slopes = [-0.5 * 0.25, -0.5 * 0.09, -0.5 * 0.1 / 1.21, 0.5 * 1.0, 0.5 * 1.5]
    close(result.by_logprob_T, [slope / 20 for slope in slopes])
    close(result.by_entropy_T, [0.0, 0.0, 0.0, -0.0005, -0.0005])


def test_luffy_as_in_the_paper_divides_both_sums_by_all_response_tokens() -> None:
    """Z = 5. The rollout's ratios 1.5 and 0.5 with A < 0: 0.5 is clipped at 0.8."""
    result = told(asked(LUFFYPaper()), [group(FAILED, EXPERT)], EXPERT_LOGPROBS + rollout_logprobs([1.5, 0.5]))
    terms = result.sums.record()["terms"]
    assert terms["expert"] == pytest.approx(-0.5 * (0.5 + 0.9 + 1 / 1.1) / 5, rel=1e-12)
    assert terms["policy"] == pytest.approx(0.5 * (1.5 + 0.8) / 5, rel=1e-12)
    assert terms["entropy"] == pytest.approx(-0.01, rel=1e-12)
    close(result.by_logprob_T, [s / 5 for s in (-0.125, -0.045, -0.05 / 1.21, 0.75, 0.0)])
    close(result.by_entropy_T, [0.0, 0.0, 0.0, -0.01 / 2, -0.01 / 2])
    assert result.sums.record()["clip_fraction"] == {"policy": 0.5, "demonstration": 0.0}


def test_a_sequence_mean_counts_every_response_token_of_a_sequence() -> None:
    hinted = trajectory(Lengths(hint=1, sampled=1), 1.0, seed=3)
    config = LUFFY(norm=Norm.SEQUENCE_MEAN, entropy_bonus=0.0)
    logprobs = [math.log(0.1), hinted.behaviour_logprobs[3].item(), *rollout_logprobs([1.0, 1.0])]
    result = told(asked(config), [group(hinted, FAILED)], logprobs)
    close(result.by_logprob_T, [-0.5 * 0.25 / 4, -0.5 / 4, 0.5 / 4, 0.5 / 4])


@pytest.mark.parametrize(
    ("shaping", "value", "slope"),
    [
        (Shaping.GAMMA, 0.25 / 0.35, 0.1 * 0.25 / 0.35**2),
        (Shaping.NONE, 0.25, 0.25),
        (Shaping.SQRT, 0.5, 0.25),
        (Shaping.POWER, 0.125, 1.5 * 0.125),
        (Shaping.LOG, -math.log(4), 1.0),
    ],
)
def test_every_shaping_at_one_quarter(shaping: Shaping, value: float, slope: float) -> None:
    """Slope on log p: f'(x) x. The exponent is 3/2; log x is negative, so that its term is a cost."""
    expert = demonstration(1, 1.0)
    config = LUFFY(shaping=shaping, exponent=1.5, entropy_bonus=0.0)
    logprobs = [*rollout_logprobs([1.0, 1.0]), math.log(0.25)]
    result = told(asked(config, longest_response=10), [group(FAILED, expert)], logprobs)
    assert result.sums.record()["terms"]["expert"] == pytest.approx(-0.5 * value / 20, rel=1e-12)
    assert result.by_logprob_T[2].item() == pytest.approx(-0.5 * slope / 20, rel=1e-12)


@given(logprob=st.floats(-15, 0), gamma=st.floats(0.01, 10), reward=st.sampled_from([1.0, -1.0]))
def test_the_gradient_on_an_expert_token_is_minus_a_gamma_x_over_x_plus_gamma_squared(
    logprob: float, gamma: float, reward: float
) -> None:
    """Also with A < 0: the expert's ratio is never clipped."""
    expert = demonstration(1, reward)
    logprobs = [*rollout_logprobs([1.0, 1.0]), logprob]
    result = told(asked(LUFFY(gamma=gamma), longest_response=1), [group(FAILED, expert)], logprobs)
    x, advantage = math.exp(logprob), reward / 2
    expected = -advantage * gamma * x / (x + gamma) ** 2 / 2
    assert result.by_logprob_T[2].item() == pytest.approx(expected, rel=1e-9)


def test_a_known_expert_policy_divides_the_ratio() -> None:
    known = trajectory(Lengths(demonstration=2), 1.0, seed=5, expert_known=True)
    assert known.expert_logprobs is not None
    logprobs = [p + math.log(0.4) for p in known.expert_logprobs[2:].tolist()]
    result = told(asked(LUFFY(), longest_response=10), [group(known, FAILED)], logprobs + rollout_logprobs([1.0, 1.0]))
    close(result.by_logprob_T[:2], [-0.5 * 0.04 / 0.25 / 20] * 2)
    assert result.sums.record()["ratio"]["demonstration"] == pytest.approx(0.4)


def test_the_tokens_of_a_hint_are_the_experts() -> None:
    hinted = trajectory(Lengths(hint=1, sampled=1), 1.0, seed=3)
    logprobs = [math.log(0.1), hinted.behaviour_logprobs[3].item(), *rollout_logprobs([1.0, 1.0])]
    result = told(asked(LUFFY(entropy_bonus=0.0), longest_response=10), [group(hinted, FAILED)], logprobs)
    close(result.by_logprob_T, [s / 20 for s in (-0.125, -0.5, 0.5, 0.5)])


def test_a_failed_group_may_keep_only_its_demonstration() -> None:
    config = LUFFY(negatives_in_failed_groups=False, entropy_bonus=0.0)
    logprobs = EXPERT_LOGPROBS + rollout_logprobs([1.0, 1.0])
    result = told(asked(config, longest_response=10), [group(FAILED, EXPERT)], logprobs)
    close(result.by_logprob_T, [s / 20 for s in (-0.125, -0.045, -0.05 / 1.21, 0.0, 0.0)])


@pytest.mark.parametrize(
    ("low", "high", "values", "slopes", "clipped"),
    [
        (0.2, None, (0.2, 0.9, 1.0), (0.0, 0.9, 1.0), 1 / 3),
        (None, 0.5, (0.1, 0.5, 0.5), (0.1, 0.0, 0.0), 2 / 3),
        (0.2, 0.5, (0.2, 0.5, 0.5), (0.0, 0.0, 0.0), 1.0),
    ],
)
def test_a_clamped_ratio_has_no_gradient_outside_and_is_reported_as_clipped(
    low: float | None, high: float | None, values: tuple[float, ...], slopes: tuple[float, ...], clipped: float
) -> None:
    config = LUFFY(shaping=Shaping.NONE, ratio_min=low, ratio_max=high, entropy_bonus=0.0)
    logprobs = EXPERT_LOGPROBS + rollout_logprobs([1.0, 1.0])
    result = told(asked(config, longest_response=10), [group(FAILED, EXPERT)], logprobs)
    assert result.terms["expert"] == pytest.approx(-0.5 * sum(values) / 20, rel=1e-12)
    close(result.by_logprob_T[:3], [-0.5 * slope / 20 for slope in slopes])
    assert result.sums.record()["clip_fraction"] == {"policy": 0.0, "demonstration": pytest.approx(clipped)}


def test_a_clamp_cuts_nothing_off_where_there_is_no_advantage() -> None:
    flat = group(rollout(2, 1.0, seed=1), EXPERT)
    result = told(asked(LUFFY(ratio_min=0.95)), [flat], EXPERT_LOGPROBS + rollout_logprobs([1.0, 1.0]))
    assert result.sums.record()["clip_fraction"] == {"policy": 0.0, "demonstration": 0.0}


def test_a_ratio_is_clamped_before_it_is_shaped() -> None:
    """x = 0.1, 0.9, 1 raised to 0.3 with γ = 0.1: f = 0.75, 0.9, 1/1.1."""
    config = LUFFY(ratio_min=0.3, entropy_bonus=0.0)
    logprobs = EXPERT_LOGPROBS + rollout_logprobs([1.0, 1.0])
    result = told(asked(config, longest_response=10), [group(FAILED, EXPERT)], logprobs)
    assert result.terms["expert"] == pytest.approx(-0.5 * (0.75 + 0.9 + 1 / 1.1) / 20, rel=1e-12)
    close(result.by_logprob_T[:3], [s / 20 for s in (0.0, -0.045, -0.05 / 1.21)])


def without_demonstrations() -> list[Group]:
    return [group(*(m for m in g.trajectories if not m.is_demonstration and not m.hint_length)) for g in mixed_groups()]


@pytest.mark.parametrize("bonus", [0.0, 0.001])
def test_without_demonstrations_luffy_is_exactly_unclipped_dr_grpo(bonus: float) -> None:
    plain = DrGRPO(surrogate=Surrogate.UNCLIPPED, entropy_bonus=bonus)
    found, wanted = (
        run_step(asked(config), plan_step(asked(config), without_demonstrations(), Layout(20)), BigramPolicy())
        for config in (LUFFY(entropy_bonus=bonus), plain)
    )
    assert any(gradient.any() for gradient in wanted[0])
    for mine, other in zip(found[0], wanted[0], strict=True):
        assert torch.equal(mine, other)
    assert found[1].record()["loss"] == wanted[1].record()["loss"]
