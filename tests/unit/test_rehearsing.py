"""Rehearsals in the trainer: when they come, what they change, and that nothing about them is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from learner_cases import demonstration, group, rollout
from tiny_policy import heed, live, same, tiny_model, weights

from common.config.algorithm import GRPO, SFT, AlgorithmConfig, ReLIFT
from common.config.live import LiveConfig
from common.trajectory import Group
from learner.algorithms import build
from learner.outcome import Abandoned, Verdict
from learner.packing.layout import Layout
from learner.terms import Algorithm
from learner.trainer import Trainer

REHEARSING = ReLIFT(buffer_size=2, sft_learning_rate=1e-2, sft_entropy_bonus=0.0)


def failed(number: int) -> Group:
    members = group(rollout(3, 0.0, seed=number), rollout(2, 0.0, seed=number + 50), demonstration(4, seed=number))
    return replace(members, group_id=f"g{number}", prompt_id=f"p{number}")


def solved(number: int) -> Group:
    members = group(rollout(3, 1.0, seed=number), rollout(2, 0.0, seed=number + 50))
    return replace(members, group_id=f"s{number}", prompt_id=f"q{number}")


def trainer() -> Trainer:
    return Trainer(tiny_model(), Layout(64))


def moved(source: Trainer) -> Trainer:
    """Another trainer with the state of `source`, as after a restart."""
    other = trainer()
    files = {name: {key: t.clone() for key, t in tensors.items()} for name, tensors in source.tensors().items()}
    other.restore(files, source.updates)
    return other


def everything(subject: Trainer) -> dict[str, torch.Tensor]:
    return {f"{name}/{key}": t.clone() for name, tensors in subject.tensors().items() for key, t in tensors.items()}


def test_a_full_buffer_is_rehearsed_although_the_step_itself_was_flat() -> None:
    """All rewards are zero, so only the demonstrations move the policy: as one step of SFT on them would."""
    rehearsing, imitating = trainer(), trainer()
    outcome = rehearsing.step(live(REHEARSING), [failed(1), failed(2)], heed)
    assert (outcome.verdict, outcome.updated, rehearsing.updates) == (Verdict.FLAT, True, 0)
    assert outcome.rehearsal is not None
    (rehearsal,) = outcome.rehearsal.steps
    assert (rehearsal.trajectories, rehearsal.tokens, rehearsal.learning_rate) == (2, 8, 1e-2)
    assert (outcome.rehearsal.waiting, rehearsing.waiting) == (0, 0)
    imitated = imitating.step(live(SFT()), [failed(1), failed(2)], heed)
    assert imitated.grad_norm == rehearsal.grad_norm
    assert same(weights(rehearsing), weights(imitating))


def test_its_optimiser_is_its_own() -> None:
    subject = trainer()
    subject.step(live(REHEARSING), [failed(1), failed(2)], heed)
    files = subject.tensors()
    assert not files["optimizer"]
    steps = {float(t) for name, t in files["rehearsal_optimizer"].items() if name.endswith(".step")}
    assert steps == {1.0}
    held = {name: tensor.clone() for name, tensor in files["rehearsal_optimizer"].items()}
    subject.step(live(REHEARSING), [solved(3)], heed)
    assert same(dict(subject.tensors()["rehearsal_optimizer"]), held)


def test_it_waits_until_enough_demonstrations_wait() -> None:
    subject = trainer()
    waiting: list[tuple[int, int]] = []
    for groups in ([failed(1)], [solved(2)], [failed(1), solved(3)], [failed(4)]):
        outcome = subject.step(live(REHEARSING), groups, heed)
        assert outcome.rehearsal is not None
        waiting.append((outcome.rehearsal.waiting, len(outcome.rehearsal.steps)))
    assert waiting == [(1, 0), (1, 0), (1, 0), (0, 1)]


def test_at_most_one_follows_a_step_and_the_rest_waits() -> None:
    subject = trainer()
    outcome = subject.step(live(REHEARSING), [failed(n) for n in range(5)], heed)
    assert outcome.rehearsal is not None
    assert (outcome.rehearsal.waiting, len(outcome.rehearsal.steps)) == (3, 1)
    again = subject.step(live(REHEARSING), [solved(9)], heed)
    assert again.rehearsal is not None
    assert (again.rehearsal.waiting, len(again.rehearsal.steps)) == (1, 1)


def test_the_buffer_survives_a_switch_away_and_back() -> None:
    subject = trainer()
    subject.step(live(REHEARSING), [failed(1)], heed)
    other = subject.step(live(GRPO()), [failed(2), solved(3)], heed)
    assert (other.rehearsal, subject.waiting) == (None, 1)
    back = subject.step(live(REHEARSING), [failed(4)], heed)
    assert back.rehearsal is not None
    assert back.rehearsal.updated


def test_clipping_bounds_a_rehearsal_too() -> None:
    subject = trainer()
    bounded = live(REHEARSING, optimizer={"learning_rate": 1e-2, "max_grad_norm": 1e-6})
    subject.step(bounded, [failed(1), failed(2)], heed)
    moments = subject.tensors()["rehearsal_optimizer"]
    total = sum(float(m.square().sum()) for name, m in moments.items() if name.endswith("exp_avg"))
    assert total**0.5 == pytest.approx(0.1 * 1e-6, rel=1e-2)


def test_a_rehearsal_that_is_not_finite_changes_nothing_and_drops_its_demonstrations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def poisoned(config: Any, *, longest_response: int) -> Algorithm:
        algorithm = build(config, longest_response=longest_response)
        rehearsal = algorithm.rehearsal
        assert rehearsal is not None
        terms = tuple(replace(term, weight=float("inf")) for term in rehearsal.algorithm.terms)
        return replace(algorithm, rehearsal=replace(rehearsal, algorithm=replace(rehearsal.algorithm, terms=terms)))

    monkeypatch.setattr("learner.trainer.build", poisoned)
    subject = trainer()
    before = weights(subject)
    outcome = subject.step(live(REHEARSING), [failed(1), failed(2), failed(3)], heed)
    assert outcome.rehearsal is not None
    assert [step.verdict for step in outcome.rehearsal.steps] == [Verdict.NOT_FINITE]
    assert [dropped.prompt_id for dropped in outcome.rehearsal.dropped] == [failed(n).prompt_id for n in (1, 2)]
    assert (outcome.updated, subject.waiting) == (False, 1)
    assert same(before, weights(subject))
    assert "rehearsal_optimizer" not in subject.tensors()


def test_a_step_that_is_not_finite_leaves_the_buffer_alone() -> None:
    subject = trainer()
    subject.step(live(REHEARSING), [failed(1)], heed)
    broken = group(rollout(2, 1e38, seed=1), rollout(2, -3e38, seed=2), demonstration(2))
    plain = ReLIFT(buffer_size=1)
    outcome = subject.step(live(plain), [replace(broken, prompt_id="broken")], heed)
    assert outcome.verdict is Verdict.NOT_FINITE
    assert outcome.rehearsal is not None
    assert (outcome.rehearsal.steps, subject.waiting) == ([], 1)


def run(subject: Trainer, config: AlgorithmConfig, steps: range) -> None:
    for number in steps:
        subject.step(live(config), [failed(2 * number), solved(number), failed(2 * number + 1)], heed)


def test_a_restored_trainer_goes_on_rehearsing_with_the_same_bits() -> None:
    config = ReLIFT(buffer_size=3, sft_learning_rate=1e-2)
    through = trainer()
    run(through, config, range(2))
    assert through.waiting == 1
    restored = moved(through)
    for subject in (through, restored):
        run(subject, config, range(2, 5))
    assert same(everything(through), everything(restored))


def test_a_checkpoint_from_before_there_were_rehearsals_is_restored() -> None:
    subject = trainer()
    subject.step(live(GRPO()), [solved(1)], heed)
    assert set(subject.tensors()) == {"model", "optimizer", "generators"}
    assert moved(subject).waiting == 0


class GivingUp:
    """Heeds `calls` times, then gives up."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise Abandoned("stop")


