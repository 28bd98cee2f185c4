"""The layout: what the run file asks for, and which models it suits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from span_cases import model_of
from transformers import BloomConfig, BloomForCausalLM, GptOssConfig, GptOssForCausalLM

import learner.forward.suiting
from common.errors import SettingsError
from common.settings import LearnerSettings
from learner.forward.attending import NAME, is_equipped
from learner.forward.suiting import suited
from learner.packing.layout import Layout, Share

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PACKED = Layout(64, packed=True, shared_prompts=True)


@pytest.mark.parametrize(
    ("asked", "device", "packed"),
    [("auto", CPU, False), ("auto", GPU, True), ("rows", GPU, False), ("packed", CPU, True)],
)
def test_auto_packs_on_a_gpu(asked: str, device: torch.device, packed: bool) -> None:
    settings = LearnerSettings.model_validate({"layout": asked, "micro_batch_tokens": 100, "shared_prompts": False})
    assert Layout.of(settings, device) == Layout(100, packed, shared_prompts=False)


def test_layouts_and_shares_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Layout(0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Share(2, 2)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral, sliding window"])
def test_a_layout_that_can_be_computed_stays_and_the_model_is_equipped_for_it(kind: str) -> None:
    model = model_of(kind)
    assert suited(model, PACKED) == PACKED
    assert is_equipped(model)


def test_padded_rows_suit_every_model_untouched() -> None:
    model = model_of("llama")
    assert suited(model, Layout(64)) == Layout(64)
    assert not is_equipped(model)


def unsuited() -> list[Any]:
    """A model that builds its mask itself, and one whose attention has more than queries, keys and values."""
    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size": 8}
    gpt_oss = GptOssConfig(**sizes, **experts, num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
    bloom = BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2)
    return [BloomForCausalLM(bloom).eval(), GptOssForCausalLM(gpt_oss).eval()]


@pytest.mark.parametrize("model", unsuited(), ids=lambda model: type(model).__name__)
def test_a_model_that_cannot_be_packed_is_computed_in_padded_rows(model: Any) -> None:
    own = model.config._attn_implementation
    assert suited(model, PACKED) == Layout(64)
    assert model.config._attn_implementation == own != NAME
    with pytest.raises(SettingsError, match=r'"packed".*cannot be computed so \(.+\): set it to "rows"'):
        suited(model, PACKED, insist=True)


def test_a_model_whose_tokens_see_each_other_is_computed_in_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_said(spans: Any) -> dict[str, Any]:
        return {"position_ids": spans.position_ids, "attention_mask": torch.ones_like(spans.position_ids)}

    monkeypatch.setattr(learner.forward.suiting, "arguments", nothing_said)
    model = model_of("llama")
    assert suited(model, PACKED) == Layout(64)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(SettingsError, match="see those of other trajectories"):
        suited(model, PACKED, insist=True)
