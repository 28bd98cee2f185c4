"""Packing: every token once, nothing over the limit, the same plan every time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import Lengths, asked, demonstration, group, group_strategy, mixed_groups, rollout, trajectory

from common.config.algorithm import GRPO, LUFFY, SFT
from common.trajectory import Group, Source, Trajectory
from learner.packing.layout import Layout
from learner.packing.plan import StepPlan, plan_step


def rows_of(plan: StepPlan) -> list[list[int]]:
    """The token ids of every row, without padding."""
    return [
        row[:length].tolist()
        for micro in plan.micro_batches
        for row, length in zip(micro.input_ids, micro.lengths_B.tolist(), strict=True)
    ]


@settings(max_examples=40)
@given(groups=group_strategy(), limit=st.integers(1, 64))
def test_every_trajectory_is_planned_once_and_no_micro_batch_exceeds_the_limit(groups: list[Group], limit: int) -> None:
    plan = plan_step(asked(LUFFY()), groups, Layout(limit))
    members = [t.tokens.tolist() for g in groups for t in g.trajectories]
    assert Counter(map(tuple, rows_of(plan))) == Counter(map(tuple, members))
    for micro in plan.micro_batches:
        rows, width = micro.input_ids.shape
        assert rows * width <= limit or rows == 1
        assert width == micro.lengths_B.max()
    assert plan.trajectories == len(members)
    assert plan.tokens == sum(t.response_length for g in groups for t in g.trajectories)


@settings(max_examples=40)
@given(groups=group_strategy(), limit=st.integers(1, 64))
def test_a_label_is_the_token_after_its_predictor(groups: list[Group], limit: int) -> None:
    for micro in plan_step(asked(LUFFY()), groups, Layout(limit)).micro_batches:
        width = micro.input_ids.shape[1]
        flat = micro.input_ids.flatten()
        assert torch.equal(flat[micro.predictor_T + 1], micro.tokens.labels_T)
        assert torch.equal(micro.predictor_T // width, micro.tokens.segment_T)
        assert (micro.predictor_T % width + 1 < micro.lengths_B[micro.tokens.segment_T]).all()
        assert (micro.tokens.sources_T != Source.PROMPT).all()


@settings(max_examples=40)
@given(groups=group_strategy(), limit=st.integers(1, 64))
def test_the_same_groups_give_the_same_plan(groups: list[Group], limit: int) -> None:
    first, second = (plan_step(asked(LUFFY()), groups, Layout(limit)) for _ in range(2))
    assert rows_of(first) == rows_of(second)
    assert first.counts == second.counts


@settings(max_examples=40)
@given(groups=group_strategy(), first=st.integers(1, 64), second=st.integers(1, 64))
def test_counts_do_not_depend_on_how_a_step_is_cut(groups: list[Group], first: int, second: int) -> None:
    algorithm = asked(LUFFY())
    assert plan_step(algorithm, groups, Layout(first)).counts == plan_step(algorithm, groups, Layout(second)).counts


def test_rows_of_like_length_share_a_micro_batch_and_the_longest_come_first() -> None:
    groups = [group(*(rollout(length, seed=length) for length in (1, 9, 2, 10)))]
    plan = plan_step(asked(GRPO()), groups, Layout(24))
    assert [micro.lengths_B.tolist() for micro in plan.micro_batches] == [[12, 11], [4, 3]]


def test_a_trajectory_longer_than_the_limit_gets_a_micro_batch_of_its_own() -> None:
    plan = plan_step(asked(GRPO()), [group(rollout(20), rollout(1), rollout(2))], Layout(8))
    assert [micro.lengths_B.tolist() for micro in plan.micro_batches] == [[22], [4, 3]]


def test_an_advantage_reaches_every_token_of_its_trajectory() -> None:
    (micro,) = plan_step(asked(LUFFY()), [group(rollout(2, 0.0), demonstration(3, 1.0))], Layout(99)).micro_batches
    assert micro.tokens.advantages_T.tolist() == [0.5] * 3 + [-0.5] * 2


def test_demonstrations_are_left_out_of_grpo_before_the_statistics() -> None:
    groups = [group(rollout(2, 1.0), rollout(2, 0.0), demonstration(9, 1.0))]
    plan = plan_step(asked(GRPO(divide_by_std=False)), groups, Layout(99))
    (micro,) = plan.micro_batches
    assert micro.tokens.advantages_T.tolist() == [0.5, 0.5, -0.5, -0.5]
    assert (plan.trajectories, plan.tokens, plan.groups) == (2, 4, 1)


def test_a_step_without_anything_to_learn_from_has_no_micro_batch() -> None:
    plan = plan_step(asked(SFT()), [group(rollout(2, 1.0), rollout(2, 0.0))], Layout(99))
    assert plan.micro_batches == ()
    assert plan.counts == {"imitation": 0.0}
    assert (plan.trajectories, plan.tokens, plan.groups, plan.flat_groups) == (0, 0, 0, 0)


def test_groups_whose_rewards_are_all_equal_are_counted_as_flat() -> None:
    flat, other = group(rollout(2, 1.0), rollout(3, 1.0)), group(rollout(2, 1.0), rollout(3, 0.0))
    assert plan_step(asked(GRPO()), [flat, other, flat], Layout(99)).flat_groups == 2
    assert plan_step(asked(SFT()), [group(demonstration(2))], Layout(99)).flat_groups == 0


def test_hints_are_not_among_the_tokens_of_an_algorithm_that_does_not_learn_from_them() -> None:
    groups = [group(trajectory(Lengths(hint=3, sampled=2), 1.0), rollout(4, 0.0))]
    assert plan_step(asked(GRPO()), groups, Layout(99)).tokens == 6
    assert plan_step(asked(LUFFY()), groups, Layout(99)).tokens == 9


def test_nothing_predicts_the_first_token_of_a_trajectory() -> None:
    promptless = trajectory(Lengths(prompt=0, sampled=3))
    (micro,) = plan_step(asked(GRPO()), [group(promptless)], Layout(99)).micro_batches
    assert micro.predictor_T.tolist() == [0, 1]
    assert micro.tokens.labels_T.tolist() == promptless.tokens[1:].tolist()


def test_a_response_without_tokens_still_counts_as_a_sequence() -> None:
    plan = plan_step(
        asked(GRPO.model_validate({"norm": "constant"}), longest_response=10), [group(rollout(0))], Layout(99)
    )
    assert plan.counts == {"policy": 10.0}
    assert plan.tokens == 0


def test_arrays_that_may_not_be_written_to_can_be_planned() -> None:
    """Those of a decoded message."""
    member = rollout(3)
    frozen: list[Any] = [
        np.frombuffer(array.tobytes(), array.dtype)
        for array in (member.tokens, member.sources, member.behaviour_logprobs)
    ]
    plan = plan_step(asked(GRPO()), [group(Trajectory(*frozen, reward=1.0, finish=member.finish))], Layout(99))
    assert rows_of(plan) == [member.tokens.tolist()]


def test_counts_of_other_terms_are_refused() -> None:
    plan = plan_step(asked(GRPO()), mixed_groups(), Layout(99))
    with pytest.raises(ValueError, match="counts are for the terms"):
        plan.with_counts({"imitation": 3.0})
