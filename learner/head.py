"""The output head: log-prob and entropy of each label without ever holding [T, V] logits.

Rows are taken `chunk` at a time, forward and backward. What is kept between the two is [T]: log-sum-exp and entropy.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def logprobs_and_entropy(
    hidden_TH: Tensor, head_VH: Tensor, labels_T: Tensor, temperature: float, chunk: int, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """log softmax(z)[label] and the entropy of softmax(z), with z = (hidden · headᵀ + bias) / temperature.    [T], [T]

    Both are differentiable in hidden, head and bias. Sums are taken in float32 (float64 for float64 inputs), also where
    hidden and head are bfloat16; a head of another dtype than hidden is used in hidden's.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}: it must be greater than 0")
    manner = _Manner(temperature, max(1, chunk))
    chunked = cast(Any, _ChunkedHead.apply)  # pyright: ignore[reportUnknownMemberType]
    return cast(tuple[Tensor, Tensor], chunked(hidden_TH, head_VH, bias, labels_T, manner))


class _Manner(NamedTuple):
    """How logits are made: divided by `temperature`, `chunk` rows at a time."""

    temperature: float
    chunk: int


class _ChunkedHead(torch.autograd.Function):
    """With p = softmax(z) and H its entropy: ∂log p_y/∂z = onehot_y - p and ∂H/∂z = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, head_VH: Tensor, bias: Tensor | None, labels_T: Tensor, manner: _Manner
    ) -> tuple[Tensor, Tensor]:
        rows = len(labels_T)
        wide = _accumulator(hidden_TH.dtype)
        logprobs_T, entropy_T, normaliser_T = (hidden_TH.new_empty(rows, dtype=wide) for _ in range(3))
        operand_VH = _operand(head_VH, hidden_TH)
        for start in range(0, rows, manner.chunk):
            part = slice(start, start + manner.chunk)
            logits_CV = _logits(_operand(hidden_TH[part], hidden_TH), operand_VH, bias, manner.temperature)
            normaliser_C = torch.logsumexp(logits_CV, dim=1)
            logprobs_CV = logits_CV.sub_(normaliser_C[:, None])
            logprobs_T[part] = logprobs_CV.gather(1, labels_T[part, None]).squeeze(1)
            # -Σ p log p, not lse - Σ p z: that is a small difference of large numbers where the policy is sure.
            entropy_T[part] = logprobs_CV.exp().mul_(logprobs_CV).sum(dim=1).neg_()
            normaliser_T[part] = normaliser_C
        ctx.save_for_backward(hidden_TH, head_VH, bias, labels_T, normaliser_T, entropy_T)
        ctx.manner = manner
        ctx.set_materialize_grads(False)
        return logprobs_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        hidden_TH, head_VH, bias, labels_T, normaliser_T, entropy_T = ctx.saved_tensors
        manner: _Manner = ctx.manner
        wants_hidden, wants_head, wants_bias = ctx.needs_input_grad[:3]
        wide = normaliser_T.dtype
        d_hidden_TH = torch.zeros_like(hidden_TH) if wants_hidden else None
        d_head_VH = torch.zeros_like(head_VH, dtype=wide) if wants_head else None
        d_bias_V = torch.zeros_like(bias, dtype=wide) if wants_bias else None
        operand_VH = _operand(head_VH, hidden_TH)
        for start in range(0, len(labels_T), manner.chunk):
            part = slice(start, start + manner.chunk)
            operand_CH = _operand(hidden_TH[part], hidden_TH)
            logits_CV = _logits(operand_CH, operand_VH, bias, manner.temperature)
            by_logprob_C, by_entropy_C = (None if g is None else g[part] for g in gradients)
            d_logits_CV = _logit_gradient(
                logits_CV.sub_(normaliser_T[part, None]), labels_T[part], entropy_T[part], by_logprob_C, by_entropy_C
            ).div_(manner.temperature)
            if d_bias_V is not None:
                d_bias_V += d_logits_CV.sum(dim=0)
            narrow_CV = d_logits_CV.to(operand_VH.dtype)
            if d_hidden_TH is not None:
                d_hidden_TH[part] = _product(narrow_CV, operand_VH, wide).to(hidden_TH.dtype)
            if d_head_VH is not None:
                d_head_VH += _product(narrow_CV.T, operand_CH, wide)
        d_head = None if d_head_VH is None else d_head_VH.to(head_VH.dtype)
        d_bias = None if d_bias_V is None else d_bias_V.to(bias.dtype)
        return d_hidden_TH, d_head, d_bias, None, None


def _logit_gradient(
    logprobs_CV: Tensor, labels_C: Tensor, entropy_C: Tensor, by_logprob_C: Tensor | None, by_entropy_C: Tensor | None
) -> Tensor:
    """g_logprob (onehot - p) - g_entropy p (log p + H)    [C, V]"""
    # -p (g_logprob + g_entropy (log p + H)), then the one-hot: two [C, V] buffers, the given one overwritten.
    probs_CV = logprobs_CV.exp()
    slope_CV = torch.zeros_like(entropy_C)[:, None] if by_logprob_C is None else by_logprob_C[:, None]
    if by_entropy_C is not None:
        slope_CV = logprobs_CV.add_(entropy_C[:, None]).mul_(by_entropy_C[:, None]).add_(slope_CV)
    gradient_CV = probs_CV.mul_(slope_CV).neg_()
    if by_logprob_C is not None:
        gradient_CV.scatter_add_(1, labels_C[:, None], by_logprob_C[:, None])
    return gradient_CV


def _logits(hidden_CH: Tensor, head_VH: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    wide = _accumulator(hidden_CH.dtype)
    logits_CV = _product(hidden_CH, head_VH.T, wide)
    if bias is not None:
        logits_CV += bias
    return logits_CV.div_(temperature)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _operand(tensor: Tensor, hidden: Tensor) -> Tensor:
    """A factor in the dtype it is multiplied in: hidden's on a GPU, which sums bfloat16 in float32; else a wide one."""
    return tensor.to(hidden.dtype if hidden.is_cuda else _accumulator(hidden.dtype))


def _product(left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """left · right, not rounded to anything narrower than `wide`; whatever autocast would like."""
    with torch.autocast(device_type=left.device.type, enabled=False):
        return left @ right if left.dtype == wide else torch.mm(left, right, out_dtype=wide)
