"""The policy's forward: log-prob and entropy of every response token of a micro-batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.errors import SettingsError
from learner.batch import MicroBatch, PolicyOutputs
from learner.head import logprobs_and_entropy

_LOGITS_PER_CHUNK = 2**24
"""Entries of one chunk of logits: 64 MiB in float32; about three such buffers live at a time."""

_TOLERANCE = 0.02


def evaluate(model: Any, micro: MicroBatch, temperature: float) -> PolicyOutputs:
    """What `model` (a transformers causal language model) says about the response tokens of `micro`.    [T], [T]

    The vocabulary-wide logits never exist: only the hidden states that predict a response token reach the head.
    """
    # Rows are padded on the right, and the model is causal: no token ever sees padding, so no mask is needed. Without
    # one the attention kernels take their fast path.
    hidden_BSH: Tensor = model.base_model(input_ids=micro.input_ids, use_cache=False).last_hidden_state
    hidden_TH = hidden_BSH.flatten(0, 1)[micro.predictor_T]
    if torch.is_autocast_enabled(hidden_TH.device.type):
        # A custom function is not autocast: without this the head would be multiplied in the masters' float32.
        hidden_TH = hidden_TH.to(torch.get_autocast_dtype(hidden_TH.device.type))
    head = model.get_output_embeddings()
    chunk = max(1, _LOGITS_PER_CHUNK // len(head.weight))
    logprobs_T, entropy_T = logprobs_and_entropy(
        hidden_TH, head.weight, micro.tokens.labels_T, temperature, chunk, getattr(head, "bias", None)
    )
    return PolicyOutputs(logprobs_T, entropy_T)


@torch.no_grad()
def check_head(model: Any) -> None:
    """Refuse a model whose logits are more than its output head's (soft-capped, scaled): SettingsError says so."""
    head = model.get_output_embeddings()
    if head is None:
        raise SettingsError(f"{type(model).__name__} has no output head: choose a causal language model")
    ids = torch.arange(2, device=head.weight.device)[None]
    hidden_TH: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    theirs_TV: Tensor = model(input_ids=ids, use_cache=False).logits[0].float()
    worst = float((head(hidden_TH).float() - theirs_TV).abs().max())
    if not worst <= _TOLERANCE * max(1e-3, float(theirs_TV.abs().max())):
        raise SettingsError(
            f"{type(model).__name__} does more to its logits than apply its output head (they differ by {worst:.3g}): "
            "choose a model without logit scaling or soft-capping"
        )
