"""The weight cache: on this machine, one file with the full weights of a version, and what was fetched to make it.

    <cache>/<generator>/  current.safetensors  current.json (the version's manifest)  fetched/v000012/…  lock

Deltas are applied to the file in place. While that goes on there is no current.json: a file between two versions is
never taken for one of them, whenever the process is killed. Every call blocks; calls come one after another, but for
`close`, which may come from any thread at any time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from common.deltas import read_head, read_patches
from common.digests import digest
from common.errors import WeightsError
from common.stores.fetching import fetch, forget
from common.stores.storage import WeightStorage, manifest_at
from common.tensor_file import TensorFile
from common.weights import ANCHOR_FILE, DELTA_FILE, Manifest, PublicationKind, decode_manifest, version_at
from services.generator.chain import chain

_CURRENT, _STATE, _FETCHED, _LOCK = "current.safetensors", "current.json", "fetched", "lock"
_MOST_NAMESAKES = 8
_ABANDONED_S = 3600.0


def _unheeded() -> None:
    """Nobody asks."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A version that lies here, whole and proved.

    path: its full weights (safetensors). base, deltas: the version that was held before, and the files that led from it
    to this one; no deltas if it was made of an anchor. fetched_bytes: what came from the store for it.
    """

    manifest: Manifest
    path: Path
    base: int = 0
    deltas: tuple[Path, ...] = ()
    fetched_bytes: int = 0


class WeightCache:
    """Brings versions here for one generator. limit_bytes: beyond it what is not needed now is removed."""

    def __init__(self, storage: WeightStorage, directory: Path, limit_bytes: int) -> None:
        self._storage = storage
        self._limit_bytes = limit_bytes
        self._wanted = directory
        self._directory = directory
        self._lock: int | None = None
        self._working = Lock()
        self._is_closed = False
        self._held: Manifest | None = None

    @property
    def held(self) -> Manifest | None:
        """The version that the file holds; None if there is none, or if it is between two."""
        return self._held

    def open(self) -> Manifest | None:
        """Take the directory; the version that a former life left there whole. WeightsError if it cannot be used."""
        self._take_directory()
        self._sweep_abandoned()
        try:
            manifest = decode_manifest((self._directory / _STATE).read_bytes())
            self._prove(TensorFile(self._current), manifest, manifest.tensors)
        except FileNotFoundError:
            return None
        except WeightsError:
            self.discard()
            return None
        except OSError as error:
            raise self._unusable(error) from error
        self._held = manifest
        return manifest

    def advance(self, target: Manifest, heed: Callable[[], None] = _unheeded, *, anew: bool = False) -> Ready:
        """Bring `target` here; WeightsError if that is impossible now.

        heed: called now and then; what it raises ends the work. anew: build upon an anchor instead of what is held,
        which stays until all that is needed has come.
        """
        try:
            with self._working:
                return self._advance(target, heed, None if anew else self._held)
        finally:
            if self._is_closed:  # meanwhile
                self.close()

    def _advance(self, target: Manifest, heed: Callable[[], None], base: Manifest | None) -> Ready:
        if self._is_closed:
            raise WeightsError(f"the weight cache {self._directory} is closed")
        if self._lock is None:
            self._take_directory()
        links = chain(self._storage, target, base)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._make_room({link.version for link in links})
            fetched_bytes = sum(link.bytes for link in links if not self._place(link).exists())
            fetched = [(link, self._fetch(link, heed)) for link in links]
            for link, path in fetched:
                heed()
                self._seed(link, path) if link.kind is PublicationKind.ANCHOR else self._patch(link, path)
            self._make_room({link.version for link in links})
        except OSError as error:
            raise self._unusable(error) from error
        deltas = tuple(path for _, path in fetched)
        if links and links[0].kind is PublicationKind.ANCHOR:
            base, deltas = None, ()
        return Ready(target, self._current, base.version if base else 0, deltas, fetched_bytes)

    def published(self, version: int) -> Manifest:
        """The manifest of a version as it lies in the store; WeightsError if it does not."""
        return manifest_at(self._storage, version)

    def discard(self) -> None:
        """Trust nothing that is here: the next version is made of an anchor."""
        self._let_go()
        forget(self._directory / _FETCHED)

    def close(self) -> None:
        """Leave the directory to others, once nothing is being done in it any more. `advance` fails from now on."""
        self._is_closed = True
        if self._working.acquire(blocking=False):
            lock, self._lock = self._lock, None
            if lock is not None:
                os.close(lock)
            self._working.release()

    @property
    def _current(self) -> Path:
        return self._directory / _CURRENT

    def _take_directory(self) -> None:
        """Lock the directory. A namesake that has not ended yet still works in it: another one is taken then."""
        try:
            for number in range(_MOST_NAMESAKES):
                self._directory = self._wanted.with_name(f"{self._wanted.name}.{number}") if number else self._wanted
                self._directory.mkdir(parents=True, exist_ok=True)
                self._lock = _locked(self._directory / _LOCK)
                if self._lock is not None:
                    return
        except OSError as error:
            raise self._unusable(error) from error
        raise WeightsError(f"{_MOST_NAMESAKES} processes work in {self._wanted}: give each generator a name of its own")

    def _sweep_abandoned(self) -> None:
        """Remove the directories of generators that have been gone for long: names may never come again."""
        for place in self._directory.parent.iterdir():
            with suppress(OSError):  # another generator sweeps too, or this is not ours to remove
                lock = place / _LOCK
                if place == self._directory or not lock.exists():
                    continue
                if time.time() - max(path.stat().st_mtime for path in (place, lock)) > _ABANDONED_S and (
                    descriptor := _locked(lock)
                ):
                    shutil.rmtree(place, ignore_errors=True)
                    os.close(descriptor)

    def _place(self, link: Manifest) -> Path:
        """Where a publication is fetched to, unless its store is a directory."""
        return self._directory / _FETCHED / Path(link.location).name

    def _fetch(self, link: Manifest, heed: Callable[[], None]) -> Path:
        """The one file of a publication, proved by its digest."""
        paths = fetch(self._storage, link, self._place(link), heed)
        name = ANCHOR_FILE if link.kind is PublicationKind.ANCHOR else DELTA_FILE
        if name not in paths:
            raise WeightsError(f"weight version {link.version}: an {link.kind} without {name}")
        return paths[name]

    def _seed(self, link: Manifest, anchor: Path) -> None:
        """Begin again with a copy of an anchor."""
        self._let_go()
        unfinished = self._current.with_suffix(".unfinished")
        shutil.copyfile(anchor, unfinished)
        self._prove(TensorFile(unfinished), link, link.tensors)
        unfinished.rename(self._current)
        self._hold(link)

    def _patch(self, link: Manifest, delta: Path) -> None:
        """Turn the held version into the next one, in place."""
        base, view = self._held, _mapped(delta)
        head = read_head(view)
        if base is None or (head.base, head.version) != (base.version, link.version):
            held = "nothing" if base is None else f"version {base.version}"
            raise WeightsError(
                f"a delta of {head.base} to {head.version} as version {link.version}, where {held} is held"
            )
        self._let_go()
        tensors = TensorFile(self._current, writable=True)
        for patch in read_patches(view, tensors.layouts):
            patch.apply(tensors.patterns(patch.name))
        changed = (name for name in link.tensors if base.tensors.get(name) != link.tensors[name])
        self._prove(tensors, link, changed)
        self._hold(link)

    def _prove(self, file: TensorFile, manifest: Manifest, names: Iterable[str]) -> None:
        """WeightsError unless the named tensors have the manifest's digests, and none is missing or too many."""
        if manifest.tensors and manifest.tensors.keys() != file.layouts.keys():
            odd = sorted(manifest.tensors.keys() ^ file.layouts.keys())
            raise WeightsError(f"weight version {manifest.version}: tensors that are not on both sides: {odd[:3]}")
        for name in names:
            if digest(file.raw(name), manifest.digests) != manifest.tensors[name]:
                raise WeightsError(f"weight version {manifest.version}: tensor {name} does not match its digest")

    def _hold(self, manifest: Manifest) -> None:
        """Say that the file holds a version. Nothing is synced: after a power cut the digests tell what it is worth."""
        state = self._directory / _STATE
        unfinished = state.with_suffix(".unfinished")
        unfinished.write_bytes(manifest.encode())
        unfinished.rename(state)
        self._held = manifest

    def _let_go(self) -> None:
        """Say that the file holds no version."""
        self._held = None
        (self._directory / _STATE).unlink(missing_ok=True)

    def _make_room(self, needed: set[int]) -> None:
        """Remove fetched publications, oldest first, while all that is here exceeds the limit."""
        kept = {version_at(place.name) or 0: place for place in (self._directory / _FETCHED).glob("*")}
        total = sum(_size(place) for place in kept.values()) + _size(self._current)
        for version in sorted(kept.keys() - needed):
            if total <= self._limit_bytes:
                return
            total -= _size(kept[version])
            forget(kept[version])

    def _unusable(self, error: OSError) -> WeightsError:
        return WeightsError(f"the weight cache {self._directory} cannot be used: {error}: set [weights] cache")


def _locked(path: Path) -> int | None:
    """The descriptor of a lock that is ours now, until it is closed; None if another process has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):  # not swept away meanwhile
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _mapped(path: Path) -> memoryview:
    """The bytes of a file, mapped into memory."""
    return np.memmap(path, np.uint8, "r").data if path.stat().st_size else memoryview(b"")


def _size(path: Path) -> int:
    """Bytes of a file, or of the files of a directory; 0 if there is none."""
    if path.is_dir():
        return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    return path.stat().st_size if path.exists() else 0
