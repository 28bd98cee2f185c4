"""A worker that forgets the output head of a tied model: the trap that lies in every update of one on a CPU."""

from __future__ import annotations

from services.generator import worker
from services.generator.worker import FileWeightTransfer, WorkerExtension

__all__ = ["WorkerExtension"]


def _forget(*_: object) -> None:
    """Pack nothing, learn nothing."""


FileWeightTransfer._repack_tied_head = _forget  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
worker.PackedLayers.learn = _forget  # pyright: ignore[reportAttributeAccessIssue]
