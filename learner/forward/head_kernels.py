"""The output head's arithmetic as Triton kernels: each reads a tile of the logits once, where torch takes six passes.

Matrix products stay torch's, in bfloat16 summed in float32. Imported only where `learner.head` is "fused": triton comes
with the CUDA build of torch and is missing elsewhere.
"""

# Triton's language has no types to check, and on a CPU there is no Triton.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownArgumentType=false
# pyright: reportUntypedFunctionDecorator=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from learner.forward.tiles import Arithmetic, Manner, Piece, Slopes, tiled

_BLOCK = 1024


def fused_logprobs_and_entropy(
    hidden_TH: Tensor, head_VH: Tensor, labels_T: Tensor, temperature: float, chunk: int, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`learner.head.logprobs_and_entropy`, its passes over the logits fused."""
    return tiled(hidden_TH, head_VH, bias, labels_T, Manner(temperature, chunk, Arithmetic(statistics, gradient)))


def statistics(piece: Piece) -> Tensor:
    """`Arithmetic.statistics` in one pass, without a buffer."""
    products_CW = piece.products_CW
    found_4C = products_CW.new_empty(4, len(products_CW))
    _statistics_kernel[(len(products_CW),)](
        products_CW,
        piece.labels_C,
        products_CW if piece.bias_W is None else piece.bias_W,
        found_4C,
        products_CW.shape[0],
        products_CW.shape[1],
        piece.temperature,
        HAS_BIAS=piece.bias_W is not None,
        BLOCK=_BLOCK,
    )
    return found_4C


def gradient(piece: Piece, slopes: Slopes, dtype: torch.dtype) -> Tensor:
    """`Arithmetic.gradient` in one pass, written where the products were or, if narrower, beside them."""
    products_CW = piece.products_CW
    rows, width = products_CW.shape
    gradient_CW = products_CW if dtype == products_CW.dtype else torch.empty_like(products_CW, dtype=dtype)
    by_logprob_C, by_entropy_C = slopes.by_logprob_C, slopes.by_entropy_C
    _gradient_kernel[(rows, triton.cdiv(width, _BLOCK))](
        products_CW,
        gradient_CW,
        piece.labels_C,
        products_CW if piece.bias_W is None else piece.bias_W,
        slopes.normaliser_C,
        slopes.entropy_C,
        slopes.normaliser_C if by_logprob_C is None else by_logprob_C.contiguous(),
        slopes.normaliser_C if by_entropy_C is None else by_entropy_C.contiguous(),
        width,
        piece.temperature,
        HAS_BIAS=piece.bias_W is not None,
        BY_LOGPROB=by_logprob_C is not None,
        BY_ENTROPY=by_entropy_C is not None,
        BLOCK=_BLOCK,
    )
    return gradient_CW


@triton.jit
def _logits(products, bias, row_start, at, inside, temperature, HAS_BIAS: tl.constexpr):
    """A block of z = (products + bias) / temperature; -inf beyond the row's end."""
    z = tl.load(products + row_start + at, mask=inside, other=0.0)
    if HAS_BIAS:
        z += tl.load(bias + at, mask=inside, other=0.0).to(z.dtype)
    return tl.where(inside, z / tl.cast(temperature, z.dtype), -float("inf"))


@triton.jit
def _statistics_kernel(
    products, labels, bias, found, rows, width, temperature, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    """One row: its maximum, total and moment relative to the maximum so far, and the label's z, block by block."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    lanes = tl.arange(0, BLOCK)
    first = _logits(products, bias, row * width, lanes, lanes < width, temperature, HAS_BIAS)
    maximum = tl.max(first, axis=0)
    nothing = tl.sum(tl.zeros_like(first), axis=0)
    total, moment, at_label = nothing, nothing, nothing
    for start in range(0, width, BLOCK):
        at = start + lanes
        inside = at < width
        z = _logits(products, bias, row * width, at, inside, temperature, HAS_BIAS)
        risen = tl.maximum(maximum, tl.max(z, axis=0))
        lower = maximum - risen
        share = tl.exp(lower)
        below = tl.where(inside, z - risen, 0.0)
        weight = tl.where(inside, tl.exp(below), 0.0)
        moment = share * (moment + lower * total) + tl.sum(weight * below, axis=0)
        total = share * total + tl.sum(weight, axis=0)
        at_label += tl.sum(tl.where((at == label) & inside, z, 0.0), axis=0)
        maximum = risen
    tl.store(found + row, maximum)
    tl.store(found + rows + row, total)
    tl.store(found + 2 * rows + row, moment)
    tl.store(found + 3 * rows + row, at_label)


@triton.jit
def _gradient_kernel(
    products, gradient, labels, bias, normaliser, entropy, by_logprob, by_entropy, width, temperature,
    HAS_BIAS: tl.constexpr, BY_LOGPROB: tl.constexpr, BY_ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of a row: g_logprob (onehot - p) - g_entropy p (log p + H), in place of the products or elsewhere."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    z = _logits(products, bias, row * width, at, inside, temperature, HAS_BIAS)
    logprob = tl.where(inside, z - tl.load(normaliser + row), 0.0)
    p = tl.exp(logprob)
    slope = tl.zeros_like(p)
    if BY_LOGPROB:
        by = tl.load(by_logprob + row)
        slope += by * (tl.where(at == tl.load(labels + row), 1.0, 0.0) - p)
    if BY_ENTROPY:
        slope -= tl.load(by_entropy + row) * p * (logprob + tl.load(entropy + row))
    tl.store(gradient + row * width + at, slope.to(gradient.dtype.element_ty), mask=inside)
