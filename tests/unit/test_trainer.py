"""The trainer on a tiny real model: what a step changes, what it leaves alone, and that its state can be moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_policy import heed, same, tiny_model, weights

from common.config.algorithm import GRPO, SFT
from common.config.hints import WholeDemonstration
from common.config.live import LiveConfig, OptimizerConfig
from common.trajectory import Finish, Group, Source, Trajectory
from learner.outcome import Abandoned, Verdict
from learner.packing.layout import Layout
from learner.trainer import Trainer

LIVE = LiveConfig(algorithm=GRPO(), optimizer=OptimizerConfig(learning_rate=1e-2))


def group(seed: int, rewards: tuple[float, ...] = (1.0, 0.0, 0.0)) -> Group:
    random = np.random.default_rng(seed)
    members: list[Trajectory] = []
    for reward in rewards:
        tokens = random.integers(0, 16, 7).astype(np.int32)
        sources = np.array([Source.PROMPT] * 3 + [Source.POLICY] * 4, dtype=np.uint8)
        logprobs = np.where(sources == Source.POLICY, np.float32(-2.8), np.float32(0))
        members.append(Trajectory(tokens, sources, logprobs, reward, Finish.STOP))
    return Group(f"g{seed}", "p", 1, "generator-1", tuple(members))


def test_a_step_moves_every_matrix_and_counts_as_an_update() -> None:
    trainer = Trainer(tiny_model(), Layout(64))
    before = weights(trainer)
    outcome = trainer.step(LIVE, [group(1), group(2)], heed)
    assert outcome.verdict is Verdict.UPDATED
    assert (outcome.tokens, outcome.trajectories, trainer.updates) == (24, 6, 1)
    after = weights(trainer)
    assert all(not after[name].equal(before[name]) for name in before if before[name].ndim == 2)


def test_the_gradient_does_not_depend_on_how_a_step_is_cut_into_micro_batches() -> None:
    norms = [
        Trainer(tiny_model(), Layout(budget)).step(LIVE, [group(1), group(2)], heed).grad_norm
        for budget in (7, 21, 1000)
    ]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def test_clipping_bounds_the_update_and_reports_the_norm_before_it() -> None:
    bounded = LIVE.model_copy(update={"optimizer": OptimizerConfig(learning_rate=1e-2, max_grad_norm=1e-6)})
    loose, tight = Trainer(tiny_model(), Layout(64)), Trainer(tiny_model(), Layout(64))
    assert loose.step(LIVE, [group(1)], heed).grad_norm == tight.step(bounded, [group(1)], heed).grad_norm
    moments = tight.tensors()["optimizer"]
    total = sum(float(m.square().sum()) for name, m in moments.items() if name.endswith("exp_avg"))
    assert total**0.5 == pytest.approx(0.1 * 1e-6, rel=1e-2)


def test_equal_rewards_leave_weights_and_optimiser_alone() -> None:
    trainer = Trainer(tiny_model(), Layout(64))
    before = weights(trainer)
    outcome = trainer.step(LIVE, [group(1, (1.0, 1.0))], heed)
    assert (outcome.verdict, outcome.grad_norm, outcome.flat_groups) == (Verdict.FLAT, 0.0, 1)
    assert same(before, weights(trainer))
    assert not trainer.tensors()["optimizer"]


def test_groups_with_nothing_for_the_algorithm_make_a_flat_step() -> None:
    live = LiveConfig(algorithm=SFT(), hints=WholeDemonstration())
    assert Trainer(tiny_model(), Layout(64)).step(live, [group(1)], heed).verdict is Verdict.FLAT


@pytest.mark.parametrize("rewards", [(1e38, -3e38, 1e38), (1e300, 0.0, 0.0)])
def test_a_step_that_is_not_finite_changes_nothing(rewards: tuple[float, ...]) -> None:
    trainer = Trainer(tiny_model(), Layout(64))
    live = LIVE.model_copy(update={"algorithm": GRPO(divide_by_std=False)})
    before = weights(trainer)
    assert trainer.step(live, [group(1, rewards)], heed).verdict is Verdict.NOT_FINITE
    assert same(before, weights(trainer))
    assert trainer.updates == 0


def test_an_abandoned_step_changes_nothing() -> None:
    trainer = Trainer(tiny_model(), Layout(7))
    before = weights(trainer)
    calls = iter([None, None, Abandoned("stop")])

    def give_up() -> None:
        reason = next(calls)
        if reason is not None:
            raise reason

    with pytest.raises(Abandoned):
        trainer.step(LIVE, [group(1)], give_up)
    assert same(before, weights(trainer))
    undisturbed = Trainer(tiny_model(), Layout(7))
    assert trainer.step(LIVE, [group(1)], heed).grad_norm == undisturbed.step(LIVE, [group(1)], heed).grad_norm


@pytest.mark.parametrize("tied", [False, True])
def test_a_restored_trainer_goes_on_with_the_same_bits(tied: bool) -> None:
    first = Trainer(tiny_model(tied=tied), Layout(64))
    first.step(LIVE, [group(1)], heed)
    saved = {name: {key: t.clone() for key, t in tensors.items()} for name, tensors in first.tensors().items()}
    second = Trainer(tiny_model(tied=tied), Layout(64))
    second.restore(saved, first.updates)
    for trainer in (first, second):
        trainer.step(LIVE, [group(2)], heed)
    assert same(weights(first), weights(second))
    assert same(dict(first.tensors()["optimizer"]), dict(second.tensors()["optimizer"]))


def test_the_state_of_another_model_is_refused() -> None:
    trainer = Trainer(tiny_model(), Layout(64))
    other = {**trainer.tensors(), "model": {"weight": torch.zeros(2)}}
    with pytest.raises(ValueError, match="other names or shapes"):
        trainer.restore(other, 0)


def test_weight_decay_shrinks_matrices_and_spares_norms() -> None:
    decaying = LIVE.model_copy(update={"optimizer": OptimizerConfig(learning_rate=1e-2, weight_decay=1.0)})
    plain, decayed = Trainer(tiny_model(), Layout(64)), Trainer(tiny_model(), Layout(64))
    plain.step(LIVE, [group(1)], heed)
    decayed.step(decaying, [group(1)], heed)
    first, second = weights(plain), weights(decayed)
    assert first["model.norm.weight"].equal(second["model.norm.weight"])
    assert not first["lm_head.weight"].equal(second["lm_head.weight"])
