"""ReLIFT: numbers worked by hand for both of its steps, and which demonstrations are worth rehearsing."""

from __future__ import annotations

import pytest
import torch
from learner_cases import Lengths as Tokens
from learner_cases import asked, close, demonstration, group, rollout, told, trajectory

from common.config.algorithm import DrGRPO, ReLIFT
from common.config.base import Surrogate
from common.trajectory import Group, Trajectory
from learner.terms import Rehearsal

RIGHT, FAILED = rollout(3, 1.0, seed=1), rollout(2, 0.0, seed=2)


def rehearsal(config: ReLIFT | None = None) -> Rehearsal:
    found = asked(config or ReLIFT()).rehearsal
    assert found is not None
    return found


def test_reinforcement_is_unclipped_dr_grpo_on_rollouts_alone() -> None:
    """A = ±½ although a demonstration came along; ratio 1.5 keeps its slope. Two sequences of at most 10."""
    behaviour = [*RIGHT.behaviour_logprobs[2:].tolist(), *FAILED.behaviour_logprobs[2:].tolist()]
    ratios = torch.tensor([1.0, 1.5, 0.5, 1.0, 1.5], dtype=torch.float64)
    logprobs: list[float] = (torch.tensor(behaviour, dtype=torch.float64) + ratios.log()).tolist()
    groups = [group(RIGHT, FAILED, demonstration(4))]
    result = told(asked(ReLIFT(), longest_response=10), groups, logprobs)
    assert result.value == pytest.approx((-0.5 * 3 + 0.5 * 2.5) / 20, rel=1e-12)
    close(result.by_logprob_T, [s / 20 for s in (-0.5, -0.75, -0.25, 0.5, 0.75)])
    plain = told(asked(DrGRPO(surrogate=Surrogate.UNCLIPPED), longest_response=10), groups, logprobs)
    assert result.by_logprob_T.equal(plain.by_logprob_T)


def test_imitation_is_the_mean_negative_logprob_less_alpha_times_the_mean_entropy() -> None:
    """Over the three tokens of both demonstrations: (1 + 2 + 3)/3 - 0.01 (4 + 5 + 9)/3."""
    waiting = [group(demonstration(2, seed=3)), group(demonstration(1, seed=4))]
    result = told(rehearsal(ReLIFT(sft_entropy_bonus=0.01)).algorithm, waiting, [-1.0, -2.0, -3.0], [4.0, 5.0, 9.0])
    assert result.value == pytest.approx(2 - 0.06, rel=1e-12)
    close(result.by_logprob_T, [-1 / 3] * 3)
    close(result.by_entropy_T, [-0.01 / 3] * 3)


def test_its_defaults_are_those_of_the_paper() -> None:
    found = rehearsal()
    assert (found.size, found.learning_rate, found.algorithm.terms[1].weight) == (128, 1e-6, 1e-4)


@pytest.mark.parametrize(
    ("members", "left"),
    [
        ((FAILED, FAILED, demonstration(2), demonstration(3)), 2),
        ((FAILED, RIGHT, demonstration(2)), None),
        ((FAILED, demonstration(2, 0.0), demonstration(3)), 3),
        ((FAILED, demonstration(2, 0.0)), None),
        ((FAILED,), None),
        ((demonstration(2),), None),
        ((FAILED, trajectory(Tokens(hint=1, sampled=1), 1.0), demonstration(2)), None),
    ],
)
def test_a_prompt_leaves_its_first_right_demonstration_if_every_rollout_failed(
    members: tuple[Trajectory, ...], left: int | None
) -> None:
    found = rehearsal().collects(group(*members))
    assert (found and found.response_length) == left
    assert found is None or (found.is_demonstration and found.is_right)


def test_a_buffer_that_could_never_be_full_is_refused() -> None:
    with pytest.raises(ValueError, match=r"buffer_limit \(7\) must not be below buffer_size \(8\)"):
        ReLIFT(buffer_size=8, buffer_limit=7)


def test_a_group_without_a_demonstration_is_still_reinforced() -> None:
    lone = Group("g", "p", 1, "generator-1", (RIGHT, FAILED))
    assert told(asked(ReLIFT()), [lone], [-1.0] * 5).by_logprob_T.all()
