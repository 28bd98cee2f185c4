"""A snapshot is a copy of the weights as they are published, with a canary that tells them from any others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_policy import tiny_model

from common.weights import Canary
from learner.forward.layers import checkpoint_activations
from learner.publication.canary import FLOAT32_TOLERANCE, Singer, canary_tokens, tolerances
from learner.publication.snapshot import Origin, Snapshots

TOKENS = canary_tokens("run", 0, 16, 12)
ORIGIN = Origin(step=7, revision=3)


def snapshots(model: Any, dtype: torch.dtype = torch.float32) -> Snapshots:
    return Snapshots(model, dtype, TOKENS)


def song(model: Any, dtype: torch.dtype = torch.float32) -> Canary:
    """The canary of the weights as they are."""
    sing = snapshots(model, dtype).take(1, ORIGIN).sing
    assert sing is not None
    return sing()


def worst(canary: Canary, other: Canary) -> float:
    return float(np.abs(np.subtract(canary.logprobs, other.logprobs)).max())


def perturb(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))


def test_tied_weights_are_taken_once_and_as_a_copy() -> None:
    tied = tiny_model(tied=True)
    taken = snapshots(tied, torch.bfloat16).take(1, ORIGIN)
    assert "lm_head.weight" not in taken.tensors
    assert all(tensor.dtype == torch.bfloat16 for tensor in taken.tensors.values())
    taken = snapshots(tied).take(2, ORIGIN, updates=3)
    assert (taken.version, taken.origin, taken.updates) == (2, ORIGIN, 3)
    before = taken.tensors["model.norm.weight"].clone()
    perturb(tied)
    assert taken.tensors["model.norm.weight"].equal(before)
    assert not taken.tensors["model.norm.weight"].equal(tied.model.norm.weight)


def test_memory_is_used_again_once_it_is_given_back_and_not_before() -> None:
    model = tiny_model()
    taker = snapshots(model)
    first, second = taker.take(1, ORIGIN), taker.take(2, ORIGIN)
    places = {t.data_ptr() for t in first.tensors.values()}
    assert places.isdisjoint(t.data_ptr() for t in second.tensors.values())
    taker.give_back(first)
    taker.give_back(first)  # a second time gives nothing
    perturb(model)
    third, fourth = taker.take(3, ORIGIN), taker.take(4, ORIGIN)
    assert places == {t.data_ptr() for t in third.tensors.values()}
    assert places.isdisjoint(t.data_ptr() for t in fourth.tensors.values())
    assert all(third.tensors[name].equal(weight) for name, weight in model.state_dict().items())


def test_the_sequences_of_a_run_are_always_the_same_and_those_of_another_are_others() -> None:
    tokens = canary_tokens("run", 0, 1000, 2048)
    assert [len(row) for row in tokens] == [32] * 4
    assert tokens == canary_tokens("run", 0, 1000, 2048)
    assert tokens[0][:4] == (229, 90, 297, 728)  # so that no upgrade changes them unseen
    assert tokens != canary_tokens("run", 1, 1000, 2048)
    assert tokens != canary_tokens("walk", 0, 1000, 2048)
    assert len({token for row in tokens for token in row}) > 100
    assert all(0 <= token < 16 for row in TOKENS for token in row)
    assert [len(row) for row in TOKENS] == [12] * 4


def test_the_canary_is_what_the_model_itself_says_of_the_sequences() -> None:
    model = tiny_model()
    canary = song(model)
    logits = model(torch.tensor(TOKENS)).logits[:, :-1]
    expected = torch.log_softmax(logits, -1).gather(2, torch.tensor(TOKENS)[:, 1:, None]).squeeze(2)
    assert np.allclose(canary.logprobs, expected.detach().numpy(), atol=1e-6)
    assert (canary.tokens, canary.dtype) == (TOKENS, "float32")
    assert (canary.tolerance, canary.mean_tolerance) == FLOAT32_TOLERANCE


def test_the_canary_sings_of_the_weights_as_they_were_taken_and_are_published() -> None:
    model, rounded = tiny_model(), tiny_model(seed=4)
    taken = snapshots(model, torch.bfloat16).take(1, ORIGIN)
    exact = song(model)
    perturb(model)
    assert taken.sing is not None
    canary = taken.sing()
    rounded.load_state_dict({name: tensor.float() for name, tensor in taken.tensors.items()})
    assert worst(canary, song(rounded)) < 1e-6
    assert 1e-5 < worst(canary, exact) < 0.05
    assert canary.dtype == "bfloat16"


def test_singing_changes_neither_the_model_nor_the_generator_of_random_numbers() -> None:
    model = tiny_model()
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    state = torch.get_rng_state()
    song(model, torch.bfloat16)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        assert tensor.equal(before[name][1])
        assert tensor.grad is None
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("tied", [False, True])
def test_a_stale_output_head_is_far_outside_the_tolerance(tied: bool) -> None:
    """The trap of tied embeddings: an engine that renews the embedding and keeps its packed copy of the head."""
    model = tiny_model(tied=tied)
    stale_head = model.lm_head.weight.detach().clone()
    perturb(model)
    right = song(model)
    model.lm_head.weight = torch.nn.Parameter(stale_head)
    assert worst(right, song(model)) > 10 * right.tolerance
    assert worst(right, right) == 0


def test_what_arithmetic_explains_grows_with_the_spread_of_the_logits_in_bfloat16_only() -> None:
    assert tolerances(torch.float32, 9.0) == FLOAT32_TOLERANCE
    assert tolerances(torch.bfloat16, 0.3) == (0.15, 0.05)
    assert tolerances(torch.bfloat16, 10.0) == pytest.approx((2.5, 0.8))


@pytest.mark.parametrize("scale", [1, 30])
def test_bfloat16_arithmetic_stays_inside_its_tolerance(scale: float) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale * 10)
        ids = torch.tensor(TOKENS)
        said = torch.log_softmax(model(ids).logits[:, :-1].float(), -1).gather(2, ids[:, 1:, None]).squeeze(2)
    canary = song(model.float(), torch.bfloat16)
    differences = np.abs(np.subtract(canary.logprobs, said.numpy()))
    assert 0 < differences.max() < canary.tolerance
    assert differences.mean() < canary.mean_tolerance


def test_the_canary_of_a_model_that_computes_activations_again_is_sung_by_the_copy_and_not_by_the_model() -> None:
    model = tiny_model()
    expected = song(model)
    checkpoint_activations(model)
    taken = snapshots(model).take(1, ORIGIN)
    perturb(model)
    assert taken.sing is not None
    assert worst(taken.sing(), expected) < 1e-5


def test_a_shell_holds_no_weights_of_its_own() -> None:
    singer = Singer(tiny_model(), TOKENS)
    assert all(weight.device.type == "meta" for weight in singer._shell.parameters())