@pytest.mark.parametrize("restarted", [True, False])
def test_a_rehearsal_that_was_given_up_is_made_up_for_with_the_same_bits(restarted: bool) -> None:
    asked: LiveConfig = live(REHEARSING)
    through, stopped = trainer(), trainer()
    through.step(asked, [failed(1), solved(2), failed(3)], heed)
    outcome = stopped.step(asked, [failed(1), solved(2), failed(3)], GivingUp(1))
    assert outcome.verdict is Verdict.UPDATED, "the step itself stands"
    assert outcome.rehearsal is not None
    assert (outcome.rehearsal.steps, stopped.waiting) == ([], 2)
    if restarted:
        stopped = moved(stopped)
    through.step(asked, [solved(4)], heed)
    late = stopped.step(asked, [solved(4)], heed)
    assert late.rehearsal is not None
    assert [step.trajectories for step in late.rehearsal.steps] == [2]
    assert same(everything(through), everything(stopped))


def test_a_rehearsal_that_is_given_up_twice_is_still_owed() -> None:
    """The second time before the step itself: that is not made either, and comes again."""
    asked: LiveConfig = live(REHEARSING)
    through, stopped = trainer(), trainer()
    through.step(asked, [failed(1), solved(2), failed(3)], heed)
    stopped.step(asked, [failed(1), solved(2), failed(3)], GivingUp(1))
    before = everything(stopped)
    with pytest.raises(Abandoned):
        stopped.step(asked, [solved(4)], GivingUp(0))
    assert same(before, everything(stopped))
    for subject in (through, stopped):
        subject.step(asked, [solved(4)], heed)
    assert same(everything(through), everything(stopped))


def test_what_is_owed_is_forgotten_when_another_algorithm_comes_into_force() -> None:
    subject = trainer()
    subject.step(live(REHEARSING), [failed(1), solved(2), failed(3)], GivingUp(1))
    assert subject.step(live(GRPO()), [solved(4)], heed).rehearsal is None
    assert subject.waiting == 2
    back = subject.step(live(REHEARSING), [solved(5)], heed)
    assert back.rehearsal is not None
    assert len(back.rehearsal.steps) == 1
