"""Advantages: numbers worked by hand, then what must hold for any rewards."""

from __future__ import annotations

from functools import partial
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import Lengths, demonstration, rollout, trajectory

from common.config.base import Statistics
from common.trajectory import Trajectory
from learner.advantages import (
    Advantage,
    group_relative,
    leave_one_out,
    members_of,
    plain_reward,
    softly_overlong,
    sparing_failed_groups,
    unit,
)

centred = partial(group_relative, divide_by_std=False, statistics=Statistics.JOINT)
scaled = partial(group_relative, divide_by_std=True, statistics=Statistics.JOINT)
centred_on_policy = partial(group_relative, divide_by_std=False, statistics=Statistics.POLICY_ONLY)
scaled_on_policy = partial(group_relative, divide_by_std=True, statistics=Statistics.POLICY_ONLY)
others_mean = partial(leave_one_out, statistics=Statistics.JOINT)
others_mean_on_policy = partial(leave_one_out, statistics=Statistics.POLICY_ONLY)

rewards = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=2, max_size=9)


def advantages(rule: Advantage, *members: Trajectory) -> list[float]:
    return rule(members_of(members)).tolist()


def rollouts(values: list[float]) -> list[Trajectory]:
    return [rollout(1, value) for value in values]


def hinted(reward: float) -> Trajectory:
    return trajectory(Lengths(hint=2, sampled=1), reward)


def test_the_mean_is_subtracted() -> None:
    assert advantages(centred, *rollouts([1.0, 0.0, 0.0, 0.0])) == [0.75, -0.25, -0.25, -0.25]


def test_the_unbiased_standard_deviation_divides() -> None:
    """Rewards 1, 0: mean 1/2, std √(¼+¼) = √½."""
    high, low = advantages(scaled, *rollouts([1.0, 0.0]))
    assert high == pytest.approx(0.5 / (sqrt(0.5) + 1e-6), rel=1e-14)
    assert low == -high


def test_the_demonstration_counts_in_joint_statistics() -> None:
    """LUFFY's failed group: seven rollouts 0, one demonstration 1."""
    found = advantages(centred, *rollouts([0.0] * 7), demonstration(3))
    assert found == [-0.125] * 7 + [0.875]


def test_only_plain_rollouts_count_in_policy_statistics() -> None:
    found = advantages(centred_on_policy, *rollouts([1.0, 0.0]), hinted(1.0), demonstration(3))
    assert found == [0.5, -0.5, 0.5, 0.5]


def test_a_group_without_plain_rollouts_is_counted_whole() -> None:
    assert advantages(centred_on_policy, hinted(1.0), hinted(0.0)) == [0.5, -0.5]


def test_a_demonstration_beside_equally_failed_rollouts_is_not_scaled_to_a_million() -> None:
    assert advantages(scaled_on_policy, *rollouts([0.0, 0.0]), demonstration(3)) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "rule", [centred, scaled, centred_on_policy, scaled_on_policy, others_mean, others_mean_on_policy]
)
def test_a_group_of_one_has_mean_zero(rule: Advantage) -> None:
    assert advantages(rule, rollout(1, 0.7)) == [0.7]
    assert advantages(rule, demonstration(1, 0.7)) == [0.7]


@pytest.mark.parametrize(
    "rule", [centred, scaled, centred_on_policy, scaled_on_policy, others_mean, others_mean_on_policy]
)
@given(value=st.floats(-1e6, 1e6), size=st.integers(2, 9))
def test_equal_rewards_give_exactly_no_advantage(rule: Advantage, value: float, size: int) -> None:
    assert advantages(rule, *rollouts([value] * size)) == [0.0] * size


@given(values=rewards, shift=st.floats(-10, 10))
def test_advantages_sum_to_zero_and_do_not_depend_on_the_zero_of_the_rewards(values: list[float], shift: float) -> None:
    found = np.array(advantages(centred, *rollouts(values)))
    assert found.sum() == pytest.approx(0, abs=1e-12)
    moved = advantages(centred, *rollouts([value + shift for value in values]))
    np.testing.assert_allclose(moved, found, atol=1e-12)


@given(values=rewards)
def test_scaled_advantages_are_finite_and_ordered_as_the_rewards_are(values: list[float]) -> None:
    found = np.array(advantages(scaled, *rollouts(values)))
    assert np.isfinite(found).all()
    assert (np.diff(found[np.argsort(values, kind="stable")]) >= 0).all()


def test_a_failed_group_may_spare_its_rollouts_but_not_a_failed_demonstration() -> None:
    spared = partial(sparing_failed_groups, advantage=centred)
    assert advantages(spared, *rollouts([0.0, 0.0, 0.0]), demonstration(3)) == [0.0, 0.0, 0.0, 0.75]
    assert advantages(spared, rollout(1, 0.0), demonstration(1, -1.0)) == [0.5, -0.5]


def test_a_group_with_one_success_keeps_its_negatives() -> None:
    spared = partial(sparing_failed_groups, advantage=centred)
    assert advantages(spared, *rollouts([1.0, 0.0, 0.0]), demonstration(3)) == [0.5, -0.5, -0.5, 0.5]


def test_imitation_gives_everyone_one() -> None:
    assert advantages(unit, rollout(1, 0.0), demonstration(2)) == [1.0, 1.0]


def test_without_a_baseline_the_advantage_is_the_reward() -> None:
    assert advantages(plain_reward, *rollouts([1.0, 0.0, -0.5])) == [1.0, 0.0, -0.5]


def test_leave_one_out_takes_off_the_mean_of_the_others() -> None:
    """Rewards 1, 0, ½: 1 - (0 + ½)/2, 0 - (1 + ½)/2, ½ - (1 + 0)/2."""
    assert advantages(others_mean, *rollouts([1.0, 0.0, 0.5])) == [0.75, -0.75, 0.0]


def test_leave_one_out_on_policy_statistics_takes_off_the_mean_of_the_other_plain_rollouts() -> None:
    """Plain 1 and 0, hinted 1: 1 - 0, 0 - 1, and for the hinted one 1 - (1 + 0)/2."""
    assert advantages(others_mean_on_policy, *rollouts([1.0, 0.0]), hinted(1.0)) == [1.0, -1.0, 0.5]


def test_leave_one_out_without_another_plain_rollout_has_no_baseline() -> None:
    assert advantages(others_mean_on_policy, rollout(1, 0.7), hinted(0.2)) == [0.7, pytest.approx(-0.5)]


@given(values=rewards)
def test_leave_one_out_is_the_centred_reward_times_n_over_n_minus_one(values: list[float]) -> None:
    n = len(values)
    wanted = np.array(advantages(centred, *rollouts(values))) * n / (n - 1)
    np.testing.assert_allclose(advantages(others_mean, *rollouts(values)), wanted, atol=1e-12)


def test_a_reward_falls_by_one_over_the_last_part_of_the_longest_response() -> None:
    """L_max 10, buffer 0.4: 6 tokens are tolerated, 7 cost ¼, 10 cost 1, and no response costs more."""
    rule = partial(softly_overlong, advantage=plain_reward, longest=10, buffer=0.4)
    members = [rollout(length, 1.0) for length in (1, 6, 7, 10, 12)]
    np.testing.assert_allclose(advantages(rule, *members), [1.0, 1.0, 0.75, 0.0, 0.0], atol=1e-12)


def test_the_length_of_a_response_includes_its_hint() -> None:
    rule = partial(softly_overlong, advantage=plain_reward, longest=10, buffer=0.4)
    found = advantages(rule, trajectory(Lengths(hint=5, sampled=3), 1.0))
    assert found == [pytest.approx(0.5)]
