"""Tensors of a safetensors file as raw bit patterns, mapped into memory: no copy, no torch, any dtype.

The file: 8 bytes length of the header, the header (JSON: name → dtype, shape, begin and end of its bytes), the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from common.errors import WeightsError

Patterns = NDArray[np.unsignedinteger[Any]]
"""Bit patterns of elements: one dimension, an unsigned type as wide as the tensor's."""

WIDTHS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes of an element, by the name that safetensors gives its dtype."""

PATTERN_TYPES: dict[int, np.dtype[Any]] = {width: np.dtype(f"<u{width}") for width in (1, 2, 4, 8)}
"""Bytes of an element → the numpy type of its bit pattern."""

_LONGEST_HEADER = 100_000_000
_MOST_DIMENSIONS = 32
_ALIGNED = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """What a tensor is made of. dtype: as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many elements it has; one if it has no dimensions."""
        return prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes of an element; WeightsError for a dtype that is not known here."""
        if self.dtype not in WIDTHS:
            raise WeightsError(f"tensors of dtype {self.dtype!r} cannot be published: the known ones are {[*WIDTHS]}")
        return WIDTHS[self.dtype]

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.elements * self.width


class TensorFile:
    """The tensors of one file by name. WeightsError if it is no safetensors file, OSError if it cannot be read.

    writable: what is written into an array goes into the file (after `flush`, for certain). An array of a file stays
    valid as long as somebody holds it.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        size = path.stat().st_size
        header, start = _header(path, size)
        self._bytes: Any = np.memmap(path, np.uint8, "r+" if writable else "r") if size else np.empty(0, np.uint8)
        self._places = dict(_places(header, start, size, path))
        self.layouts: dict[str, Layout] = {name: layout for name, (layout, _) in self._places.items()}

    def patterns(self, name: str) -> Patterns:
        """The elements of a tensor as bit patterns, mapped: shape [elements]."""
        layout, begin = self._places[name]
        raw = np.asarray(self._bytes[begin : begin + layout.bytes])
        kind = PATTERN_TYPES[layout.width]
        # The format aligns tensors to 8 bytes as a rule, not always.
        return raw.view(kind) if begin % layout.width == 0 else raw.copy().view(kind)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, mapped."""
        layout, begin = self._places[name]
        return np.asarray(self._bytes[begin : begin + layout.bytes])

    def flush(self) -> None:
        """Wait until what was written is in the file."""
        flush = getattr(self._bytes, "flush", None)  # an empty file is not mapped
        if flush is not None:
            flush()


def write_tensors(file: BinaryIO, layouts: Mapping[str, Layout], raw: Callable[[str], NDArray[np.uint8]]) -> None:
    """Write tensors one after the other, the widest dtype first, so that each is aligned. raw: the bytes of one."""
    names = sorted(layouts, key=lambda name: (-layouts[name].width, name))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + layouts[name].bytes
        entries[name] = {"dtype": layouts[name].dtype, "shape": layouts[name].shape, "data_offsets": (begin, end)}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNED)
    file.write(len(header).to_bytes(8, "little") + header)
    for name in names:
        file.write(raw(name).data)


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The header of a file, and where the bytes of its tensors begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _LONGEST_HEADER):
            raise WeightsError(f"{path} is no safetensors file: a header of {length} bytes in a file of {size}")
        try:
            header: Any = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"{path} is no safetensors file: its header cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path} is no safetensors file: its header is no object")
    return cast(dict[str, Any], header), 8 + length


def _places(header: Mapping[str, Any], start: int, size: int, path: Path) -> Iterator[tuple[str, tuple[Layout, int]]]:
    """Name → layout and first byte of every tensor; WeightsError unless all of them lie inside the file."""
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            layout = read_layout(entry["dtype"], entry["shape"])
            begin, end = (whole(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path}: tensor {name!r} has no usable entry: {entry!r}") from error
        if not 0 <= begin <= end <= size - start or end - begin != layout.bytes:
            raise WeightsError(f"{path}: tensor {name!r} is said to lie at {begin}–{end} of {size - start} bytes")
        yield name, (layout, start + begin)


def read_layout(dtype: Any, shape: Any) -> Layout:
    """The layout that an untrusted header tells. WeightsError or ValueError if there is none of that kind."""
    sizes = tuple(whole(part) for part in shape)
    if len(sizes) > _MOST_DIMENSIONS or any(part < 0 for part in sizes):
        raise ValueError(f"no shape: {shape!r}")
    layout = Layout(str(dtype), sizes)
    _ = layout.width
    return layout


def whole(value: Any) -> int:
    """A number of an untrusted header, which may hold anything. ValueError unless it is a whole one."""
    if type(value) is not int:
        raise ValueError(f"no whole number: {value!r}")
    return value
