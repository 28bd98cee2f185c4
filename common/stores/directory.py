"""The directory store: versions in a directory that every process sees. A version appears by one rename."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from common import durable
from common.errors import WeightsError
from common.weights import MANIFEST_FILE, location_of, version_at


class DirectoryStorage:
    """Versions below one directory. A location that is absolute (manifests of schema 1) is taken as it is."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def publishing(self, location: str) -> AbstractContextManager[Path]:
        """A directory beside the publication's place; renamed to it, after all of it is on disk."""
        return durable.appearing(self.root / location)

    def size(self, location: str, name: str) -> int:
        """Bytes of a file."""
        path = self.path(location, name)
        try:
            return path.stat().st_size
        except OSError as error:
            raise WeightsError(f"cannot read {path}: {error.strerror}") from error

    def read(self, location: str, name: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes of a file from `start`."""
        path = self.path(location, name)
        try:
            with path.open("rb") as file:
                file.seek(start)
                found = file.read(length)
        except OSError as error:
            raise WeightsError(f"cannot read {path}: {error.strerror}") from error
        if len(found) != length:
            raise WeightsError(f"{path} ends at {start + len(found)}; {length} bytes from {start} were asked for")
        return found

    def versions(self) -> list[int]:
        """The versions that are there whole, ascending."""
        places = (path.parent.name for path in self.root.glob(f"v*/{MANIFEST_FILE}"))
        return sorted(version for place in places if (version := version_at(place)) is not None)

    def delete(self, version: int) -> None:
        """Remove a version: first its name, so that nobody finds half of it, then its files."""
        place = self.root / location_of(version)
        removed = place.with_name(f".{place.name}.removed")
        try:
            place.rename(removed)
        except OSError:
            return
        shutil.rmtree(removed, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a killed writer left unfinished."""
        durable.sweep(self.root)
        for removed in self.root.glob(".v*.removed"):
            shutil.rmtree(removed, ignore_errors=True)

    def path(self, location: str, name: str) -> Path:
        """Where a file lies on this machine."""
        return self.root / location / name
