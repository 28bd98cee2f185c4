"""Fetching: a publication's files from a store onto this machine, whole and proved, continued where one broke off."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from common.digests import file_digest
from common.errors import WeightsError
from common.stores.directory import DirectoryStorage
from common.stores.storage import BLOCK, WeightStorage
from common.weights import Manifest, is_file_name

_PARTIAL = ".partial"


def _unheeded() -> None:
    """Nobody asks."""


def fetch(
    storage: WeightStorage, manifest: Manifest, target: Path, heed: Callable[[], None] = _unheeded
) -> dict[str, Path]:
    """The files of a publication by name, every one proved by its digest; WeightsError if one cannot be had.

    target: a directory of this machine for them. A directory store needs none: its files are proved where they lie.
    What is here already is not fetched again. heed is called before every block; what it raises ends the fetch.
    """
    paths: dict[str, Path] = {}
    for name, (size, digest) in manifest.files.items():
        if not is_file_name(name):  # it would be written, and removed if it is another one, wherever that leads
            raise WeightsError(f"weight version {manifest.version}: {name!r} is no name of a file")
        if isinstance(storage, DirectoryStorage):
            paths[name] = storage.path(manifest.location, name)
            actual = storage.size(manifest.location, name)
            if actual != size:
                raise WeightsError(f"weight version {manifest.version}: {paths[name]} has {actual} bytes, not {size}")
        else:
            paths[name] = target / name
            try:
                _fetch_file(storage, manifest, name, paths[name], heed)
            except OSError as error:
                raise WeightsError(f"weight version {manifest.version}: cannot write {paths[name]}: {error}") from error
        _prove(manifest, paths[name], digest, ours=not isinstance(storage, DirectoryStorage))
    return paths


def prove(storage: WeightStorage, manifest: Manifest, heed: Callable[[], None] = _unheeded) -> None:
    """Read a publication back from a store, block by block; WeightsError unless all of it is what the manifest says."""
    for name, (size, digest) in manifest.files.items():
        running = manifest.digests.start()
        for at in range(0, size, BLOCK):
            heed()
            running.update(storage.read(manifest.location, name, at, min(BLOCK, size - at)))
        if storage.size(manifest.location, name) != size or running.hexdigest() != digest:
            raise WeightsError(f"weight version {manifest.version}: {name} does not read back as it was written")


def _fetch_file(storage: WeightStorage, manifest: Manifest, name: str, path: Path, heed: Callable[[], None]) -> None:
    """Bring one file here in blocks; a part that is here already is kept."""
    size = manifest.files[name][0]
    if path.exists() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("ab") as file:
        at = file.tell()
        if at > size:
            file.truncate(0)
            at = 0
        while at < size:
            heed()
            at += file.write(storage.read(manifest.location, name, at, min(BLOCK, size - at)))
    partial.rename(path)


def _prove(manifest: Manifest, path: Path, digest: str, *, ours: bool) -> None:
    """WeightsError unless a file has its digest; a copy of our own that has another one is thrown away."""
    try:
        if file_digest(path, manifest.digests) == digest:
            return
        if ours:
            path.unlink()
    except OSError as error:
        raise WeightsError(f"weight version {manifest.version}: cannot read {path}: {error.strerror}") from error
    raise WeightsError(f"weight version {manifest.version}: {path} does not match its digest")


def forget(target: Path) -> None:
    """Remove what was fetched into a directory."""
    shutil.rmtree(target, ignore_errors=True)
