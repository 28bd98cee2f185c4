"""DAPO: numbers worked by hand, and which groups it leaves out."""

from __future__ import annotations

from functools import partial
from math import sqrt

import pytest
from learner_cases import Lengths, asked, at_ratios, close, demonstration, group, rollout, told, trajectory

from common.config.algorithm import DAPO, GRPO
from common.config.base import Material
from common.trajectory import Trajectory
from learner.packing.layout import Layout
from learner.packing.plan import plan_step
from learner.selectors import admitting, dropping_flat_groups

LONG, SHORT = rollout(9, 1.0, seed=1), rollout(2, 0.0, seed=2)


def test_dapo_is_a_token_mean_with_room_above_and_a_soft_penalty() -> None:
    """L_max 10, buffer 0.2: nine tokens cost ½, so rewards are ½ and 0 and A = ±¼/(√⅛ + 10⁻⁶).

    LONG at ratio 1 but for one token at 1.5 (clipped at 1.28); SHORT at 1.5 and 0.5 (clipped at 0.8). Eleven tokens.
    """
    a = 0.25 / (sqrt(0.125) + 1e-6)
    logprobs = at_ratios((LONG, SHORT), [1.5] + [1.0] * 8 + [1.5, 0.5])
    result = told(asked(DAPO(), longest_response=10), [group(LONG, SHORT)], logprobs)
    assert result.value == pytest.approx(-a * (1.28 + 8 - 1.5 - 0.8) / 11, rel=1e-12)
    close(result.by_logprob_T, [0.0, *[-a / 11] * 8, 1.5 * a / 11, 0.0])
    assert result.sums.record()["clip_fraction"] == {"policy": 2 / 11}


def test_without_a_penalty_the_longest_response_earns_what_it_was_given() -> None:
    """A = ±½/(√½ + 10⁻⁶)."""
    a = 0.5 / (sqrt(0.5) + 1e-6)
    config = DAPO(overlong_buffer=0.0)
    result = told(asked(config, longest_response=10), [group(LONG, SHORT)], at_ratios((LONG, SHORT), [1.0] * 11))
    close(result.by_logprob_T, [-a / 11] * 9 + [a / 11] * 2)


def test_a_right_response_of_the_longest_length_is_worth_no_more_than_a_short_wrong_one() -> None:
    """1 - 1 = 0: no advantage is left, and the group stays, as its rewards differed."""
    longest = rollout(10, 1.0, seed=1)
    result = told(asked(DAPO(), longest_response=10), [group(longest, SHORT)], [-1.0] * 12)
    assert not result.by_logprob_T.any()
    assert (result.plan.groups, result.plan.flat_groups) == (1, 1)


def test_groups_that_all_earned_the_same_are_left_out_of_every_count() -> None:
    """The mean stays one over eleven tokens beside two flat groups, long or short."""
    flat = [group(rollout(3, 1.0), rollout(9, 1.0)), group(rollout(2, 0.0), rollout(2, 0.0))]
    logprobs = at_ratios((LONG, SHORT), [1.0] * 11)
    alone, beside = (
        told(asked(DAPO(), longest_response=10), groups, logprobs)
        for groups in ([group(LONG, SHORT)], [flat[0], group(LONG, SHORT), flat[1]])
    )
    close(beside.by_logprob_T, alone.by_logprob_T.tolist())
    assert beside.plan.counts == {"policy": 11.0}
    assert (beside.plan.groups, beside.plan.trajectories) == (1, 2)


def test_a_step_of_flat_groups_only_has_nothing_to_do() -> None:
    plan = plan_step(asked(DAPO()), [group(rollout(3, 1.0), rollout(9, 1.0))], Layout(99))
    assert (plan.groups, plan.trajectories, plan.tokens, plan.micro_batches) == (0, 0, 0, ())


HINTED = trajectory(Lengths(hint=2, sampled=1), 1.0)


@pytest.mark.parametrize(
    ("members", "seen"),
    [
        ((rollout(1, 0.0), rollout(2, 0.0)), 0),
        ((rollout(1, 0.0), rollout(2, 1.0)), 2),
        ((rollout(1, 0.0), rollout(2, 0.0), demonstration(2, 1.0)), 0),
        ((rollout(1, 0.0), rollout(2, 0.0), HINTED), 3),
        ((rollout(1, 1.0), rollout(2, 1.0), HINTED), 0),
        ((rollout(1, 0.0),), 1),
        ((rollout(1, 0.0), demonstration(2, 1.0)), 1),
        ((demonstration(2, 1.0),), 0),
    ],
)
def test_a_group_is_flat_if_its_rollouts_earned_the_same_hinted_or_not(
    members: tuple[Trajectory, ...], seen: int
) -> None:
    """Demonstrations do not count; a single rollout has none to differ from and stays."""
    assert len(asked(DAPO()).admits(members)) == seen


def test_a_demonstration_that_is_admitted_does_not_make_a_group_uneven() -> None:
    admits = partial(dropping_flat_groups, admits=admitting(frozenset({Material.DEMONSTRATIONS})))
    shown = demonstration(2, 1.0)
    assert admits((rollout(1, 0.0), rollout(2, 0.0), shown)) == []
    assert len(admits((rollout(1, 0.0), rollout(2, 0.5), shown))) == 3
    assert admits((shown,)) == [shown]


def test_grpo_keeps_flat_groups_in_its_counts_unless_asked() -> None:
    groups = [group(LONG, SHORT), group(rollout(3, 1.0), rollout(9, 1.0))]
    assert plan_step(asked(GRPO()), groups, Layout(99)).counts == {"policy": 4.0}
    assert plan_step(asked(GRPO(drop_flat_groups=True)), groups, Layout(99)).counts == {"policy": 2.0}
