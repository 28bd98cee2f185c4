"""A follower of publications: what a generator does with a version, short of showing it to an engine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from common.deltas import read_patches
from common.digests import digest
from common.stores.fetching import fetch
from common.stores.storage import WeightStorage
from common.tensor_file import TensorFile
from common.weights import ANCHOR_FILE, DELTA_FILE, Manifest, PublicationKind
from learner.publication.changes import host_patterns


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds to read and prove the files, to decode them, to write the new values, and to prove every tensor."""

    fetch_s: float
    decode_s: float
    apply_s: float
    prove_s: float


class Follower:
    """Holds the newest weights in a file of its own, mapped into memory."""

    def __init__(self, storage: WeightStorage, directory: Path) -> None:
        self._storage = storage
        self._directory = directory
        self._held: TensorFile | None = None

    def take(self, manifest: Manifest) -> Timings:
        """Come to the next version. RuntimeError if a tensor is not what the manifest says."""
        began_s = time.perf_counter()
        paths = fetch(self._storage, manifest, self._directory / "fetched")
        fetched_s = time.perf_counter()
        if manifest.kind is PublicationKind.ANCHOR:
            copy = self._directory / f"held-{manifest.version}.safetensors"
            shutil.copyfile(paths[ANCHOR_FILE], copy)
            self._held = TensorFile(copy, writable=True)
            decoded_s = applied_s = time.perf_counter()
        else:
            held = self._file
            patches = list(read_patches(paths[DELTA_FILE].read_bytes(), held.layouts))
            decoded_s = time.perf_counter()
            for patch in patches:
                patch.apply(held.patterns(patch.name))
            applied_s = time.perf_counter()
        for name, proof in manifest.tensors.items():
            if digest(self._file.raw(name)) != proof:
                raise RuntimeError(f"version {manifest.version}: {name} is not what was published")
        steps = (began_s, fetched_s, decoded_s, applied_s, time.perf_counter())
        return Timings(*(later - earlier for earlier, later in pairwise(steps)))

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """RuntimeError unless what is held is `tensors`, bit by bit."""
        for name, tensor in tensors.items():
            if not np.array_equal(self._file.patterns(name), host_patterns(tensor)):
                raise RuntimeError(f"{name} is not, bit by bit, what the learner took")

    @property
    def _file(self) -> TensorFile:
        if self._held is None:
            raise RuntimeError("the first version is an anchor")
        return self._held
