"""What an engine is told about new weights, on its way from this process to the workers of the engine core."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class PayloadKind(StrEnum):
    """How the worker takes an update: each kind is a case of `FileWeightTransfer.receive_weights`."""

    COMPLETE = "complete"
    CHANGED = "changed"


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

    def payload(self) -> dict[str, Any]:
        """As it is sent to the workers."""
        return {
            "kind": (PayloadKind.COMPLETE if self.changed is None else PayloadKind.CHANGED).value,
            "path": str(self.path.resolve()),
            "names": sorted(self.changed or ()),
            "deltas": [str(path.resolve()) for path in self.deltas],
        }
