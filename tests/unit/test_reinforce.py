"""REINFORCE: numbers worked by hand."""

from __future__ import annotations

import pytest
from learner_cases import Lengths, asked, at_ratios, close, demonstration, group, rollout, told, trajectory

from common.config.algorithm import REINFORCE, Corrections
from common.config.base import Baseline, Norm, Statistics

LONG, SHORT, OTHER = rollout(3, 1.0, seed=1), rollout(1, 0.0, seed=2), rollout(1, 0.0, seed=3)


def test_without_a_baseline_only_the_rewarded_tokens_are_learnt() -> None:
    """A = 1 and 0; ratios 1, 1.5, 0.5 and 2; two sequences of at most 10: L = -(1 + 1.5 + 0.5)/20, slopes -r/20."""
    logprobs = at_ratios((LONG, SHORT), [1.0, 1.5, 0.5, 2.0])
    result = told(asked(REINFORCE(), longest_response=10), [group(LONG, SHORT)], logprobs)
    assert result.value == pytest.approx(-3 / 20, rel=1e-12)
    close(result.by_logprob_T, [-1 / 20, -1.5 / 20, -0.5 / 20, 0.0])
    assert not result.by_entropy_T.any()
    assert result.sums.record()["clip_fraction"] == {"policy": 0.0}


def test_the_group_mean_makes_failures_count() -> None:
    """A = ±½: L = -½ (1 + 1.5 + 0.5 - 2)/20."""
    config = REINFORCE(baseline=Baseline.GROUP_MEAN)
    logprobs = at_ratios((LONG, SHORT), [1.0, 1.5, 0.5, 2.0])
    result = told(asked(config, longest_response=10), [group(LONG, SHORT)], logprobs)
    assert result.value == pytest.approx(-0.5 * 1 / 20, rel=1e-12)
    close(result.by_logprob_T, [-0.5 / 20, -0.75 / 20, -0.25 / 20, 1.0 / 20])


def test_leave_one_out_compares_with_the_others() -> None:
    """Rewards 1, 0, 0: A = 1 - 0, 0 - ½, 0 - ½; token mean over five: L = -(3 - ½ - ½)/5 at ratio 1."""
    config = REINFORCE(baseline=Baseline.LEAVE_ONE_OUT, norm=Norm.TOKEN_MEAN)
    members = (LONG, SHORT, OTHER)
    result = told(asked(config), [group(*members)], at_ratios(members, [1.0] * 5))
    assert result.value == pytest.approx(-2 / 5, rel=1e-12)
    close(result.by_logprob_T, [-1 / 5] * 3 + [0.5 / 5] * 2)


@pytest.mark.parametrize("baseline", list(Baseline))
def test_a_group_of_one_has_no_baseline(baseline: Baseline) -> None:
    """A = R = 1, also under group_mean: L = -3/(1 · 10)."""
    result = told(
        asked(REINFORCE(baseline=baseline), longest_response=10), [group(LONG)], at_ratios((LONG,), [1.0] * 3)
    )
    close(result.by_logprob_T, [-1 / 10] * 3)


def test_statistics_of_plain_rollouts_leave_a_hinted_one_out_of_the_baseline() -> None:
    """Plain 1 and 0, hinted 1: group mean ½ for all; leave-one-out 1 - 0, 0 - 1 and 1 - ½. No loss on the hint."""
    hinted = trajectory(Lengths(hint=1, sampled=1), 1.0, seed=4)
    plain, failed = rollout(1, 1.0, seed=5), rollout(1, 0.0, seed=6)
    logprobs = at_ratios((hinted, plain, failed), [0.3, 1.0, 1.0, 1.0])
    for baseline, (a_hinted, a_plain, a_failed) in (
        (Baseline.GROUP_MEAN, (0.5, 0.5, -0.5)),
        (Baseline.LEAVE_ONE_OUT, (0.5, 1.0, -1.0)),
    ):
        config = REINFORCE(baseline=baseline, statistics=Statistics.POLICY_ONLY)
        result = told(asked(config, longest_response=10), [group(plain, failed, hinted)], logprobs)
        close(result.by_logprob_T, [0.0, -a_hinted / 30, -a_plain / 30, -a_failed / 30])


def test_equal_rewards_have_no_gradient_under_a_baseline_and_a_full_one_without() -> None:
    members = (rollout(2, 0.1, seed=1), rollout(1, 0.1, seed=2), rollout(1, 0.1, seed=3))
    for baseline in Baseline:
        config = REINFORCE(baseline=baseline, norm=Norm.TOKEN_MEAN)
        result = told(asked(config), [group(*members)], at_ratios(members, [1.0] * 4))
        close(result.by_logprob_T, [-0.1 / 4 if baseline is Baseline.NONE else 0.0] * 4)


def test_a_demonstration_left_over_from_another_algorithm_is_not_seen() -> None:
    config = REINFORCE(baseline=Baseline.GROUP_MEAN)
    with_it = asked(config).admits((LONG, SHORT, demonstration(2, 1.0)))
    assert with_it == [LONG, SHORT]


def test_a_correction_carries_the_gap_instead_of_the_ratio() -> None:
    """w = min(r, 1.2) = 1, 1.2, 0.5: L = -w, slopes -w; the ratio itself is one."""
    config = REINFORCE(corrections=Corrections(truncate_at=1.2))
    logprobs = at_ratios((LONG, SHORT), [1.0, 1.5, 0.5, 2.0])
    result = told(asked(config, longest_response=10), [group(LONG, SHORT)], logprobs)
    assert result.value == pytest.approx(-(1.0 + 1.2 + 0.5) / 20, rel=1e-12)
    close(result.by_logprob_T, [-1 / 20, -1.2 / 20, -0.5 / 20, 0.0])
