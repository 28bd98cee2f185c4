"""The delta: what differs between two weight versions, as bytes: lossless, idempotent, bounded in memory, no torch.

    "TRBD"  head length u32  head {schema, base, version}
    then, for each patch:  head length u32  head [name, dtype, shape, start, span, coding, count, size]  payload
    then:   0 as u32  number of patches u32

A patch tells the new bit patterns of a run of elements of one tensor, `start` to `start + span`; what no patch tells
has not changed. Values are absolute, so that a delta may be applied twice. Codings: gaps (distances between changed
elements, then their values), mask (one bit for each element, then the values of those set), whole (the values of all).
How numbers become bytes: common/byte_planes.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, BinaryIO, assert_never, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from numpy.typing import NDArray

from common.byte_planes import Press, unpack
from common.errors import WeightsError
from common.tensor_file import PATTERN_TYPES, Layout, Patterns, read_layout, whole

SPAN = 1 << 20
"""Elements that one patch is about at most: what is compared, coded and hashed together stays in the cache."""

_MAGIC = b"TRBD"
_SCHEMA = 1
_LONGEST_HEAD = 65_536
_MASK_ABOVE = 0.1
_LENGTH = struct.Struct("<I")
_msgpack: Any = msgpack  # Any: msgpack is not annotated
_GAP_TYPE = np.dtype("<u4")
_NOTHING: Patterns = np.empty(0, np.uint8)


class Coding(StrEnum):
    """How a patch says which elements it tells."""

    GAPS = "g"
    MASK = "m"
    WHOLE = "w"


@dataclass(frozen=True, slots=True)
class Patch:
    """New bit patterns of elements of one tensor, which is flat here.

    indices: int64 [count], ascending, counted from the tensor's first element; None: all of start … start + span.
    values: [count] or [span], little-endian unsigned of the tensor's width.
    """

    name: str
    layout: Layout
    start: int
    span: int
    indices: NDArray[np.int64] | None
    values: Patterns

    def apply(self, patterns: Patterns) -> None:
        """Write the new values into the flat tensor `patterns` ([elements] of the layout), in place."""
        if self.indices is None:
            patterns[self.start : self.start + self.span] = self.values
        else:
            patterns[self.indices] = self.values


def compare(name: str, layout: Layout, base: Patterns, new: Patterns) -> Iterator[Patch]:
    """What differs between two states of a tensor, both flat bit patterns: [elements] each."""
    for start in range(0, len(new), SPAN):
        old, now = base[start : start + SPAN], new[start : start + SPAN]
        found = differing(old, now)
        if len(found):
            yield patch_of(name, layout, (start, len(now)), found.astype(np.int64) + start, now[found])


def differing(base: Patterns, new: Patterns) -> NDArray[np.intp]:
    """Indices at which two runs of bit patterns differ, ascending.

    Eight bytes are compared at a time; the few blocks that differ are looked at again, element by element.
    """
    each = 8 // new.itemsize
    whole = len(new) // each * each
    if each == 1 or whole == 0 or (base.ctypes.data | new.ctypes.data) % 8:
        return np.flatnonzero(base != new)
    old, now = base[:whole].view(np.uint64), new[:whole].view(np.uint64)
    blocks = np.flatnonzero(old != now)
    if len(blocks) * 4 > len(now):  # mostly different: the second look would cost more than it saves
        return np.flatnonzero(base != new)
    inside = np.flatnonzero(old[blocks].view(base.dtype) != now[blocks].view(new.dtype))
    shift = each.bit_length() - 1
    found = (blocks[inside >> shift] << shift) + (inside & (each - 1))
    rest = np.flatnonzero(base[whole:] != new[whole:])
    return np.concatenate([found, rest + whole]) if len(rest) else found


def patch_of(name: str, layout: Layout, run: tuple[int, int], indices: NDArray[np.int64], values: Patterns) -> Patch:
    """The patch of a run (start, span) of a tensor of which `values` at `indices` have changed."""
    start, span = run
    return Patch(name, layout, start, span, None if len(values) == span else indices, values)


@dataclass(frozen=True, slots=True)
class DeltaSize:
    """What a delta came to. changed: elements whose bits differ. bytes: of the whole file."""

    patches: int
    changed: int
    bytes: int


def write_delta(file: BinaryIO, patches: Iterable[Patch], *, base: int, version: int) -> DeltaSize:
    """Write a delta: `patches` turn version `base` into `version`."""
    head = cast(bytes, _msgpack.packb({"schema": _SCHEMA, "base": base, "version": version}))
    size = file.write(_MAGIC + _LENGTH.pack(len(head)) + head)
    changed = count = 0
    press = Press()
    for patch in patches:
        coding, payload = _encode(patch, press)
        layout = patch.layout
        run = (patch.start, patch.span, coding.value, len(patch.values), len(payload))
        head = cast(bytes, _msgpack.packb([patch.name, layout.dtype, layout.shape, *run]))
        size += file.write(_LENGTH.pack(len(head)) + head)
        size += file.write(payload)
        changed += len(patch.values)
        count += 1
    size += file.write(_LENGTH.pack(0) + _LENGTH.pack(count))
    return DeltaSize(count, changed, size)


def _encode(patch: Patch, press: Press) -> tuple[Coding, bytes]:
    """The payload of a patch, by the coding that suits its density."""
    if patch.indices is None:
        return Coding.WHOLE, press.pack(patch.values)
    inside = patch.indices - patch.start
    if len(inside) > _MASK_ABOVE * patch.span:
        mask = np.zeros(patch.span, np.bool_)
        mask[inside] = True
        return Coding.MASK, press.pack(np.packbits(mask, bitorder="little")) + press.pack(patch.values)
    gaps = np.diff(inside, prepend=-1) - 1
    return Coding.GAPS, press.pack(gaps.astype(_GAP_TYPE)) + press.pack(patch.values)


@dataclass(frozen=True, slots=True)
class DeltaHead:
    """Which version a delta turns into which."""

    base: int
    version: int


def read_head(delta: memoryview | bytes) -> DeltaHead:
    """Which version a delta turns into which; WeightsError if it is none, or of a newer schema."""
    return _Reader(memoryview(delta)).read_head()


def read_patches(delta: memoryview | bytes, layouts: Mapping[str, Layout]) -> Iterator[Patch]:
    """The patches of a delta, one at a time. WeightsError for whatever is not a whole delta.

    layouts: those of the base's tensors; a patch for anything else is refused, so that nothing larger than a run of one
    of these tensors is ever allocated. An error may come after some patches: apply them to what can be had again.
    """
    reader = _Reader(memoryview(delta))
    reader.read_head()
    while (patch := reader.read_patch(layouts)) is not None:
        yield patch


class _Reader:
    """Walks through the bytes of a delta."""

    def __init__(self, delta: memoryview) -> None:
        self._delta = delta.cast("B")
        self._at = 0
        self._patches = 0

    def read_head(self) -> DeltaHead:
        """The head of the whole."""
        if bytes(self._take(len(_MAGIC))) != _MAGIC:
            raise WeightsError("not a delta: it begins with other bytes")
        head = self._take_head(self._take_length())
        try:
            if whole(head["schema"]) > _SCHEMA:
                raise WeightsError("the delta was written by a newer version of this project: upgrade this process")
            return DeltaHead(whole(head["base"]), whole(head["version"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"not a delta: its head is {head!r}") from error

    def read_patch(self, layouts: Mapping[str, Layout]) -> Patch | None:
        """The next patch; None after the last one, if it is where the delta ends."""
        length = self._take_length()
        if length == 0:
            if self._take_length() != self._patches or self._at != len(self._delta):
                raise WeightsError("a delta whose end is not where it should be")
            return None
        self._patches += 1
        head = self._take_head(length)
        try:
            name, dtype, shape, start, span, coding, count, size = head
            layout = read_layout(dtype, shape)
            if layouts.get(name) != layout:
                raise WeightsError(f"a patch of {name!r} {layout}, which the base has as {layouts.get(name)}")
            _check_run(layout, whole(start), whole(span), whole(count))
            return _decode(
                Patch(name, layout, start, span, None, _NOTHING), Coding(coding), count, self._take(whole(size))
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"a delta with a patch that cannot be read: {type(error).__name__}: {error}") from error

    def _take(self, size: int) -> memoryview:
        if not 0 <= size <= len(self._delta) - self._at:
            raise WeightsError(f"a delta that is cut short: {size} bytes are missing at {self._at}")
        self._at += size
        return self._delta[self._at - size : self._at]

    def _take_length(self) -> int:
        return int(_LENGTH.unpack(self._take(_LENGTH.size))[0])

    def _take_head(self, size: int) -> Any:
        if size > _LONGEST_HEAD:
            raise WeightsError(f"a delta with a head of {size} bytes")
        try:
            return _msgpack.unpackb(self._take(size), strict_map_key=True)
        except (ValueError, _msgpack.UnpackException) as error:
            raise WeightsError(f"a delta with a head that cannot be read: {error}") from error


def _check_run(layout: Layout, start: int, span: int, count: int) -> None:
    """ValueError unless a run lies inside its tensor and tells no more elements than it has."""
    if not (start >= 0 and 0 < span <= SPAN and start + span <= layout.elements and 0 < count <= span):
        raise ValueError(f"{count} values in elements {start} to {start + span} of {layout.elements}")


def _decode(run: Patch, coding: Coding, count: int, payload: memoryview) -> Patch:
    """The patch of a run of which `payload` tells; ValueError or WeightsError if it does not."""
    kind = PATTERN_TYPES[run.layout.width]
    match coding:
        case Coding.WHOLE:
            if count != run.span:
                raise ValueError(f"{count} values for all of {run.span} elements")
            indices = None
        case Coding.MASK:
            mask, payload = unpack(payload, -(-run.span // 8), PATTERN_TYPES[1])
            indices = np.flatnonzero(np.unpackbits(mask, count=run.span, bitorder="little"))
            if len(indices) != count:
                raise ValueError(f"{count} values for {len(indices)} elements")
        case Coding.GAPS:
            gaps, payload = unpack(payload, count, _GAP_TYPE)
            indices = np.cumsum(gaps, dtype=np.int64) + np.arange(count)  # up to 2^20 gaps below 2^32: no overflow
            if indices[-1] >= run.span:
                raise ValueError(f"element {indices[-1]} of a run of {run.span}")
        case _:
            assert_never(coding)
    values, rest = unpack(payload, count, kind)
    if len(rest):
        raise ValueError(f"{len(rest)} bytes too many")
    return replace(run, indices=None if indices is None else indices.astype(np.int64) + run.start, values=values)
