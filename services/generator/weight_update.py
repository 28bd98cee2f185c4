"""What an engine is told about new weights, on its way from this process to the workers of the engine core."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from services.generator.checkpoint_layout import CheckpointLayout, read_layout


class PayloadKind(StrEnum):
    """How the worker takes an update: each kind is a case of `FileWeightTransfer.receive_weights`."""

    COMPLETE = "complete"
    CHANGED = "changed"
    BROADCAST = "broadcast"


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """New weights. path: the full ones, as a safetensors file that every worker can open, with Hugging Face names.

    changed: the tensors that differ from what the engine serves; None: all are loaded anew, by vLLM's own route.
    deltas: files (common/deltas.py) that turn what the engine serves into this, one after another; empty where there
    are none. A worker that can writes what they tell in place; otherwise it reads the changed tensors from `path`.
    """

    version: int
    path: Path
    changed: Collection[str] | None = None
    deltas: Sequence[Path] = ()

    @property
    def needs_s(self) -> float:
        """What the workers may take beyond an engine's own limit."""
        return 0.0

    @property
    def source(self) -> str:
        """What it comes from, for people."""
        return str(self.path)

    def layout(self, *, tied: bool) -> CheckpointLayout:
        """Which tensors it brings. WeightsError if the file is not whole."""
        return read_layout(self.path, tied=tied)

    def payload(self) -> dict[str, Any]:
        """As it is sent to the workers."""
        return {
            "kind": (PayloadKind.COMPLETE if self.changed is None else PayloadKind.CHANGED).value,
            "path": str(self.path.resolve()),
            "names": sorted(self.changed or ()),
            "deltas": [str(path.resolve()) for path in self.deltas],
        }


@dataclass(frozen=True, slots=True)
class BroadcastUpdate:
    """New weights that the learner is about to broadcast. Everybody who is told of them has to take part.

    unique_id: the group to meet in, as NCCL names it, in base64. rank: of this engine's first worker in it; the learner
    has 0. tensors: (name, torch dtype, shape), in the order of the broadcast. limit_s: for joining, and for receiving.
    """

    version: int
    unique_id: str
    rank: int
    world_size: int
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    limit_s: float
    source: str = "the broadcast"
    changed: None = None

    @property
    def needs_s(self) -> float:
        """What the workers may take beyond an engine's own limit."""
        return 2 * self.limit_s

    def layout(self, *, tied: bool) -> CheckpointLayout:
        """Which tensors it brings."""
        return CheckpointLayout({name: shape for name, _, shape in self.tensors}, tied)

    def payload(self) -> dict[str, Any]:
        """As it is sent to the workers."""
        told = {
            "unique_id": self.unique_id,
            "rank": self.rank,
            "world_size": self.world_size,
            "tensors": [[name, dtype, list(shape)] for name, dtype, shape in self.tensors],
            "limit_s": self.limit_s,
        }
        return {"kind": PayloadKind.BROADCAST.value, "path": "", "broadcast": told}


AnyUpdate = WeightUpdate | BroadcastUpdate
