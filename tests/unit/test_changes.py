"""Changes of torch tensors are the same ones whether numpy or torch finds them, and bring about the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from common.deltas import SPAN, Patch
from common.errors import WeightsError
from common.tensor_file import Layout
from learner.publication import changes as module
from learner.publication.changes import (
    apply,
    apply_on_device,
    are_same,
    changes,
    changes_on_device,
    count_changes,
    layout_of,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]


def states(dtype: torch.dtype, size: int, share: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(size)
    base = torch.randn(size).mul(3).to(dtype)
    drawn = torch.rand(size)
    new = torch.where(drawn < share, torch.randn(size).mul(3).float(), base.float()).to(dtype)
    return base, new


def told(patches: list[Patch]) -> list[tuple[int, int, list[int] | None, list[int]]]:
    return [(p.start, p.span, None if p.indices is None else p.indices.tolist(), p.values.tolist()) for p in patches]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_both_ways_find_the_same_and_bring_it_about(dtype: torch.dtype, share: float) -> None:
    base, new = states(dtype, 500, share)
    host, device = list(changes("w", base, new)), list(changes_on_device("w", base, new))
    assert told(host) == told(device)
    for way in (apply, apply_on_device):
        held = base.clone()
        for patch in host:
            way(patch, held)
        assert are_same(held, new)
    assert are_same(base, new) == (not host)
    assert count_changes(base, new) == sum(len(patch.values) for patch in host)
    assert count_changes(base, new, 0) == 0


def test_a_tensor_of_several_runs_is_cut_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_A_TIME", 2 * SPAN)
    base = torch.zeros(5 * SPAN + 7, dtype=torch.int16)
    new = base.clone()
    new[[0, SPAN - 1, 2 * SPAN, 5 * SPAN + 6]] = 1
    new[3 * SPAN : 4 * SPAN] = 2  # a whole run
    host, device = list(changes("w", base, new)), list(changes_on_device("w", base, new))
    assert [(p.start, p.span, len(p.values), p.indices is None) for p in host] == [
        (0, SPAN, 2, False),
        (2 * SPAN, SPAN, 1, False),
        (3 * SPAN, SPAN, SPAN, True),
        (5 * SPAN, 7, 1, False),
    ]
    for one, other in zip(host, device, strict=True):
        assert (one.start, one.span) == (other.start, other.span)
        assert np.array_equal(one.values, other.values)
        assert one.indices is None or (other.indices is not None and np.array_equal(one.indices, other.indices))


def test_bits_count_and_not_numbers() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert are_same(nan, nan.clone())
    assert list(changes("w", nan, nan.clone())) == []
    (patch,) = changes("w", zero, -zero)
    apply(patch, zero)
    assert zero.signbit().all()


@pytest.mark.parametrize("at_a_time", [1, 3, 5, 100])
def test_what_is_counted_and_compared_piece_by_piece_is_the_whole(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr(module, "_AT_A_TIME", at_a_time)
    base = torch.zeros(5, 3, dtype=torch.bfloat16)
    for place in range(15):
        new = base.clone()
        new.view(-1)[place] = -0.0
        assert (are_same(base, new), count_changes(base, new)) == (False, 1)
        assert count_changes(base, new, place) == 0
    assert are_same(base, base.clone())
    assert are_same(torch.zeros(0), torch.zeros(0))


def test_a_dtype_that_a_file_cannot_hold_is_said() -> None:
    with pytest.raises(WeightsError, match=r"weights of torch\.complex64 cannot be published"):
        layout_of(torch.zeros(2, dtype=torch.complex64))
    assert layout_of(torch.zeros(2, dtype=torch.uint16)) == Layout("U16", (2,))


def test_tensors_without_elements_or_dimensions() -> None:
    assert list(changes("w", torch.zeros(0, 3), torch.zeros(0, 3))) == []
    scalar = torch.tensor(1.0)
    (patch,) = changes("w", scalar, torch.tensor(2.0))
    assert (patch.layout, patch.indices) == (Layout("F32", ()), None)
    apply(patch, scalar)
    assert scalar == 2.0
    assert layout_of(torch.zeros(2, 3, dtype=torch.bfloat16)) == Layout("BF16", (2, 3))
