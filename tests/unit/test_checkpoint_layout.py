"""A file that does not hold a model's weights is told apart by its header alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from common.errors import WeightsError
from services.generator.checkpoint_layout import CheckpointLayout, read_layout

SHAPES = {"embed": (4, 2), "norm": (2,), "lm_head.weight": (4, 2)}


def _write(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)
    return path


def test_a_directory_of_shards_has_the_layout_of_the_whole(tmp_path: Path) -> None:
    _write(tmp_path / "a.safetensors", {"embed": (4, 2)})
    _write(tmp_path / "b.safetensors", {"norm": (2,), "lm_head.weight": (4, 2)})
    assert read_layout(tmp_path) == CheckpointLayout(SHAPES)


def test_the_same_layout_is_accepted(tmp_path: Path) -> None:
    path = _write(tmp_path / "same.safetensors", SHAPES)
    CheckpointLayout(SHAPES).require_same(read_layout(path), path)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"embed": (4, 2), "lm_head.weight": (4, 2)}, r"1 missing \(norm\), 0 unknown"),
        (SHAPES | {"bias": (2,)}, r"0 missing, 1 unknown \(bias\)"),
        (SHAPES | {"norm": (3,)}, r"norm with shape \(3,\), but this model has \(2,\)"),
        ({"embed": (4, 2), "norm": (2,)}, r"1 missing \(lm_head.weight\)"),
    ],
)
def test_another_layout_is_refused_by_name(tmp_path: Path, shapes: dict[str, tuple[int, ...]], sentence: str) -> None:
    path = _write(tmp_path / "other.safetensors", shapes)
    with pytest.raises(WeightsError, match=sentence):
        CheckpointLayout(SHAPES).require_same(read_layout(path), path)


def test_a_tied_head_may_be_held_or_left_out(tmp_path: Path) -> None:
    without = {name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"}
    for expected, held in ((SHAPES, without), (without, SHAPES)):
        path = _write(tmp_path / "tied.safetensors", held)
        CheckpointLayout(expected, tied=True).require_same(read_layout(path, tied=True), path)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a complete safetensors file"):
        read_layout(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "cut.safetensors", SHAPES)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="not a complete safetensors file"):
        read_layout(path)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no \*.safetensors file"):
        read_layout(tmp_path)
