"""The canary: fixed token sequences, and what the policy makes of them with the weights exactly as they are published.

An engine that holds these weights gives the same log-probs but for its arithmetic; one that holds others does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]
from transformers import PreTrainedModel

from common.weights import Canary

SEQUENCES = 4
LONGEST = 32
# Measured between transformers and vLLM on a CPU: 2e-6 in float32, up to 0.08 in bfloat16; a stale output head: 3 to 6.
TOLERANCES = {torch.float32: (1e-3, 1e-4)}
_OTHERS = (0.15, 0.05)


def canary_tokens(name: str, seed: int, vocabulary: int, longest: int) -> tuple[tuple[int, ...], ...]:
    """The token sequences of a run: the same ones whenever they are asked for. Of at most `longest` tokens each."""
    length = min(LONGEST, longest)
    return tuple(
        tuple(_number(f"{name} {seed} {row} {place}") % vocabulary for place in range(length))
        for row in range(SEQUENCES)
    )


def sing(model: PreTrainedModel, weights: Mapping[str, Tensor], tokens: Sequence[Sequence[int]]) -> Canary:
    """The canary of `model` with `weights` (by the names of its modules) in place of its own, which are not touched."""
    dtype = next(weight.dtype for weight in weights.values() if weight.is_floating_point())
    on_cpu = all(weight.device.type == "cpu" for weight in weights.values())
    # bfloat16 is slow on a CPU, and there no engine of ours computes in it.
    used = {name: weight.float() if on_cpu and weight.dtype == dtype else weight for name, weight in weights.items()}
    ids_BS = torch.tensor(tokens, device=next(iter(weights.values())).device)
    call: Any = functional_call
    with torch.no_grad():
        logits_BSV: Tensor = call(model, used, (), {"input_ids": ids_BS, "use_cache": False}, strict=False).logits
        logprobs_BSV = torch.log_softmax(logits_BSV[:, :-1].float(), dim=-1)
        logprobs_BS = logprobs_BSV.gather(2, ids_BS[:, 1:, None]).squeeze(2).cpu()
    tolerance, mean_tolerance = TOLERANCES.get(dtype, _OTHERS)
    return Canary(
        tokens=tuple(tuple(row) for row in tokens),
        logprobs=tuple(tuple(float(value) for value in row) for row in logprobs_BS),
        tolerance=tolerance,
        mean_tolerance=mean_tolerance,
        dtype=str(dtype).removeprefix("torch."),
    )


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
