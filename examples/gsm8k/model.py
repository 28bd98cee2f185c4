"""The small random model that GSM8K is given when none is named.

It knows nothing, so it shows that a run works and how fast, not how well a method teaches: for that, name a
pretrained model.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.gsm8k.tokenizer import EOS_ID, PAD_ID


def random_model(*, vocabulary: int, max_positions: int, seed: int) -> LlamaForCausalLM:
    """A Llama-shaped model of about 5 M parameters; the same seed gives the same weights.

    The embeddings are untied because a CPU engine that packs its weights keeps the old output head of a tied model.
    """
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=max_positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()
