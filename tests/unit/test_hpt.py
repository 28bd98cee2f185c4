"""HPT: the gate of a prompt, and numbers worked by hand."""

from __future__ import annotations

import pytest
from learner_cases import Lengths as Tokens
from learner_cases import asked, close, demonstration, group, rollout, told, trajectory

from common.config.algorithm import HPT, DrGRPO
from common.trajectory import Trajectory

EXPERT = demonstration(4, 1.0, seed=1)
HARD = group(rollout(3, 0.0, seed=2), rollout(2, 0.0, seed=3), EXPERT)
EASY = group(rollout(3, 1.0, seed=4), rollout(2, 0.0, seed=5), demonstration(9, 1.0, seed=6))


def test_an_unsolved_prompt_is_imitated_and_a_solved_one_reinforced() -> None:
    """The demonstration of four tokens: -¼ each. The rollouts: A = ±½ at ratio 1 over three sequences of at most 10."""
    sampled = [p for member in EASY.trajectories[:2] for p in member.behaviour_logprobs[2:].tolist()]
    result = told(asked(HPT(), longest_response=10), [HARD, EASY], [-1.0, -2.0, -3.0, -4.0, *sampled])
    assert result.sums.record()["terms"]["imitation"] == pytest.approx(2.5, rel=1e-12)
    assert result.sums.record()["terms"]["policy"] == pytest.approx(-0.5 / 30, rel=1e-12)
    close(result.by_logprob_T, [-0.25] * 4 + [-0.5 / 30] * 3 + [0.5 / 30] * 2)
    assert result.plan.flat_groups == 0


def test_the_coefficient_weighs_the_imitation() -> None:
    result = told(asked(HPT(sft_coefficient=0.5)), [HARD], [-1.0] * 4)
    assert result.value == pytest.approx(0.5, rel=1e-12)
    close(result.by_logprob_T, [-0.125] * 4)


@pytest.mark.parametrize(("gate", "imitated"), [(0, [True, False]), (1, [True, True])])
def test_the_gate_is_the_largest_number_of_right_rollouts_that_gives_way(gate: int, imitated: list[bool]) -> None:
    admits = asked(HPT(gate=gate)).admits
    for asked_group, gives_way in zip((HARD, EASY), imitated, strict=True):
        seen = admits(asked_group.trajectories)
        assert all(member.is_demonstration is gives_way for member in seen)
        assert len(seen) == (1 if gives_way else 2)


def test_without_a_demonstration_an_unsolved_prompt_stays_with_its_rollouts() -> None:
    hinted = trajectory(Tokens(hint=1, sampled=2), 0.0, seed=7)
    members: list[Trajectory] = [rollout(2, 0.0), hinted]
    assert asked(HPT()).admits(members) == members


def test_two_demonstrations_of_one_prompt_are_both_imitated_and_not_flat() -> None:
    both = group(rollout(2, 0.0), EXPERT, demonstration(2, 1.0, seed=8))
    result = told(asked(HPT()), [both], [-1.0] * 6)
    close(result.by_logprob_T, [-1 / 6] * 6)
    assert result.plan.flat_groups == 0


def test_where_every_prompt_is_solved_it_is_dr_grpo() -> None:
    logprobs = [-1.0, -0.2, -2.0, -0.4, -1.6]
    mine, plain = (told(asked(config), [EASY], logprobs) for config in (HPT(), DrGRPO()))
    assert mine.value == plain.value
    assert mine.by_logprob_T.equal(plain.by_logprob_T)
