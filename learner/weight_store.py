"""The weight store: versions in a shared directory, verified after writing.

v000012/  model.safetensors  manifest.json
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open  # pyright: ignore[reportUnknownVariableType]
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from common.errors import WeightsError
from common.weights import MANIFEST_FILE, Manifest, PublicationKind, file_digest, verify
from learner.durable import appearing, sweep

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where weights come from: the step after which they were taken, and the revision then in force."""

    step: int
    revision: int


class WeightStore:
    """A directory of weight versions."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        sweep(directory)

    def versions(self) -> list[int]:
        """The versions on disk, ascending."""
        names = (path.name.removeprefix("v") for path in self._directory.glob("v*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def write(self, version: int, weights: Mapping[str, Tensor], origin: Origin) -> Manifest:
        """Write and verify a version. NotWritten if the disk does not take it, WeightsError if it reads back wrong."""
        target = self._place(version)
        with appearing(target) as directory:
            path = directory / WEIGHTS_FILE
            digests = {name: _digest(tensor) for name, tensor in weights.items()}
            save_file(dict(weights), path, metadata={"format": "pt"})
            _compare(path, digests)
            size = path.stat().st_size
            manifest = Manifest(
                version=version,
                step=origin.step,
                revision=origin.revision,
                kind=PublicationKind.ANCHOR,
                base=0,
                location=str(target),
                files={WEIGHTS_FILE: (size, file_digest(path))},
                tensors=digests,
                bytes=size,
                at_s=time.time(),
            )
            (directory / MANIFEST_FILE).write_bytes(manifest.encode())
        verify(manifest)
        return manifest

    def prune(self, keep: int, held: set[int]) -> None:
        """Remove all but the newest `keep` versions and those that somebody holds."""
        for version in self.versions()[:-keep]:
            if version not in held:
                shutil.rmtree(self._place(version), ignore_errors=True)

    def _place(self, version: int) -> Path:
        return self._directory / f"v{version:06d}"


def _digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's raw bytes, in hex."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def _compare(path: Path, digests: Mapping[str, str]) -> None:
    """Read every tensor back; WeightsError if one is not what was written."""
    with cast(Any, safe_open(path, framework="pt")) as file:
        for name, digest in digests.items():
            if _digest(file.get_tensor(name)) != digest:
                raise WeightsError(f"{path}: tensor {name} does not read back as it was written")
