"""The frozen reference: there when it is needed, the model of the beginning, and gone when it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_policy import fed_groups, heed, live, same, tiny_model, weights

from common.config.algorithm import GRPO, UFT
from common.errors import SettingsError
from learner.forward.reference import Reference, ReferenceMissing
from learner.packing.layout import Layout
from learner.trainer import Trainer

DEVICE = torch.device("cpu")
ANCHORED = GRPO(kl_coefficient=0.5)


class Shelf:
    """Where the reference comes from; counts how often it was fetched."""

    def __init__(self) -> None:
        self.fetched = 0

    def __call__(self) -> Any:
        self.fetched += 1
        return tiny_model()


def test_it_is_fetched_when_it_is_first_needed_and_given_back_when_it_is_not() -> None:
    shelf = Shelf()
    reference = Reference(shelf, DEVICE)
    reference.hold(False)
    assert (shelf.fetched, reference.is_held) == (0, False)
    for _ in range(2):
        reference.hold(True)
    assert (shelf.fetched, reference.is_held) == (1, True)
    reference.hold(False)
    assert not reference.is_held
    reference.hold(True)
    assert shelf.fetched == 2


def test_a_run_holds_it_only_while_a_revision_asks_for_it() -> None:
    shelf = Shelf()
    trainer = Trainer(tiny_model(), Layout(64), load_reference=shelf)
    for config, fetched in ((GRPO(), 0), (ANCHORED, 1), (UFT(), 1), (GRPO(), 1), (ANCHORED, 2)):
        trainer.step(live(config), fed_groups(config), heed)
        assert shelf.fetched == fetched


def test_the_policy_agrees_with_it_to_the_bit_until_the_first_update() -> None:
    """k3 is zero and so is its gradient: the step is that without the term."""
    anchored, free = (Trainer(tiny_model(), Layout(64), load_reference=tiny_model) for _ in range(2))
    first = anchored.step(live(ANCHORED), fed_groups(ANCHORED), heed)
    free.step(live(GRPO()), fed_groups(ANCHORED), heed)
    assert first.sums.record()["terms"]["kl"] == 0
    assert same(weights(anchored), weights(free))
    second = anchored.step(live(ANCHORED), fed_groups(ANCHORED), heed)
    assert second.sums.record()["terms"]["kl"] > 0


def test_it_is_the_model_of_the_beginning_also_after_a_restore() -> None:
    """Two runs to the same place, one of them restored on the way: the KL is the same."""
    through, restored = (Trainer(tiny_model(), Layout(64), load_reference=tiny_model) for _ in range(2))
    through.step(live(ANCHORED), fed_groups(ANCHORED), heed)
    restored.restore(through.tensors(), through.updates)
    ends = [t.step(live(ANCHORED), fed_groups(ANCHORED), heed).sums.record()["terms"] for t in (through, restored)]
    assert ends[0] == ends[1]
    assert ends[0]["kl"] > 0


def test_the_penalty_pulls_the_policy_back() -> None:
    """Under equal rewards nothing else moves it: the KL falls."""
    trainer = Trainer(tiny_model(seed=5), Layout(64), load_reference=tiny_model)
    config = GRPO(kl_coefficient=1.0)
    groups = [g for g in fed_groups(config) if not any(t.is_right for t in g.trajectories)]
    divergence = [trainer.step(live(config), groups, heed).sums.record()["terms"]["kl"] for _ in range(8)]
    assert divergence[-1] < 0.8 * divergence[0]


def test_its_log_probs_send_no_gradient_and_are_of_the_sampling_temperature() -> None:
    trainer = Trainer(tiny_model(), Layout(64), load_reference=tiny_model)
    warm = live(ANCHORED, sampling={"temperature": 1.7, "max_response_tokens": 16})
    assert trainer.step(warm, fed_groups(ANCHORED), heed).sums.record()["terms"]["kl"] == 0


def test_fetching_it_leaves_the_random_generators_alone() -> None:
    def fetch() -> Any:
        torch.rand(7)
        return tiny_model(seed=9)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    Reference(fetch, DEVICE).hold(True)
    assert torch.get_rng_state().equal(before)


def test_one_that_cannot_be_loaded_is_a_sentence_with_the_remedy() -> None:
    def fetch() -> Any:
        raise SettingsError("model.path: /gone is not a Hugging Face model directory: correct it")

    trainer = Trainer(tiny_model(), Layout(64), load_reference=fetch)
    before = weights(trainer)
    with pytest.raises(
        ReferenceMissing, match=r"kl_coefficient asks for cannot be loaded: .*/gone .*kl_coefficient to 0"
    ):
        trainer.step(live(ANCHORED), fed_groups(ANCHORED), heed)
    assert same(before, weights(trainer))


def test_one_that_does_not_fit_into_memory_is_a_sentence_too() -> None:
    def fetch() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ReferenceMissing, match="does not fit into memory beside the policy"):
        Reference(fetch, DEVICE).hold(True)
