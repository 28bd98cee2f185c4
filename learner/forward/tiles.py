"""The tiles in which the output head's logits are made, forward and backward, each soon forgotten.

A tile is some rows and some columns (of the vocabulary). What is kept between forward and backward is [T]: log-sum-exp
and entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_EVEN = 128
"""Tiles are cut at multiples of this many rows and columns: matrix products like that."""


class Piece(NamedTuple):
    """A tile of the logits before bias and temperature, which may be overwritten.    [C, W]

    labels_C: the column of each row's label counted from the tile's first; below 0 or from W on where it is elsewhere.
    """

    products_CW: Tensor
    labels_C: Tensor
    bias_W: Tensor | None
    temperature: float


class Slopes(NamedTuple):
    """What the logits' gradient is made of, one entry a row: log-sum-exp, entropy, and what comes from above.

    by_logprob_C and by_entropy_C are divided by the temperature; None where that output is not used.
    """

    normaliser_C: Tensor
    entropy_C: Tensor
    by_logprob_C: Tensor | None
    by_entropy_C: Tensor | None


class Arithmetic(NamedTuple):
    """What is computed on each tile.

    statistics: of each row m = max z, Σ exp(z - m), Σ exp(z - m) (z - m), and the label's z or 0.    [4, C]
    gradient: ∂L/∂products, of the dtype that is given.    [C, W]
    """

    statistics: Callable[[Piece], Tensor]
    gradient: Callable[[Piece, Slopes, torch.dtype], Tensor]


class Manner(NamedTuple):
    """How logits are made: divided by `temperature`, `chunk` of them at a time, by which arithmetic."""

    temperature: float
    chunk: int
    arithmetic: Arithmetic


def tiled(
    hidden_TH: Tensor, head_VH: Tensor, bias: Tensor | None, labels_T: Tensor, manner: Manner
) -> tuple[Tensor, Tensor]:
    """`learner.head.logprobs_and_entropy` in any manner. ValueError for a temperature that is not above zero."""
    if not manner.temperature > 0:
        raise ValueError(f"temperature is {manner.temperature}: it must be greater than 0")
    apply = cast(Any, _TiledHead.apply)  # pyright: ignore[reportUnknownMemberType]
    return cast(tuple[Tensor, Tensor], apply(hidden_TH, head_VH, bias, labels_T, manner))


class _TiledHead(torch.autograd.Function):
    """With p = softmax(z) and H its entropy: ∂log p_y/∂z = onehot_y - p and ∂H/∂z = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, head_VH: Tensor, bias: Tensor | None, labels_T: Tensor, manner: Manner
    ) -> tuple[Tensor, Tensor]:
        rows, columns = _cuts(len(labels_T), len(head_VH), manner.chunk)
        wide = _accumulator(hidden_TH.dtype)
        results_3T = hidden_TH.new_empty(3, len(labels_T), dtype=wide)
        for row in rows:
            operand_CH = _operand(hidden_TH[row], hidden_TH)
            found: list[Tensor] = []
            for column in columns:
                products_CW = _product(operand_CH, _operand(head_VH[column], hidden_TH).T, wide)
                found.append(manner.arithmetic.statistics(_piece(products_CW, labels_T[row], bias, column, manner)))
            results_3T[:, row] = _joined(torch.stack(found, dim=1))
        logprobs_T, entropy_T, normaliser_T = results_3T.unbind()
        ctx.save_for_backward(hidden_TH, head_VH, bias, labels_T, normaliser_T, entropy_T)
        ctx.manner = manner
        ctx.set_materialize_grads(False)
        return logprobs_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        hidden_TH, head_VH, bias, labels_T, normaliser_T, entropy_T = ctx.saved_tensors
        manner: Manner = ctx.manner
        rows, columns = _cuts(len(labels_T), len(head_VH), manner.chunk)
        if all(g is None for g in gradients):
            return (None,) * 5
        wide = normaliser_T.dtype
        sums = [
            torch.zeros_like(leaf, dtype=wide) if wanted else None
            for leaf, wanted in zip((hidden_TH, head_VH, bias), ctx.needs_input_grad[:3], strict=True)
        ]
        d_hidden_TH, d_head_VH, d_bias_V = sums
        by_T = [None if g is None else g / manner.temperature for g in gradients]
        for row in rows:
            operand_CH = _operand(hidden_TH[row], hidden_TH)
            slopes = Slopes(normaliser_T[row], entropy_T[row], *(None if g is None else g[row] for g in by_T))
            for column in columns:
                operand_WH = _operand(head_VH[column], hidden_TH)
                piece = _piece(_product(operand_CH, operand_WH.T, wide), labels_T[row], bias, column, manner)
                d_products_CW = manner.arithmetic.gradient(piece, slopes, operand_WH.dtype)
                if d_hidden_TH is not None:
                    _add_product(d_hidden_TH[row], d_products_CW, operand_WH)
                if d_head_VH is not None:
                    _add_product(d_head_VH[column], d_products_CW.T, operand_CH)
                if d_bias_V is not None:
                    d_bias_V[column] += d_products_CW.sum(dim=0, dtype=wide)
        leaves = (hidden_TH, head_VH, bias)
        return *(None if s is None else s.to(leaf.dtype) for s, leaf in zip(sums, leaves, strict=True)), None, None


