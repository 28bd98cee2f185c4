"""Every member of the union through a real trainer: switched into and out of while it runs, and cut anyhow."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_policy import fed_groups, heed, live, same, tiny_model, weights

from common.config.algorithm import ALGORITHMS, GRPO, SFT, SRFT, AlgorithmConfig, PrefixRFT, ReLIFT
from common.config.base import EntropyScope, Selection
from learner.outcome import Verdict
from learner.packing.layout import Layout
from learner.trainer import Trainer

EVERY: tuple[AlgorithmConfig, ...] = (
    *(ReLIFT(buffer_size=1) if asked is ReLIFT else asked() for asked in ALGORITHMS),
    PrefixRFT(selection=Selection.BATCH, kl_coefficient=0.1),
    SRFT(entropy_scope=EntropyScope.BATCH),
    GRPO(kl_coefficient=0.1, entropy_bonus=0.01),
)

every_member = pytest.mark.parametrize("config", EVERY, ids=lambda c: f"{c.kind}-{EVERY.index(c)}")


@every_member
def test_a_run_can_be_switched_into_and_out_of_every_algorithm(config: AlgorithmConfig) -> None:
    trainer = Trainer(tiny_model(), Layout(30), load_reference=tiny_model)
    for updates, asked in enumerate((GRPO(), config, GRPO()), start=1):
        before = weights(trainer)
        outcome = trainer.step(live(asked), fed_groups(asked), heed)
        assert outcome.verdict is Verdict.UPDATED
        json.dumps(outcome.sums.record(), allow_nan=False)
        assert 0 < outcome.grad_norm < math.inf
        assert outcome.tokens > 0
        after = weights(trainer)
        assert all(tensor.isfinite().all() for tensor in after.values())
        assert not same(before, after)
        moments = trainer.tensors()["optimizer"]
        counts = {float(moment) for name, moment in moments.items() if name.endswith(".step")}
        assert counts == {updates} == {trainer.updates}, "the optimiser's state lives through the switch"
    assert (trainer.tensors().get("rehearsal_optimizer") is not None) is isinstance(config, ReLIFT)


@every_member
def test_groups_of_another_algorithm_are_no_harm_after_a_switch(config: AlgorithmConfig) -> None:
    """What was on its way when the operator switched was made for the algorithm before."""
    for former in (GRPO(), *EVERY):
        trainer = Trainer(tiny_model(), Layout(64), load_reference=tiny_model)
        outcome = trainer.step(live(config), fed_groups(former), heed)
        assert outcome.verdict is not Verdict.NOT_FINITE
        assert all(tensor.isfinite().all() for tensor in weights(trainer).values())


@pytest.mark.parametrize("budget", [1, 20, 10**6])
def test_the_trainer_looks_at_the_whole_step_before_it_learns_from_a_part(budget: int) -> None:
    """Of two hints of five tokens ceil(0.3 · 10) = 3 are kept, however they are spread; in each it would be two."""
    config = PrefixRFT(selection=Selection.BATCH, keep_share=0.3)
    outcome = Trainer(tiny_model(), Layout(budget)).step(live(config), fed_groups(config), heed)
    assert outcome.sums.record()["clip_fraction"]["hint"] == pytest.approx(0.7)
    single = Trainer(tiny_model(), Layout(budget)).step(live(PrefixRFT(keep_share=0.3)), fed_groups(config), heed)
    assert single.sums.record()["clip_fraction"]["hint"] == pytest.approx(0.6)


def test_the_weight_of_the_whole_step_is_one_for_all_demonstrations() -> None:
    """w_SFT = ½ e^-H is then a factor of SFT's loss; H is just below log 16 on this policy."""
    asked = SRFT(entropy_scope=EntropyScope.BATCH)
    weighted, plain = (
        Trainer(tiny_model(), Layout(1)).step(live(config), fed_groups(asked), heed).sums.record()["terms"]["imitation"]
        for config in (asked, SFT())
    )
    assert 0.5 / 16 < weighted / plain < 0.5 / 15


@every_member
def test_the_trainer_finds_the_same_gradient_however_it_cuts_a_step(config: AlgorithmConfig) -> None:
    """AdamW's first moment after one update is 0.1 times the clipped gradient."""

    def learnt(budget: int) -> tuple[torch.Tensor, float]:
        trainer = Trainer(
            tiny_model(dtype=torch.float64),
            Layout(budget),
            load_reference=lambda: tiny_model(seed=4, dtype=torch.float64),
        )
        outcome = trainer.step(live(config), fed_groups(config), heed)
        files = trainer.tensors()
        moments = {**files["optimizer"], **{f"+{k}": v for k, v in files.get("rehearsal_optimizer", {}).items()}}
        flat = torch.cat([m.flatten() for name, m in sorted(moments.items()) if name.endswith(".exp_avg")])
        return flat, outcome.sums.record()["loss"]

    whole, loss = learnt(10**6)
    assert whole.any()
    for budget in (1, 20):
        cut, cut_loss = learnt(budget)
        assert (cut - whole).norm() <= 1e-12 * whole.norm()
        assert cut_loss == pytest.approx(loss, rel=1e-12)
