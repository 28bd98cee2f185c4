"""The policy's forward: log-prob and entropy of every response token of a micro-batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.errors import SettingsError
from learner.batch import MicroBatch, PolicyOutputs, Spans
from learner.forward.attending import arguments, is_equipped
from learner.forward.head import Head, logits_at_a_time, logprobs_and_entropy
from learner.ranks.alone import ALONE, Ranks

_TOLERANCE = 0.02

_HEAD = "policy_head"
"""The attribute of a model that names the function which computes its head; without it, `logprobs_and_entropy`."""


class Policy:
    """A model as what it is asked for: see `evaluate`. ranks: those that hold it together."""

    ranks: Ranks = ALONE

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    def shell(self) -> PreTrainedModel:
        """A model of the same build, whose weights may be missing."""
        return self.model

    @staticmethod
    def of(policy: PreTrainedModel | Policy) -> Policy:
        """The policy that a model is, unless it is one already."""
        return policy if isinstance(policy, Policy) else Policy(policy)

    def evaluate(self, micro: MicroBatch, temperature: float) -> PolicyOutputs:
        """What it says about the response tokens of `micro`."""
        return evaluate(self.model, micro, temperature)

    def settle(self) -> None:
        """Let go of what a forward holds that no backward followed."""


def evaluate(model: Any, micro: MicroBatch, temperature: float) -> PolicyOutputs:
    """What `model` (a transformers causal language model) says about the response tokens of `micro`.    [T], [T]

    The vocabulary-wide logits never exist: only the hidden states that predict a response token reach the head.
    """
    hidden_BSH: Tensor = model.base_model(
        input_ids=micro.input_ids, use_cache=False, **_arrangement(model, micro.spans)
    ).last_hidden_state
    hidden_TH = _picked(hidden_BSH.flatten(0, 1), micro.predictor_T)
    if torch.is_autocast_enabled(hidden_TH.device.type):
        # A custom function is not autocast: without this the head would be multiplied in the masters' float32.
        hidden_TH = hidden_TH.to(torch.get_autocast_dtype(hidden_TH.device.type))
    head = model.get_output_embeddings()
    compute: Head = getattr(model, _HEAD, logprobs_and_entropy)
    chunk = logits_at_a_time(hidden_TH.device)
    logprobs_T, entropy_T = compute(
        hidden_TH, head.weight, micro.tokens.labels_T, temperature, chunk, getattr(head, "bias", None)
    )
    return PolicyOutputs(logprobs_T, entropy_T)


def _picked(hidden_PH: Tensor, predictor_T: Tensor) -> Tensor:
    """The hidden states at these positions, of which those that trajectories share repeat.    [P, H] -> [T, H]"""
    # Where an index repeats its gradients are added up: on a CPU with several threads index_select does it in the order
    # of the tokens, indexing in any; on a GPU indexing does, and in float32.
    return hidden_PH[predictor_T] if hidden_PH.is_cuda else hidden_PH.index_select(0, predictor_T)


def use_head(model: Any, head: Head) -> None:
    """Let `evaluate` compute log-probs and entropies of this model with `head`."""
    setattr(model, _HEAD, head)


def _arrangement(model: Any, spans: Spans | None) -> dict[str, Any]:
    """What tells the model which tokens see each other."""
    if spans is None:
        # Rows are padded on the right, and the model is causal: no token ever sees padding, so no mask is needed.
        # Without one the attention kernels take their fast path.
        return {}
    if is_equipped(model):
        return arguments(spans)
    if spans.keys is not None:
        raise ValueError(f"{type(model).__name__} is not equipped for trajectories that share their beginning")
    # Without a mask and a cache transformers takes positions that begin again for sequences of their own. With a mask
    # that lets everything be seen, such as tokenizers make, it would not: they would see each other.
    return {"position_ids": spans.position_ids}


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
