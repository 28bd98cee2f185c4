"""Credit: the rewards of one group become one advantage per member. Pure, in float64, before any forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from common.config.base import Statistics
from common.trajectory import Trajectory

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]

_STD_FLOOR = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """What is known of a group's G members before any forward.

    is_hinted_G: the policy continued a hint. lengths_G: response tokens, hint included.
    """

    rewards_G: Vector
    is_demonstration_G: Mask
    is_hinted_G: Mask
    lengths_G: NDArray[np.int64]


Advantage = Callable[[Members], Vector]
"""Members -> advantages [G]."""


def members_of(trajectories: Sequence[Trajectory]) -> Members:
    """The members of a group as arrays."""
    return Members(
        rewards_G=np.array([t.reward for t in trajectories], dtype=np.float64),
        is_demonstration_G=np.array([t.is_demonstration for t in trajectories], dtype=np.bool_),
        is_hinted_G=np.array([t.hint_length > 0 for t in trajectories], dtype=np.bool_),
        lengths_G=np.array([t.response_length for t in trajectories], dtype=np.int64),
    )


def unit(members: Members) -> Vector:
    """A = 1: every member is to be imitated.    [G]"""
    return np.ones_like(members.rewards_G)


def plain_reward(members: Members) -> Vector:
    """A = R.    [G]    (survey Eq. 4)"""
    return members.rewards_G.copy()


def leave_one_out(members: Members, *, statistics: Statistics) -> Vector:
    """A_i = R_i - the mean reward of the others that count.    [G]    (RLOO, arXiv 2402.14740)

    Where no other counts there is no baseline: A = R.
    """
    counted_G = _counted(members, statistics)
    everyone = np.arange(members.rewards_G.size)
    baselines = [_mean(members.rewards_G[counted_G & (everyone != i)]) for i in everyone]
    return members.rewards_G - np.array(baselines, dtype=np.float64)


def group_relative(members: Members, *, divide_by_std: bool, statistics: Statistics) -> Vector:
    """A = R - mean R, or (R - mean R) / (std R + 1e-6) with the unbiased std.    [G]    (survey Eq. 6)

    A group of one has mean 0 and no scale: A = R (methods §0.5). In a larger group whose counted rewards are all equal
    there is no scale either: A = R - mean R, exactly zero for members of the same reward.
    """
    if members.rewards_G.size == 1:
        return members.rewards_G.copy()
    counted = members.rewards_G[_counted(members, statistics)]
    if counted.size == 0:
        return np.zeros_like(members.rewards_G)
    # Without this case rounding in the mean would turn equal rewards into tiny advantages, and the floor of the std
    # would turn a demonstration beside equally failed rollouts into an advantage of a million.
    if counted.min() == counted.max():
        return members.rewards_G - counted[0]
    centred_G = members.rewards_G - counted.mean()
    return centred_G / (counted.std(ddof=1) + _STD_FLOOR) if divide_by_std else centred_G


def softly_overlong(members: Members, *, advantage: Advantage, longest: int, buffer: float) -> Vector:
    """`advantage` of rewards that fall linearly, by 1 in all, over the last buffer * longest tokens.    [G]

    (DAPO, arXiv 2503.14476, Eq. 13.) Both longest and the lengths include a hint.
    """
    tolerated = longest * (1 - buffer)
    penalty_G = np.clip((tolerated - members.lengths_G) / (longest * buffer), -1.0, 0.0)
    return advantage(replace(members, rewards_G=members.rewards_G + penalty_G))


def sparing_failed_groups(members: Members, *, advantage: Advantage) -> Vector:
    """`advantage`, but no rollout is pushed down in a group whose every rollout failed (earned no positive reward).

    [G]. There the rollouts' negative advantages say nothing about which of them was better; demonstrations keep theirs.
    """
    advantages_G = advantage(members)
    sampled_G = ~members.is_demonstration_G
    if np.any(members.rewards_G[sampled_G] > 0):
        return advantages_G
    return np.where(sampled_G & (advantages_G < 0), 0.0, advantages_G)


def _mean(rewards: Vector) -> float:
    """Their mean; exactly the reward where all are equal, which rounding would miss; zero if there are none."""
    if rewards.size == 0:
        return 0.0
    return float(rewards[0] if rewards.min() == rewards.max() else rewards.mean())


def _counted(members: Members, statistics: Statistics) -> Mask:
    """Whose rewards make the statistics. A group without plain rollouts is counted whole."""
    plain_G = ~(members.is_demonstration_G | members.is_hinted_G)
    everyone_G = np.ones_like(plain_G)
    return plain_G if statistics is Statistics.POLICY_ONLY and plain_G.any() else everyone_G
