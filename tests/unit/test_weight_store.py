"""A weight version is complete and verified, or not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.weights import MANIFEST_FILE, decode_manifest, verify
from learner.durable import NotWritten
from learner.weight_store import Origin, WeightStore

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(2.5)}


def test_a_version_has_its_weights_and_a_manifest_that_proves_them(tmp_path: Path) -> None:
    manifest = WeightStore(tmp_path).write(12, WEIGHTS, Origin(step=9, revision=3))
    directory = verify(manifest)
    assert directory == tmp_path / "v000012"
    assert decode_manifest((directory / MANIFEST_FILE).read_bytes()) == manifest
    assert (manifest.step, manifest.revision, set(manifest.tensors)) == (9, 3, {"a", "b", "c"})
    assert manifest.bytes == (directory / "model.safetensors").stat().st_size
    read = load_file(directory / "model.safetensors")
    assert all(read[name].equal(tensor) and read[name].dtype == tensor.dtype for name, tensor in WEIGHTS.items())


def test_the_digest_of_a_tensor_is_of_its_raw_bytes(tmp_path: Path) -> None:
    manifest = WeightStore(tmp_path).write(1, WEIGHTS, Origin(0, 0))
    assert manifest.tensors["a"] == hashlib.sha256(WEIGHTS["a"].numpy().tobytes()).hexdigest()


def test_the_newest_and_those_that_are_held_stay(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    for version in range(1, 8):
        store.write(version, WEIGHTS, Origin(version, 1))
    (tmp_path / "notes").mkdir()
    store.prune(2, held={3})
    assert store.versions() == [3, 6, 7]
    assert (tmp_path / "notes").exists()


def test_a_place_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotWritten, match="cannot write"):
        WeightStore(tmp_path / "file" / "weights").write(1, WEIGHTS, Origin(0, 0))


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".v000001.unfinished").mkdir()
    WeightStore(tmp_path)
    assert list(tmp_path.iterdir()) == []
