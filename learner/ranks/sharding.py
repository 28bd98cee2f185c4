"""Sharding: one model spread over all ranks (FSDP2). Each holds its share of every parameter, gradient and moment.

Before a layer computes, its parameters are gathered; afterwards they are let go again, and gradients are added up where
their share lives. Only rank 0 reads the model; the others get their shares from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from learner.batch import MicroBatch, PolicyOutputs
from learner.forward.model import named_weights
from learner.forward.policy import Policy, evaluate
from learner.publication.canary import shell_of
from learner.ranks.alone import Ranks
from learner.ranks.collective import CollectiveRanks


class _Root(nn.Module):
    """A module whose forward is all of what is asked of a policy: embeddings and head are whole only within it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, micro: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy of the response tokens.    [T], [T]"""
        outputs = evaluate(self.model, micro, temperature)
        # Not views of anything, which the hooks of FSDP do not bear.
        return outputs.logprobs_T.clone(), outputs.entropy_T.clone()


class ShardedPolicy(Policy):
    """A policy that all ranks have a share of. Every one of them has to ask it at the same time."""

    def __init__(self, root: _Root, shell: PreTrainedModel, ranks: Ranks) -> None:
        super().__init__(root.model)
        self.ranks = ranks
        self._root = root
        self._shell = shell
        self._has_begun = False

    @property
    def shell(self) -> PreTrainedModel:
        """A model of the same build without weights."""
        return self._shell

    def evaluate(self, micro: MicroBatch, temperature: float) -> PolicyOutputs:
        """What it says about the response tokens of this rank's `micro`."""
        self._has_begun = True
        logprobs_T, entropy_T = self._root(micro, temperature)
        # Copies: a gradient taken with respect to the originals would set off the hooks that gather the parameters.
        return PolicyOutputs(logprobs_T.clone(), entropy_T.clone())

    def settle(self) -> None:
        """Let go of what a forward has gathered and no backward followed."""
        if self._has_begun:
            cast(FSDPModule, self._root).reset_iter_state()
            self._has_begun = False


def shard(model: PreTrainedModel, ranks: CollectiveRanks, device: torch.device) -> ShardedPolicy:
    """Spread a model over the ranks. On a GPU it computes in bfloat16 and adds gradients up in float32."""
    shell = shell_of(model)
    root = _Root(model)
    precision = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if device.type == "cuda"
        else MixedPrecisionPolicy()
    )
    for part in (*_layers(model), root):
        fully_shard(part, mesh=ranks.mesh, mp_policy=precision)
        # The objective divides by counts over all ranks: gradients are added up, not averaged.
        whole = cast(FSDPModule, part)
        whole.set_gradient_divide_factor(1.0)
        whole.set_force_sum_reduction_for_comms(True)
        # What a rank's tokens did not pass through, such as an expert, adds zeros: all ranks have to add up the same.
        whole.set_reduce_scatter_unused_params(True, recurse=False)
    return ShardedPolicy(root, shell, ranks)


def spread(
    load: Callable[[], PreTrainedModel],
    ranks: CollectiveRanks,
    device: torch.device,
    prepare: Callable[[PreTrainedModel], object],
) -> ShardedPolicy:
    """The model that `load` returns at rank 0, in host memory there and nowhere else, spread over the ranks.

    prepare: what is to be done to its modules before.
    """
    if ranks.rank == 0:
        model = load()
        ranks.tell(model.config.to_json_string(use_diff=False).encode())
    else:
        model = _structure(json.loads(ranks.hear()))
    # What the tensors are before they are sharded: the values at rank 0, only shapes elsewhere.
    originals = {name: tensor.detach() for name, tensor in _tensors(model)}
    prepare(model)
    policy = shard(model, ranks, device)
    with torch.no_grad():
        for name, tensor in _tensors(model):
            ranks.fill(tensor.detach(), originals.pop(name))
    return policy


def _structure(document: dict[str, Any]) -> PreTrainedModel:
    """A model of this configuration whose values are still to come; it takes no memory worth mentioning until then."""
    config: Any = AutoConfig.for_model(**document)  # pyright: ignore[reportUnknownMemberType]
    make = cast(Any, AutoModelForCausalLM).from_config
    with torch.device("meta"):
        model: Any = make(config, dtype=torch.float32)
    model.to_empty(device="cpu")  # not touched: the system has given out no page of it yet
    model.tie_weights()
    return model.eval()


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once, and every buffer, those that no checkpoint holds included."""
    weights = named_weights(model)
    yield from weights.items()
    for name, buffer in model.named_buffers():
        if name not in weights:
            yield str(name), buffer


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers, as the model names their class."""
    named: Iterable[str] = cast(Any, model)._no_split_modules or ()
    names = set(named)
    return [module for module in model.modules() if type(module).__name__ in names]
