"""Weight versions as a learner publishes them, made with numpy: anchors and deltas in a store, and their manifests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from common.deltas import compare, write_delta
from common.digests import DigestKind, digest, file_digest
from common.stores.storage import WeightStorage
from common.tensor_file import PATTERN_TYPES, Layout, TensorFile
from common.weights import ANCHOR_FILE, DELTA_FILE, MANIFEST_FILE, Canary, Manifest, PublicationKind, location_of

Tensors = Mapping[str, NDArray[np.float32]]


def weights(version: int) -> dict[str, NDArray[np.float32]]:
    """Weights in which each version changes some elements of two of three tensors."""
    first, second = np.random.default_rng(0).normal(size=(2, 64, 32)).astype(np.float32)
    for number in range(1, version + 1):
        random = np.random.default_rng(number)
        first.flat[random.integers(0, first.size, 40)] = random.normal(size=40)
        second[number % 64] = number
    return {"model.first": first, "model.second": second, "model.still": np.ones(7, np.float32)}


def assert_holds(path: Path, version: int) -> None:
    """The file is the version, bit by bit."""
    file = TensorFile(path)
    expected = weights(version)
    assert file.layouts.keys() == expected.keys()
    for name, tensor in expected.items():
        assert file.raw(name).tobytes() == tensor.tobytes(), f"{name} is not that of version {version}"


class Publications:
    """Publishes versions to one store; `manifests`: those so far, by version."""

    def __init__(self, storage: WeightStorage) -> None:
        self.storage = storage
        self.manifests: dict[int, Manifest] = {}

    def anchor(self, version: int, tensors: Tensors | None = None, canary: Canary | None = None) -> Manifest:
        """Publish a version in full."""
        tensors = weights(version) if tensors is None else tensors
        with self.storage.publishing(location_of(version)) as directory:
            save_file(dict(tensors), directory / ANCHOR_FILE)
            manifest = self._manifest(version, 0, tensors, directory / ANCHOR_FILE, canary)
            (directory / MANIFEST_FILE).write_bytes(manifest.encode())
        return manifest

    def delta(
        self, version: int, base: int, tensors: tuple[Tensors, Tensors] | None = None, canary: Canary | None = None
    ) -> Manifest:
        """Publish what differs from a version published before. tensors: those of the base and of the version."""
        old, new = (weights(base), weights(version)) if tensors is None else tensors
        with self.storage.publishing(location_of(version)) as directory:
            with (directory / DELTA_FILE).open("wb") as file:
                patches = (
                    patch
                    for name, tensor in new.items()
                    for patch in compare(name, Layout("F32", tensor.shape), _flat(old[name]), _flat(tensor))
                )
                write_delta(file, patches, base=base, version=version)
            manifest = self._manifest(version, base, new, directory / DELTA_FILE, canary)
            (directory / MANIFEST_FILE).write_bytes(manifest.encode())
        return manifest

    def _manifest(self, version: int, base: int, tensors: Tensors, path: Path, canary: Canary | None) -> Manifest:
        size = path.stat().st_size
        self.manifests[version] = Manifest(
            version=version,
            step=version * 10,
            revision=1,
            kind=PublicationKind.DELTA if base else PublicationKind.ANCHOR,
            base=base,
            location=location_of(version),
            files={path.name: (size, file_digest(path))},
            tensors={name: digest(np.ascontiguousarray(tensor).view(np.uint8)) for name, tensor in tensors.items()},
            bytes=size,
            at_s=0.0,
            anchor=self.manifests[base].anchor if base else version,
            digests=DigestKind.BLAKE3,
            full_bytes=sum(tensor.nbytes for tensor in tensors.values()),
            canary=canary,
        )
        return self.manifests[version]


def _flat(tensor: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
    return np.ascontiguousarray(tensor).reshape(-1).view(PATTERN_TYPES[4])
