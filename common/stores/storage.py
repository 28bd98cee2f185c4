"""The protocol of a weight store: publications by place, each a few files, whole or not there.

A publication is there from the moment its manifest.json is. Calls block: make them in a thread. Each network call by
HTTP or S3 has a timeout; other backends of fsspec have their own. Whatever goes wrong is a WeightsError when reading
and NotWritten when writing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from common.errors import WeightsError
from common.weights import MANIFEST_FILE, Manifest, decode_manifest, location_of

TIMEOUT_S = 30.0
"""How long one network call of a store may take to move at all."""

BLOCK = 8 << 20
"""Bytes of one ranged read."""

_LONGEST_MANIFEST = 64 << 20


class WeightStorage(Protocol):
    """Publications below one root. location: `Manifest.location`. name: a file of the publication."""

    def publishing(self, location: str) -> AbstractContextManager[Path]:
        """A local directory to fill, which becomes the publication when the block ends well. NotWritten otherwise."""
        ...

    def size(self, location: str, name: str) -> int:
        """Bytes of a file."""
        ...

    def read(self, location: str, name: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes of a file from `start`."""
        ...

    def versions(self) -> list[int]:
        """The versions that are there whole, ascending."""
        ...

    def delete(self, version: int) -> None:
        """Remove a version. Nothing happens if it is not there, or cannot be removed now."""
        ...

    def sweep(self) -> None:
        """Remove what a killed writer left unfinished. Only for the one process that writes."""
        ...


def manifest_at(storage: WeightStorage, version: int) -> Manifest:
    """The manifest of a version as it lies in the store; WeightsError if it is not there or is none."""
    location = location_of(version)
    size = storage.size(location, MANIFEST_FILE)
    if size > _LONGEST_MANIFEST:
        raise WeightsError(f"weight version {version}: a manifest of {size} bytes")
    return decode_manifest(storage.read(location, MANIFEST_FILE, 0, size))
