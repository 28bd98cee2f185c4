"""The layout of a full set of weights: the tensors that a checkpoint holds (Hugging Face names) and their shapes.

Read from safetensors headers alone, so a damaged or foreign file is refused before the engine pauses. Without this an
absent tensor would leave the old weights in place, silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from common.errors import WeightsError

_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class CheckpointLayout:
    """Names and shapes of a model's full weights.

    tied: the output head shares the embedding, so that a file may hold the head or leave it out.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tied: bool = False

    def require_same(self, other: CheckpointLayout, source: Path | str) -> None:
        """Raise WeightsError unless `other` (read from `source`) holds exactly these tensors."""
        optional = {_HEAD} if self.tied else set[str]()
        missing = sorted(self.shapes.keys() - other.shapes.keys() - optional)
        unknown = sorted(other.shapes.keys() - self.shapes.keys() - optional)
        if missing or unknown:
            raise WeightsError(
                f"{source} does not hold this model's weights: {_few('missing', missing)}, {_few('unknown', unknown)}"
            )
        for name, shape in other.shapes.items():
            expected = self.shapes.get(name, shape)
            if shape != expected:
                raise WeightsError(f"{source} holds {name} with shape {shape}, but this model has {expected}")


def read_layout(path: Path, *, tied: bool = False) -> CheckpointLayout:
    """Read the layout of one safetensors file, or of every *.safetensors file of a directory.

    Raises WeightsError where there is no such file, or one is truncated or not safetensors.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise WeightsError(f"{path} holds no *.safetensors file")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= _read_header(file)
    return CheckpointLayout(shapes, tied)


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a complete safetensors file: {error}") from error


def _few(label: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {label}" + (f" ({shown})" if names else "")
