"""Layers that compute their activations twice, or compiled: the same numbers with less memory or in less time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from learner_cases import group, rollout
from tiny_policy import heed, live, same, tiny_model, weights
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from common.config.algorithm import GRPO
from common.errors import SettingsError
from learner.forward.layers import checkpoint_activations, compile_layers
from learner.packing.layout import Layout
from learner.trainer import Trainer

CPU = torch.device("cpu")


def deep_model(**changes: Any) -> Any:
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=4, max_position_embeddings=64, **changes)).eval()


def dropping_model() -> Any:
    """A model whose configuration asks for much dropout."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"vocab_size": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)).eval()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.arange(30)[None] % 16
    model.zero_grad()
    model(input_ids=ids, use_cache=False).logits.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """What the forwards inside keep for their gradients: the bytes of each tensor that is no weight."""
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


@pytest.mark.parametrize("make", [deep_model, dropping_model])
def test_gradients_are_those_of_the_plain_layers(make: Any) -> None:
    plain, lean = make(), make()
    checkpoint_activations(lean)
    expected, found = gradients(plain), gradients(lean)
    assert expected.keys() == found.keys(), "weights keep their names"
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6)


def test_dropout_stays_off() -> None:
    model = dropping_model()
    checkpoint_activations(model)
    assert not any(module.training for module in model.modules())
    first, second = gradients(model), gradients(model)
    assert same(first, second)


def test_far_less_is_kept_for_the_gradient() -> None:
    ids = torch.arange(60)[None] % 16
    bytes_kept: list[int] = []
    for lean in (False, True):
        model = deep_model()
        if lean:
            checkpoint_activations(model)
        with kept_bytes() as kept:
            model.base_model(input_ids=ids, use_cache=False)
        bytes_kept.append(sum(kept))
    assert bytes_kept[1] < 0.25 * bytes_kept[0]


def test_a_trainer_learns_the_same_and_a_copy_of_the_model_is_its_own() -> None:
    groups = [group(rollout(4, 1.0, seed=1), rollout(3, 0.0, seed=2))]
    models = [tiny_model(), tiny_model()]
    checkpoint_activations(models[1])
    copied = copy.deepcopy(models[1])
    plain, lean = (Trainer(model, Layout(64)) for model in models)
    for trainer in (plain, lean):
        trainer.step(live(GRPO()), groups, heed)
    expected = weights(plain)
    for name, weight in weights(lean).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert copied(input_ids=torch.arange(4)[None]).logits.abs().max() == 0, "the copy's layers are the copy's"


def test_a_model_that_does_not_name_its_layers_is_refused() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(SettingsError, match=r"set learner\.activation_checkpointing = false"):
        checkpoint_activations(model)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SettingsError, match=r"learner\.compile needs a C\+\+ compiler"):
        compile_layers(deep_model(), CPU)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler uses what torch itself has deprecated, and looks at every .grad
@pytest.mark.parametrize("lean", [False, True])
def test_compiled_layers_say_the_same(lean: bool) -> None:
    plain, compiled = deep_model(), deep_model()
    if lean:
        checkpoint_activations(compiled)
    try:
        compile_layers(compiled, CPU)
    except SettingsError as reason:
        pytest.skip(str(reason))
    for length in (9, 30, 60):
        ids = torch.arange(length)[None] % 16
        found, expected = (m(input_ids=ids, use_cache=False).logits.log_softmax(-1) for m in (compiled, plain))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    expected_gradients = gradients(plain)
    for name, gradient in gradients(compiled).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-4)
