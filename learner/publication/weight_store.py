"""The weight store, as the learner writes it: anchors and deltas, proved by reading them back from where they lie.

v000012/  model.safetensors (anchor) or model.delta  manifest.json
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.deltas import DeltaSize, Patch, read_patches, write_delta
from common.digests import DigestKind, digest, file_digest
from common.durable import NotWritten
from common.errors import WeightsError
from common.stores.fetching import fetch, prove
from common.stores.storage import WeightStorage, manifest_at
from common.tensor_file import Layout, TensorFile, write_tensors
from common.weights import ANCHOR_FILE, DELTA_FILE, MANIFEST_FILE, Canary, Manifest, PublicationKind, location_of
from learner.memory import is_shortage
from learner.publication.aside import Aside
from learner.publication.changes import apply, are_same, changes, count_changes, host_patterns, layout_of
from learner.publication.retention import expendable
from learner.publication.snapshot import Snapshot

_READ_BACK = ".read-back-"
_SAMPLE = 4096
_DENSE = 0.9
DELTA, ANCHOR = PublicationKind.DELTA, PublicationKind.ANCHOR


@dataclass(frozen=True, slots=True)
class Publication:
    """A version that was written, read back and found right. encode_s: comparing and coding; write_s: all the rest."""

    manifest: Manifest
    canary_s: float
    encode_s: float
    write_s: float


@dataclass(slots=True)
class _Chain:
    """An anchor and the deltas on it. bytes: of the deltas together. length: how many versions it gives."""

    anchor: int
    anchor_bytes: int
    bytes: int = 0
    length: int = 1


@dataclass(slots=True)
class _Draft:
    """A version while it is put together. tensors: name → digest."""

    snapshot: Snapshot
    layouts: dict[str, Layout]
    canary: Canary | None
    tensors: dict[str, str] = field(default_factory=dict[str, str])
    changes: int | None = None

    @property
    def full_bytes(self) -> int:
        """What its tensors take."""
        return sum(layout.bytes for layout in self.layouts.values())

    @property
    def changed(self) -> float | None:
        """The share of elements that have changed; None if there was nothing to compare with."""
        elements = sum(layout.elements for layout in self.layouts.values())
        return None if self.changes is None else self.changes / max(1, elements)


def _kept(_: Snapshot) -> None:
    """Snapshots that nobody uses again."""


class WeightStore:
    """Writes versions for one learner. Every call blocks; calls come one after another.

    A version is a delta on the one before it, but an anchor where there is none (after a start, after a failure), where
    tensors have other names, shapes or dtypes, where nearly everything has changed, every `anchor_every` versions, and
    where the deltas since the last anchor would weigh more than an anchor.

    scratch: a directory for what is read back from a store that is elsewhere; None: the system's. release: told of
    every snapshot that is not needed here any more.
    """

    def __init__(
        self,
        storage: WeightStorage,
        anchor_every: int = 50,
        *,
        scratch: Path | None = None,
        release: Callable[[Snapshot], None] = _kept,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.storage = storage
        self._anchor_every = anchor_every
        self._scratch = scratch
        self._release = release
        self._clock = clock
        self._base: Snapshot | None = None
        self._chain: _Chain | None = None
        self._manifests: dict[int, Manifest] = {}
        self._aside = Aside()
        self._is_closed = False

    def open(self) -> list[int]:
        """The versions that are there, ascending, after what a killed writer left unfinished has been removed."""
        for left in self._scratch.glob(f"{_READ_BACK}*") if self._scratch else ():
            shutil.rmtree(left, ignore_errors=True)
        self.storage.sweep()
        return self.storage.versions()

    def close(self) -> None:
        """Begin nothing more: what is being written breaks off at its next tensor. May be called from any thread."""
        self._is_closed = True

    def write(self, snapshot: Snapshot) -> Publication:
        """Write a version and prove it. NotWritten if store or memory do not take it, WeightsError if it is read wrong.

        After a failure nothing of the version is left, and the next one begins where this one did, or with an anchor.
        """
        try:
            with self._aside.after(snapshot.taken):
                return self._write(snapshot)
        except (NotWritten, WeightsError):
            self._release(snapshot)
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            self._drop_base()  # it may be half-way to the next version
            self._release(snapshot)
            raise NotWritten(f"no memory to publish version {snapshot.version} beside the training: {error}") from error

    def _write(self, snapshot: Snapshot) -> Publication:
        asked_s = self._clock()
        canary = snapshot.sing() if snapshot.sing else None
        began_s = self._clock()
        draft = _Draft(snapshot, {name: layout_of(tensor) for name, tensor in snapshot.tensors.items()}, canary)
        with self.storage.publishing(location_of(snapshot.version)) as directory:
            manifest = self._fill(directory, draft)
            encoded_s = self._clock()
        try:
            self._prove(manifest, draft)
        except (WeightsError, RuntimeError, MemoryError):
            self.storage.delete(snapshot.version)
            raise
        self._enter(manifest)
        self._drop_base()
        self._base = snapshot
        return Publication(manifest, began_s - asked_s, encoded_s - began_s, self._clock() - encoded_s)

    def prune(self, keep: int, fetching: set[int]) -> None:
        """Remove what is older than the newest `keep` anchors and is no part of a chain that somebody fetches."""
        manifests = {version: self._manifest(version) for version in self.storage.versions()}
        self._manifests = {version: manifest for version, manifest in manifests.items() if manifest is not None}
        newest = {self._base.version} if self._base else set[int]()
        for version in expendable(manifests, keep, fetching | newest):
            self.storage.delete(version)

    def _fill(self, directory: Path, draft: _Draft) -> Manifest:
        """Put the files of a version into a directory."""
        path = directory / DELTA_FILE
        base = self._base_for(draft)
        size: DeltaSize | None = None
        if base is not None and not self._is_dense(base.tensors, draft):
            with path.open("wb") as file:
                patches = self._compare(base.tensors, draft)
                size = write_delta(file, patches, base=base.version, version=draft.snapshot.version)
            draft.changes = size.changed
        kind = DELTA if size is not None and self._is_worth(size.bytes) else ANCHOR
        if kind is ANCHOR:
            path.unlink(missing_ok=True)
            path = directory / ANCHOR_FILE
            self._write_anchor(path, draft)
        manifest = self._describe(draft, kind, path)
        (directory / MANIFEST_FILE).write_bytes(manifest.encode())
        return manifest

    def _base_for(self, draft: _Draft) -> Snapshot | None:
        """The version before, if its tensors are like those of the draft."""
        base = self._base
        if base is None or {name: layout_of(tensor) for name, tensor in base.tensors.items()} != draft.layouts:
            return None
        return base

    def _is_dense(self, base: Mapping[str, Tensor], draft: _Draft) -> bool:
        """Whether so much differs from `base` that a delta would be an anchor by another name; a sample tells."""
        tensors = draft.snapshot.tensors
        sampled = sum(min(_SAMPLE, tensor.numel()) for tensor in tensors.values())
        if sum(count_changes(base[name], tensor, _SAMPLE) for name, tensor in tensors.items()) <= _DENSE * sampled:
            return False
        draft.changes = sum(count_changes(base[name], tensor) for name, tensor in tensors.items())
        return True

    def _is_worth(self, delta_bytes: int) -> bool:
        """Whether the next version may be a delta of this size."""
        chain = self._chain
        if chain is None or chain.length >= self._anchor_every:
            return False
        return chain.bytes + delta_bytes <= chain.anchor_bytes

    def _compare(self, base: Mapping[str, Tensor], draft: _Draft) -> Iterator[Patch]:
        """All that differs from `base`, tensor by tensor; their digests on the way."""
        for name, tensor in draft.snapshot.tensors.items():
            self._heed()
            yield from changes(name, base[name], tensor)
            draft.tensors[name] = digest(host_patterns(tensor).view(np.uint8))

    def _write_anchor(self, path: Path, draft: _Draft) -> None:
        """Write all tensors, one of them in host memory at a time; WeightsError if one is not what was written."""

        def raw(name: str) -> NDArray[np.uint8]:
            self._heed()
            found = host_patterns(draft.snapshot.tensors[name]).view(np.uint8)
            draft.tensors[name] = digest(found)
            return found

        with path.open("wb") as anchor:
            write_tensors(anchor, draft.layouts, raw)
        file = TensorFile(path)
        for name, layout in draft.layouts.items():
            self._heed()
            if file.layouts.get(name) != layout or digest(file.raw(name)) != draft.tensors[name]:
                raise WeightsError(f"{path}: tensor {name} does not read back as it was written")

    def _describe(self, draft: _Draft, kind: PublicationKind, path: Path) -> Manifest:
        """The manifest of a draft whose one file is written."""
        size, snapshot = path.stat().st_size, draft.snapshot
        is_delta = kind is DELTA and self._base is not None and self._chain is not None
        return Manifest(
            version=snapshot.version,
            step=snapshot.origin.step,
            revision=snapshot.origin.revision,
            kind=kind,
            base=self._base.version if is_delta and self._base else 0,
            location=location_of(snapshot.version),
            files={path.name: (size, file_digest(path))},
            tensors=draft.tensors,
            bytes=size,
            at_s=time.time(),
            anchor=self._chain.anchor if is_delta and self._chain else snapshot.version,
            digests=DigestKind.BLAKE3,
            full_bytes=draft.full_bytes,
            changed=draft.changed,
            canary=draft.canary,
        )

    def _prove(self, manifest: Manifest, draft: _Draft) -> None:
        """Read a version back from where it lies; a delta must turn the base into the snapshot, bit by bit."""
        base = self._base
        if base is None or manifest.kind is not DELTA:
            prove(self.storage, manifest, self._heed)
            return
        try:
            if self._scratch is not None:
                self._scratch.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_READ_BACK, dir=self._scratch) as place:
                delta = fetch(self.storage, manifest, Path(place), self._heed)[DELTA_FILE]
                self._follow(base, np.memmap(delta, np.uint8, "r").data, draft)
        except OSError as error:
            raise WeightsError(f"weight version {manifest.version} cannot be read back: {error}") from error

    def _follow(self, base: Snapshot, delta: memoryview, draft: _Draft) -> None:
        """Apply a delta to the base, as a generator does; WeightsError if that does not give the snapshot."""
        try:
            for patch in read_patches(delta, draft.layouts):
                apply(patch, base.tensors[patch.name])
            for name, tensor in draft.snapshot.tensors.items():
                if not are_same(base.tensors[name], tensor):
                    raise WeightsError(f"the delta of version {draft.snapshot.version} does not bring {name} about")
        except WeightsError:
            self._drop_base()  # it is neither one version nor the other now
            raise

    def _drop_base(self) -> None:
        if self._base is not None:
            self._aside.settle()  # it is overwritten as soon as it is given back
            self._release(self._base)
        self._base = None

    def _enter(self, manifest: Manifest) -> None:
        """Note a version that is there."""
        self._manifests[manifest.version] = manifest
        if manifest.kind is ANCHOR or self._chain is None:
            self._chain = _Chain(manifest.version, manifest.bytes)
        else:
            self._chain.bytes += manifest.bytes
            self._chain.length += 1

    def _manifest(self, version: int) -> Manifest | None:
        """The manifest of a version of this life, or of one before it, if that can be read now."""
        with suppress(WeightsError):
            return self._manifests.get(version) or manifest_at(self.storage, version)
        return None

    def _heed(self) -> None:
        if self._is_closed:
            raise NotWritten("the learner ends: this weight version is not published")
