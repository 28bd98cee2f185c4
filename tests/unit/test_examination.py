"""Examined groups: every token with what the learner knew of it, and NaN where there is nothing to know."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import Lengths, asked, demonstration, group, mixed_groups, rollout, trajectory
from tiny_policy import live

from common.config.algorithm import GRPO, LUFFY, AlgorithmConfig
from common.examined import ExaminedGroup, ExaminedTrajectory
from common.trajectory import Group, VersionSpan
from learner.batch import PolicyOutputs
from learner.insight.evidence import Evidence
from learner.insight.examination import Circumstances, chosen_for, examined
from learner.packing.layout import Layout
from learner.packing.plan import plan_step

AT = Circumstances(step=7, revision=3, version=6, at_s=12.5)
NOWHERE = pytest.approx(math.nan, nan_ok=True)


def look(config: AlgorithmConfig, groups: list[Group], numbers: list[int], *, limit: int = 10**6) -> Any:
    """Examine with a policy that gives every response token the log-prob -0.01 * its id."""
    plan = plan_step(asked(config), groups, Layout(limit))
    labels = [micro.tokens.labels_T.double() for micro in plan.micro_batches]
    evidence = Evidence(plan, tuple(PolicyOutputs(-0.01 * ids_T, torch.ones_like(ids_T)) for ids_T in labels))
    return examined(live(config), groups, numbers, evidence, AT)


def values(array: Any) -> Any:
    return pytest.approx(array, rel=1e-6, nan_ok=True)


def test_a_group_says_when_it_was_trained_on_and_by_what() -> None:
    (seen,) = look(GRPO(), mixed_groups(), [1])
    assert isinstance(seen, ExaminedGroup)
    assert (seen.step, seen.revision, seen.version, seen.at_s, seen.algorithm) == (7, 3, 6, 12.5, "grpo")
    assert (seen.group_id, seen.prompt_id, seen.generator) == ("group", "prompt", "generator-1")


def test_a_rollout_has_its_versions_log_probs_and_ratio_to_the_behaviour_policy() -> None:
    spans = (VersionSpan(4, 2, 3), VersionSpan(5, 3, 5))
    member = replace(rollout(3, 1.0), versions=spans, reward_parts={"form": 0.5})
    (seen,) = look(GRPO(divide_by_std=False), [group(member, rollout(3, 0.0, seed=1))], [0])
    first: ExaminedTrajectory = seen.trajectories[0]
    policy = -0.01 * member.tokens[2:]
    assert first.versions.tolist() == [-1, -1, 4, 5, 5]
    assert first.policy_logprobs == values([math.nan, math.nan, *policy])
    assert first.behaviour_logprobs == values([math.nan, math.nan, *member.behaviour_logprobs[2:]])
    assert first.ratios == values([math.nan, math.nan, *np.exp(policy - member.behaviour_logprobs[2:])])
    assert np.isnan(first.expert_logprobs).all()
    assert (first.advantage, first.reward, first.reward_parts) == (0.5, 1.0, {"form": 0.5})
    assert seen.trajectories[1].advantage == -0.5


def test_expert_tokens_have_the_ratio_to_the_expert_policy_known_or_one() -> None:
    known = trajectory(Lengths(hint=2, sampled=1), 1.0, seed=3, expert_known=True)
    unknown = demonstration(2)
    (seen,) = look(LUFFY(), [group(known, unknown)], [0])
    hinted, shown = seen.trajectories
    expert = known.expert_logprobs
    assert expert is not None
    assert hinted.expert_logprobs == values([math.nan, math.nan, *expert[2:4], math.nan])
    assert hinted.behaviour_logprobs == values([*[math.nan] * 4, known.behaviour_logprobs[4]])
    assert hinted.ratios[2:4] == values(np.exp(-0.01 * known.tokens[2:4] - expert[2:4]))
    assert hinted.ratios[4] == values(math.exp(-0.01 * known.tokens[4] - known.behaviour_logprobs[4]))
    assert np.isnan(shown.expert_logprobs).all()
    assert shown.ratios[2:] == values(np.exp(-0.01 * unknown.tokens[2:]))
    assert set(shown.versions.tolist()) == {-1}


def test_a_member_that_the_algorithm_does_not_see_has_nothing_computed() -> None:
    (seen,) = look(GRPO(), [group(rollout(2, 1.0), rollout(2, 0.0), demonstration(3))], [0])
    assert [t.advantage is None for t in seen.trajectories] == [False, False, True]
    left_out = seen.trajectories[2]
    assert np.isnan(left_out.policy_logprobs).all()
    assert np.isnan(left_out.ratios).all()
    assert (left_out.reward, len(left_out.tokens)) == (1.0, 5)


@pytest.mark.parametrize("limit", [1, 13, 10**6])
def test_tokens_find_back_to_their_trajectory_however_the_step_was_cut(limit: int) -> None:
    groups = mixed_groups()
    for number, seen in zip([2, 0], look(LUFFY(), groups, [2, 0], limit=limit), strict=True):
        for member, found in zip(groups[number].trajectories, seen.trajectories, strict=True):
            wanted = np.where(member.sources == 0, np.nan, -0.01 * member.tokens)
            assert found.policy_logprobs == values(wanted)
            assert found.tokens.tolist() == member.tokens.tolist()


def test_the_arrays_of_a_decoded_message_can_be_examined() -> None:
    """They may not be written to."""
    member = rollout(3)
    for array in (member.tokens, member.sources, member.behaviour_logprobs):
        array.setflags(write=False)
    assert len(look(GRPO(), [group(member)], [0])) == 1


def test_every_position_of_a_step_has_its_turn() -> None:
    assert [chosen_for(step, 5, 2) for step in (1, 2, 3, 4)] == [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert chosen_for(1, 2, 9) == [0, 1]
    assert sorted(chosen_for(8, 2, 9)) == [0, 1]
    assert chosen_for(3, 4, 0) == []
