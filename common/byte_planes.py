"""Byte planes: numbers as compressed bytes, the first bytes of all of them, then the second ones, and so on.

Exponents and the high bytes of distances repeat, low bytes do not: apart, each plane has the code that suits it.
A plane: how it is held (u8), bytes that follow (u32), bytes. Held: raw, zstd, or nothing at all where every byte is 0.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from common.errors import WeightsError

_HEAD = struct.Struct("<BI")
_LEVEL = 1
_SAMPLE = 4096
_WORTH = 0.97


class _Held(IntEnum):
    RAW = 0
    ZSTD = 1
    ZERO = 2


class Press:
    """Turns numbers into bytes. For one thread at a time."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL)

    def pack(self, numbers: NDArray[Any]) -> bytes:
        """The planes of one-dimensional numbers, lowest bytes first."""
        raw = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, numbers.itemsize)
        return b"".join(self._plane(np.ascontiguousarray(raw[:, i])) for i in range(numbers.itemsize))

    def _plane(self, plane: NDArray[np.uint8]) -> bytes:
        if not plane.any():
            return _HEAD.pack(_Held.ZERO, 0)
        if len(plane) <= 2 * _SAMPLE or len(self._zstd.compress(plane[:_SAMPLE].data)) < _WORTH * _SAMPLE:
            packed = self._zstd.compress(plane.data)
            if len(packed) < len(plane):
                return _HEAD.pack(_Held.ZSTD, len(packed)) + packed
        return _HEAD.pack(_Held.RAW, len(plane)) + plane.tobytes()


def unpack(payload: memoryview, count: int, kind: np.dtype[Any]) -> tuple[NDArray[Any], memoryview]:
    """`count` numbers of a kind from the front of `payload`, and what follows them. WeightsError if they are not there.

    Nothing larger than those numbers is allocated, whatever the payload says.
    """
    planes = np.empty((count, kind.itemsize), np.uint8)
    for i in range(kind.itemsize):
        if len(payload) < _HEAD.size:
            raise WeightsError("numbers that are cut short")
        held, size = _HEAD.unpack(payload[: _HEAD.size])
        body, payload = payload[_HEAD.size : _HEAD.size + size], payload[_HEAD.size + size :]
        if len(body) != size:
            raise WeightsError(f"numbers that are cut short: {size} bytes are said to follow, {len(body)} do")
        planes[:, i] = _read(held, body, count)
    return planes.view(kind).reshape(-1), payload


def _read(held: int, body: memoryview, count: int) -> NDArray[np.uint8] | int:
    """One plane of `count` bytes."""
    if held == _Held.ZERO and not len(body):
        return 0
    if held == _Held.RAW and len(body) == count:
        return np.frombuffer(body, np.uint8)
    if held == _Held.ZSTD:
        try:
            if zstandard.frame_content_size(body) == count:
                return np.frombuffer(zstandard.ZstdDecompressor().decompress(body, max_output_size=count), np.uint8)
        except zstandard.ZstdError as error:
            raise WeightsError(f"numbers that cannot be decompressed: {error}") from error
    raise WeightsError(f"numbers that are held in no known way: {held}, {len(body)} bytes for {count}")