def _joined(found_4KC: Tensor) -> Tensor:
    """Log-prob, entropy and log-sum-exp of whole rows, from the statistics of their K tiles.    [3, C]"""
    maximum_KC, total_KC, moment_KC, label_KC = found_4KC
    maximum_C = maximum_KC.amax(dim=0)
    lower_KC = maximum_KC - maximum_C
    share_KC = lower_KC.exp()
    total_C = (share_KC * total_KC).sum(dim=0)
    moment_C = (share_KC * (moment_KC + lower_KC * total_KC)).sum(dim=0)
    # Relative to the maximum, a row of which the policy is sure has a total of one and a moment of zero: nothing large
    # is taken from anything large, log-probs are never above zero and entropies never below.
    log_total_C = total_C.log()
    logprobs_C = label_KC.sum(dim=0) - maximum_C - log_total_C
    return torch.stack([logprobs_C, log_total_C - moment_C / total_C, maximum_C + log_total_C])


def _cuts(rows: int, columns: int, chunk: int) -> tuple[list[slice], list[slice]]:
    """Where the logits [rows, columns] are cut into tiles of `chunk` entries at most, as square as can be.

    Square ones re-read the head, and its gradient, least often for their size.
    """
    height = min(rows, max(_even(isqrt(max(1, chunk))), chunk // max(1, columns)))
    width = min(columns, _even(chunk // max(1, height)))
    return _slices(rows, height), _slices(columns, width)


def _even(count: int) -> int:
    return max(1, count if count < _EVEN else count - count % _EVEN)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(count, start + size)) for start in range(0, count, max(1, size))]


def _piece(products_CW: Tensor, labels_C: Tensor, bias: Tensor | None, column: slice, manner: Manner) -> Piece:
    return Piece(products_CW, labels_C - column.start, None if bias is None else bias[column], manner.temperature)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _operand(tensor: Tensor, hidden: Tensor) -> Tensor:
    """A factor in the dtype it is multiplied in: hidden's on a GPU, which sums bfloat16 in float32; else a wide one."""
    return tensor.to(hidden.dtype if hidden.is_cuda else _accumulator(hidden.dtype))


def _product(left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """left · right, not rounded to anything narrower than `wide`; whatever autocast would like."""
    with torch.autocast(device_type=left.device.type, enabled=False):
        return left @ right if left.dtype == wide else torch.mm(left, right, out_dtype=wide)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right, in total's dtype."""
    with torch.autocast(device_type=left.device.type, enabled=False):
        if left.dtype == total.dtype:
            total.addmm_(left, right)
        else:
            torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
