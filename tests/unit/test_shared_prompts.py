"""Rows: which trajectories of a group are computed in one piece, worked out by hand."""

from __future__ import annotations

import pytest
from learner_cases import Lengths, rollout, trajectory
from span_cases import with_one_beginning

from common.trajectory import Trajectory
from learner.packing.shared_prompts import Row, shared_rows, single_rows


def members(prompt: int, *responses: int) -> list[Trajectory]:
    """A group with one prompt; the responses differ from their first token on."""
    made = [trajectory(Lengths(prompt=prompt, sampled=n), seed=n) for n in responses]
    for number, member in enumerate(made):
        if len(member.tokens) > prompt:
            member.tokens[prompt] = number
    return with_one_beginning(made, prompt)


def test_a_group_that_saves_half_as_much_again_is_one_row() -> None:
    # 4 (6 + 2) = 32 tokens in 6 + 4 · 2 = 14
    assert shared_rows(members(6, 2, 2, 2, 2), 10, 99) == [Row((10, 11, 12, 13), 6, 14)]


def test_a_group_that_saves_less_is_left_as_it_is() -> None:
    # 2 (2 + 2) = 8 tokens in 2 + 2 · 2 = 6: 1.33
    group = members(2, 2, 2)
    assert shared_rows(group, 0, 99) == single_rows(group, 0) == [Row((0,), 0, 4), Row((1,), 0, 4)]


def test_exactly_the_threshold_is_worth_it() -> None:
    # 2 (2 + 1) = 6 tokens in 2 + 2 · 1 = 4: 1.5
    assert shared_rows(members(2, 1, 1), 0, 99) == [Row((0, 1), 2, 4)]


def test_a_group_that_does_not_fit_is_split_over_several_rows() -> None:
    assert shared_rows(members(6, 2, 2, 2, 2), 0, 10) == [Row((0, 1), 6, 10), Row((2, 3), 6, 10)]


def test_a_part_of_a_group_that_no_longer_saves_enough_is_left_as_it_is() -> None:
    rows = shared_rows(members(6, 2, 2, 2), 0, 10)
    assert rows == [Row((0, 1), 6, 10), Row((2,), 0, 8)]


def test_a_trajectory_that_alone_exceeds_the_budget_stays_alone() -> None:
    assert shared_rows(members(6, 2, 9, 2, 2), 0, 12) == [Row((0,), 0, 8), Row((1,), 0, 15), Row((2, 3), 6, 10)]


def test_what_responses_have_in_common_is_shared_too() -> None:
    group = [trajectory(Lengths(prompt=3, hint=3, sampled=2), seed=n) for n in (1, 2, 3)]
    for number, member in enumerate(with_one_beginning(group, 6)):
        member.tokens[6] = number
    assert shared_rows(group, 0, 99) == [Row((0, 1, 2), 6, 12)]


def test_equal_trajectories_are_computed_once() -> None:
    assert shared_rows([rollout(3, seed=1), rollout(3, seed=1)], 0, 99) == [Row((0, 1), 5, 5)]


@pytest.mark.parametrize("budget", [1, 99])
def test_groups_without_a_common_beginning_are_left_as_they_are(budget: int) -> None:
    one, other = rollout(3, seed=1), rollout(3, seed=2)
    other.tokens[0] = one.tokens[0] + 1
    assert shared_rows([one, other], 0, budget) == single_rows([one, other], 0)


def test_a_single_trajectory_is_a_row() -> None:
    assert shared_rows([rollout(3)], 5, 99) == [Row((5,), 0, 5)]
