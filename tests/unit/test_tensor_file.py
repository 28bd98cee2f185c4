"""A safetensors file read as bit patterns is what safetensors itself reads, and anything else is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from common.errors import WeightsError
from common.tensor_file import Layout, TensorFile, write_tensors

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1.0, -0.0, float("nan")], dtype=torch.bfloat16),
    "c": torch.tensor(2.5),
    "d": torch.tensor([True, False, True]),
    "e": torch.zeros(0, 4, dtype=torch.int64),
    "f": torch.tensor([1, 2], dtype=torch.int16),
}


def test_every_tensor_has_its_layout_and_its_bits(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    file = TensorFile(path)
    assert file.layouts == {
        "a": Layout("F32", (2, 3)),
        "b": Layout("BF16", (3,)),
        "c": Layout("F32", ()),
        "d": Layout("BOOL", (3,)),
        "e": Layout("I64", (0, 4)),
        "f": Layout("I16", (2,)),
    }
    for name, tensor in TENSORS.items():
        expected = tensor.contiguous().flatten().view(torch.uint8).numpy()
        assert np.array_equal(file.raw(name), expected)
        assert np.array_equal(file.patterns(name).view(np.uint8), expected)


def test_what_is_written_into_a_tensor_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    file = TensorFile(path, writable=True)
    file.patterns("b")[1] = 0x3F80
    file.flush()
    assert load_file(path)["b"][1] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        TensorFile(path).patterns("b")[1] = 0


def test_a_file_that_is_written_here_is_what_safetensors_reads_and_every_tensor_in_it_is_aligned(
    tmp_path: Path,
) -> None:
    tensors = {"odd": torch.tensor([7], dtype=torch.uint8), "last": torch.ones(3, dtype=torch.float64), **TENSORS}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    theirs = TensorFile(path)
    ours = tmp_path / "ours.safetensors"
    with ours.open("wb") as file:
        write_tensors(file, theirs.layouts, theirs.raw)
    loaded = load_file(ours)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert TensorFile(ours).raw(name).tobytes() == theirs.raw(name).tobytes()
    held = TensorFile(ours)
    assert all(
        held.patterns(name).size == 0 or np.shares_memory(held.patterns(name), held.raw(name)) for name in tensors
    )
    assert safe_open(ours, "pt").metadata() == {"format": "pt"}


def test_a_file_without_tensors_can_be_written_and_read(tmp_path: Path) -> None:
    with (tmp_path / "none").open("wb") as file:
        write_tensors(file, {}, lambda _: np.empty(0, np.uint8))
    assert load_file(tmp_path / "none") == {}
    assert TensorFile(tmp_path / "none").layouts == {}


def written(path: Path, header: Any, body: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"\xff",
        b"[]",
        b"[" * 100_000,
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
        {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1 << 70], "data_offsets": [0, 1 << 72]}},
        {"a": {"dtype": "F32", "shape": [1] * 40, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": None, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, float("inf")]}},
        {"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}},
    ],
)
def test_a_header_that_tells_no_tensors_inside_the_file_is_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises(WeightsError):
        TensorFile(written(tmp_path / "file", header, b"12345678"))


def test_a_file_that_is_too_short_for_its_header_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"123", struct.pack("<Q", 1 << 60)):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(WeightsError, match="no safetensors file"):
            TensorFile(tmp_path / "file")
