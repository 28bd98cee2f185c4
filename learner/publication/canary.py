"""The canary: fixed token sequences, and what the policy makes of them with the weights exactly as they are published.

An engine that holds these weights gives the same log-probs but for its arithmetic; one that holds others does not.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]
from transformers import PreTrainedModel

from common.weights import Canary

SEQUENCES = 4
LONGEST = 32
FLOAT32_TOLERANCE = (1e-3, 1e-4)
# vLLM and transformers differ by 2e-6 in float32 on a CPU (a stale output head: by 3 to 6). In bfloat16 the difference
# grows with the spread of the logits and the depth: measured against float32 on untrained Llamas, up to 0.04 (6 layers)
# and 0.16 (24 layers) standard deviations of the logits, on average 0.012 and 0.039. Both sides may be off by that.
BFLOAT16_TOLERANCE = (0.15, 0.05)
_OF_SPREAD = (0.25, 0.08)


def canary_tokens(name: str, seed: int, vocabulary: int, longest: int) -> tuple[tuple[int, ...], ...]:
    """The token sequences of a run: the same ones whenever they are asked for. Of at most `longest` tokens each."""
    length = min(LONGEST, longest)
    return tuple(
        tuple(_number(f"{name} {seed} {row} {place}") % vocabulary for place in range(length))
        for row in range(SEQUENCES)
    )


class Singer:
    """Computes the canary of weights in a shell of `model` that has none of its own: beside the training, which goes on
    in the model itself. For one thread at a time.
    """

    def __init__(self, model: PreTrainedModel, tokens: Sequence[Sequence[int]]) -> None:
        self._tokens = tokens
        self._shell = shell_of(model)

    def sing(self, weights: Mapping[str, Tensor]) -> Canary:
        """The canary of `weights`, which are named as the model names its modules' own."""
        dtype = next(weight.dtype for weight in weights.values() if weight.is_floating_point())
        device = next(iter(weights.values())).device
        # bfloat16 is slow on a CPU, and there no engine of ours computes in it.
        wide = device.type == "cpu"
        used = {name: buffer.to(device) for name, buffer in self._shell.named_buffers()}
        used |= {n: weight.float() if wide and weight.dtype == dtype else weight for n, weight in weights.items()}
        ids_BS = torch.tensor(self._tokens, device=device)
        logits_BSV = self._logits(used, ids_BS)
        logprobs_BSV = torch.log_softmax(logits_BSV, dim=-1)
        logprobs_BS = logprobs_BSV.gather(2, ids_BS[:, 1:, None]).squeeze(2)
        tolerance, mean_tolerance = tolerances(dtype, float(logits_BSV.std()))
        return Canary(
            tokens=tuple(tuple(row) for row in self._tokens),
            logprobs=tuple(tuple(float(value) for value in row) for row in logprobs_BS.cpu()),
            tolerance=tolerance,
            mean_tolerance=mean_tolerance,
            dtype=str(dtype).removeprefix("torch."),
        )

    @torch.no_grad()
    def _logits(self, weights: Mapping[str, Tensor], ids_BS: Tensor) -> Tensor:
        call: Any = functional_call
        logits_BSV: Tensor = call(self._shell, weights, (), {"input_ids": ids_BS, "use_cache": False}).logits
        return logits_BSV[:, :-1].float()


def shell_of(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` without its weights: buffers are copied, weights only named."""
    empty = {id(weight): _empty(weight) for weight in model.parameters()}
    return copy.deepcopy(model, cast(dict[int, Any], empty))


def tolerances(dtype: torch.dtype, spread: float) -> tuple[float, float]:
    """The largest and the mean difference of log-probs that arithmetic explains. spread: deviation of the logits."""
    if dtype == torch.float32:
        return FLOAT32_TOLERANCE
    largest, mean = (max(floor, share * spread) for floor, share in zip(BFLOAT16_TOLERANCE, _OF_SPREAD, strict=True))
    return largest, mean


def _empty(weight: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
