"""The object store: versions under any fsspec URL (s3://bucket/prefix, gs://…, memory://…). The manifest goes last."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from common.connection import quotable, without_password
from common.durable import NotWritten
from common.errors import SettingsError, WeightsError
from common.stores.storage import TIMEOUT_S
from common.weights import MANIFEST_FILE, location_of, version_at

# Backends raise errors of their own beside OSError (botocore's, aiohttp's), and there is no list of them: what a call
# to one raises, whatever it is, becomes the error that readers and the publisher handle.
_S3 = {
    "config_kwargs": {"connect_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S, "retries": {"max_attempts": 3}},
}

# Where directories need not be made: buckets hold names only, and to make one might make a bucket.
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_PREFIX = ".publication-"


class ObjectStorage:
    """Versions under a URL. Credentials and endpoints come from the environment, as the backend reads them.

    scratch: where a publication is put together before it is sent. What cannot be removed when it should be is removed
    before the next publication is sent.
    """

    def __init__(self, url: str, scratch: Path | None = None) -> None:
        self._url = url
        self._shown = without_password(url)
        protocol = url.partition("://")[0]
        options: dict[str, Any] = _S3 if protocol in ("s3", "s3a") else {}
        try:
            found: Any = fsspec.url_to_fs(url, use_listings_cache=False, **options)  # pyright: ignore
        except (ImportError, ValueError) as error:
            raise SettingsError(
                f"weights.url: {self._shown} cannot be used: {self._reason(error)}: install the package that fsspec "
                f"needs for {protocol}://"
            ) from quotable(error, url)
        self._files, self._root = found[0], str(found[1]).rstrip("/")
        self._has_directories = protocol not in _BUCKETS
        self._scratch = scratch
        self._litter: set[str] = set()

    @contextmanager
    def publishing(self, location: str) -> Generator[Path]:
        """A local directory, sent file by file when the block ends well, manifest.json last."""
        try:
            if self._scratch is not None:
                self._scratch.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=self._scratch) as name:
                yield Path(name)
                self._send(Path(name), location)
        except OSError as error:
            raise NotWritten(f"cannot write {self._shown}/{location}: {error}") from error

    def _send(self, directory: Path, location: str) -> None:
        """Copy a directory's files, the manifest last; if that breaks off, remove what was sent."""
        all(
            self._remove(left) for left in sorted(self._litter)
        )  # one that cannot be removed ends it: the store is away
        try:
            if self._has_directories:
                self._files.makedirs(self._place(location, ""), exist_ok=True)
            for path in sorted(directory.iterdir(), key=lambda path: path.name == MANIFEST_FILE):
                self._files.put_file(str(path), self._place(location, path.name))
        except Exception as error:  # noqa: BLE001 - see above
            self._remove(location)
            raise NotWritten(f"cannot write {self._shown}/{location}: {self._reason(error)}") from quotable(
                error, self._url
            )

    def size(self, location: str, name: str) -> int:
        """Bytes of a file."""
        with self._reading(location, name):
            return int(self._files.info(self._place(location, name))["size"])

    def read(self, location: str, name: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes of a file from `start`."""
        with self._reading(location, name):
            found = bytes(self._files.cat_file(self._place(location, name), start=start, end=start + length))
        if len(found) != length:
            raise WeightsError(f"{self._shown}/{location}/{name}: {len(found)} bytes came, {length} were asked for")
        return found

    def versions(self) -> list[int]:
        """The versions whose manifest is there, ascending."""
        with self._reading("", ""):
            found = self._files.glob(f"{escape(self._root)}/v*/{MANIFEST_FILE}")
        places = (str(path).split("/")[-2] for path in found)
        return sorted(version for place in places if (version := version_at(place)) is not None)

    def delete(self, version: int) -> None:
        """Remove a version, its manifest first: from then on it is not there."""
        self._remove(location_of(version))

    def _remove(self, location: str) -> bool:
        """Remove what lies at a place, or remember that it is to be removed."""
        place = self._place(location, "")
        try:
            with suppress(FileNotFoundError):
                for path in sorted(self._files.find(place), key=lambda path: not str(path).endswith(MANIFEST_FILE)):
                    self._files.rm_file(path)
                if self._has_directories:
                    self._files.rmdir(place)
        except Exception:  # noqa: BLE001 - see above
            self._litter.add(location)
            return False
        self._litter.discard(location)
        return True

    def sweep(self) -> None:
        """Remove versions without a manifest, and what was being put together."""
        for unsent in self._scratch.glob(f"{_PREFIX}*") if self._scratch else ():
            shutil.rmtree(unsent, ignore_errors=True)
        whole = set(self.versions())
        with self._reading("", ""):
            found = self._files.glob(f"{escape(self._root)}/v*/*")
        for version in {version_at(str(path).split("/")[-2]) for path in found}:
            if version is not None and version not in whole:
                self.delete(version)

    def _place(self, location: str, name: str) -> str:
        return f"{self._root}/{location}/{name}"

    @contextmanager
    def _reading(self, location: str, name: str) -> Generator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - see above
            raise WeightsError(f"cannot read {self._shown}/{location}/{name}: {self._reason(error)}") from quotable(
                error, self._url
            )

    def _reason(self, error: Exception) -> str:
        """The kind of an error of the backend and, unless they may hold a password of the URL, its words."""
        told = quotable(error, self._url)
        return f"{type(error).__name__}{f': {told}' if told else ''}"
