"""Changes: what differs between two states of a tensor, found on the device where both lie.

On the CPU numpy compares eight bytes at a time; on a GPU torch compares there, so many elements at a time that memory
is bounded, and only what differs comes to the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.deltas import SPAN, Patch, compare, patch_of
from common.errors import WeightsError
from common.tensor_file import PATTERN_TYPES, Layout, Patterns

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_A_TIME = 16 * SPAN


def layout_of(tensor: Tensor) -> Layout:
    """What a tensor is made of, in the words of safetensors; WeightsError if they have none for its dtype."""
    if tensor.dtype not in _NAMES:
        raise WeightsError(f"weights of {tensor.dtype} cannot be published: the known dtypes are {[*map(str, _NAMES)]}")
    return Layout(_NAMES[tensor.dtype], tuple(tensor.shape))


def host_patterns(tensor: Tensor) -> Patterns:
    """The bit patterns of a contiguous tensor, in host memory: that of the tensor itself if it is on the CPU."""
    return _on_host(_integers(tensor))


def changes(name: str, base: Tensor, new: Tensor) -> Iterator[Patch]:
    """The patches that turn `base` into `new`: two contiguous tensors of one layout on one device."""
    if new.device.type == "cpu":
        return compare(name, layout_of(new), host_patterns(base), host_patterns(new))
    return changes_on_device(name, base, new)


def changes_on_device(name: str, base: Tensor, new: Tensor) -> Iterator[Patch]:
    """The same by torch alone: what has not changed stays where it is."""
    layout = layout_of(new)
    old_N, now_N = _integers(base), _integers(new)
    for start in range(0, new.numel(), _AT_A_TIME):
        end = min(start + _AT_A_TIME, new.numel())
        found_C = torch.nonzero(old_N[start:end] != now_N[start:end]).squeeze(1)
        values = _on_host(now_N[start:end][found_C])
        indices = cast(NDArray[np.int32], found_C.int().cpu().numpy()).astype(np.int64) + start
        runs = range(start, end, SPAN)
        cuts = np.searchsorted(indices, [*runs, end])
        for first, low, high in zip(runs, cuts, cuts[1:], strict=False):
            if low < high:
                span = min(SPAN, end - first)
                yield patch_of(name, layout, (first, span), indices[low:high], values[low:high])


def count_changes(base: Tensor, new: Tensor, most: int | None = None) -> int:
    """How many elements differ, of all or of the first `most`: far cheaper than to find out which."""
    old_N, now_N = _integers(base)[:most], _integers(new)[:most]
    pairs = zip(_pieces(old_N), _pieces(now_N), strict=True)
    if new.device.type == "cpu":
        return sum(int(np.count_nonzero(_on_host(old) != _on_host(now))) for old, now in pairs)
    return sum(int((old != now).sum()) for old, now in pairs)


def apply(patch: Patch, tensor: Tensor) -> None:
    """Write the values of a patch into a contiguous tensor on any device, in place."""
    if tensor.device.type == "cpu":
        patch.apply(host_patterns(tensor))
    else:
        apply_on_device(patch, tensor)


def apply_on_device(patch: Patch, tensor: Tensor) -> None:
    """The same by torch alone."""
    flat_N = _integers(tensor)
    values_C = _tensor(np.array(patch.values).view(f"<{_signed(patch)}")).to(flat_N.device)
    if patch.indices is None:
        flat_N[patch.start : patch.start + patch.span] = values_C
    else:
        flat_N[_tensor(patch.indices).to(flat_N.device)] = values_C


def are_same(first: Tensor, second: Tensor) -> bool:
    """Whether two contiguous tensors hold the same bits; numbers that are not numbers included."""
    pairs = zip(_pieces(_integers(first)), _pieces(_integers(second)), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def _signed(patch: Patch) -> str:
    """The numpy type that torch takes for bit patterns of this width."""
    return "u1" if patch.layout.width == 1 else f"i{patch.layout.width}"


def _integers(tensor: Tensor) -> Tensor:
    """A contiguous tensor, flat, as integers of its width."""
    return tensor.detach().view(-1).view(_INTEGERS[tensor.element_size()])


def _pieces(flat_N: Tensor) -> Iterator[Tensor]:
    """The parts of a flat tensor that are worked on together."""
    return (flat_N[start : start + _AT_A_TIME] for start in range(0, flat_N.numel(), _AT_A_TIME))


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]


def _on_host(flat_N: Tensor) -> Patterns:
    flat: Any = flat_N.cpu().numpy()
    return flat.view(PATTERN_TYPES[flat.itemsize])
