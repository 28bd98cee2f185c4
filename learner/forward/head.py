"""The output head: log-prob and entropy of each label without ever holding [T, V] logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from common.errors import SettingsError
from learner.forward.tiles import Arithmetic, Manner, Piece, Slopes, tiled

Head: TypeAlias = Callable[[Tensor, Tensor, Tensor, float, int, Tensor | None], tuple[Tensor, Tensor]]
"""What `logprobs_and_entropy` is and what may stand in its place."""


def logprobs_and_entropy(
    hidden_TH: Tensor, head_VH: Tensor, labels_T: Tensor, temperature: float, chunk: int, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """log softmax(z)[label] and the entropy of softmax(z), with z = (hidden · headᵀ + bias) / temperature.    [T], [T]

    Both are differentiable in hidden, head and bias. Sums are taken in float32 (float64 for float64 inputs), also where
    hidden and head are bfloat16; a head of another dtype than hidden is used in hidden's. chunk: how many logits exist
    at a time, at most.
    """
    return tiled(hidden_TH, head_VH, bias, labels_T, Manner(temperature, chunk, Arithmetic(statistics, gradient)))


def logits_at_a_time(device: torch.device) -> int:
    """How many logits to make at a time: on a CPU as many as its cache holds, on a GPU as many as keep it busy."""
    return 2**25 if device.type == "cuda" else 2**20


def choose_head(kind: str, device: torch.device) -> Head:
    """The function that `learner.head` names. SettingsError where "fused" is asked for and cannot be had."""
    if kind == "chunked":
        return logprobs_and_entropy
    if device.type != "cuda":
        raise SettingsError(
            f'learner.head is "{kind}", which needs a GPU, and the learner is on {device.type}: set it to "chunked"'
        )
    try:
        from learner.forward.head_kernels import fused_logprobs_and_entropy
    except ImportError as error:
        raise SettingsError(
            f'learner.head is "{kind}", which needs the package triton ({error}): install the CUDA build of torch, '
            'which brings it, or set it to "chunked"'
        ) from error
    return fused_logprobs_and_entropy


def statistics(piece: Piece) -> Tensor:
    """`Arithmetic.statistics` in plain torch: two buffers of the tile's size."""
    logits_CW, at_C, here_C = _logits(piece), *_within(piece)
    label_C = torch.where(here_C, logits_CW.gather(1, at_C[:, None])[:, 0], 0.0)
    maximum_C = logits_CW.amax(dim=1)
    weights_CW = logits_CW.sub_(maximum_C[:, None]).exp()
    total_C = weights_CW.sum(dim=1)
    return torch.stack([maximum_C, total_C, weights_CW.mul_(logits_CW).sum(dim=1), label_C])


def gradient(piece: Piece, slopes: Slopes, dtype: torch.dtype) -> Tensor:
    """`Arithmetic.gradient` in plain torch: g_logprob (onehot - p) - g_entropy p (log p + H)."""
    logprobs_CW = _logits(piece).sub_(slopes.normaliser_C[:, None])
    by_logprob_C, by_entropy_C = slopes.by_logprob_C, slopes.by_entropy_C
    gradient_CW = logprobs_CW.exp()
    if by_entropy_C is not None:
        slope_CW = logprobs_CW.add_(slopes.entropy_C[:, None]).mul_(by_entropy_C[:, None])
        gradient_CW.mul_((slope_CW if by_logprob_C is None else slope_CW.add_(by_logprob_C[:, None])).neg_())
    elif by_logprob_C is not None:
        gradient_CW.mul_(-by_logprob_C[:, None])
    if by_logprob_C is not None:
        at_C, here_C = _within(piece)
        gradient_CW.scatter_add_(1, at_C[:, None], torch.where(here_C, by_logprob_C, 0.0)[:, None])
    return gradient_CW.to(dtype)


def _logits(piece: Piece) -> Tensor:
    logits_CW = piece.products_CW if piece.bias_W is None else piece.products_CW.add_(piece.bias_W)
    return logits_CW if piece.temperature == 1 else logits_CW.div_(piece.temperature)


def _within(piece: Piece) -> tuple[Tensor, Tensor]:
    """The column of each label, made valid where the label is in another tile; and where it is in this one."""
    width = piece.products_CW.shape[1]
    return piece.labels_C.clamp(0, width - 1), (piece.labels_C >= 0) & (piece.labels_C < width)
