"""Stages of a checkpoint at which a learner can be made to die as by kill -9. `arm` is called in its process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from common import durable
from learner.ledger import Ledger
from learner.storage import archive, checkpoint
from learner.storage.archive import Archive
from learner.storage.checkpoint import CheckpointStore
from learner.storage.state_copy import StateCopy
from tests.contract.publication_deaths import die

STAGES = (
    "state copied",
    "not begun",
    "partial checkpoint file",
    "checkpoint without record",
    "checkpoint not renamed",
    "old checkpoint half removed",
    "nothing acknowledged",
    "half acknowledged",
)


def arm(stage: str, dies_at: int) -> None:
    """Die at a stage of STAGES the `dies_at`-th time that it is reached, counted from the start of the process."""
    calls = [0]

    def due() -> bool:
        calls[0] += 1
        return calls[0] >= dies_at

    def around(owner: Any, name: str, *, after: bool = False) -> None:
        real = getattr(owner, name)

        def dying(*args: Any, **options: Any) -> Any:
            now = due()
            if now and not after:
                die()
            result = real(*args, **options)
            if now:
                die()
            return result

        setattr(owner, name, dying)

    match stage:
        case "state copied":
            around(StateCopy, "take", after=True)
        case "not begun":
            around(CheckpointStore, "commit")
        case "partial checkpoint file":
            _tear_files(due)
        case "checkpoint without record":
            around(checkpoint, "asdict")
        case "checkpoint not renamed":
            _before_renaming(due)
        case "old checkpoint half removed":
            _remove_half(due)
        case "nothing acknowledged":
            around(Archive, "_acknowledge")
        case "half acknowledged":
            archive._AT_A_TIME = 1
            around(Ledger, "forget")
        case _:
            raise ValueError(stage)


def _tear_files(due: Any) -> None:
    """Leave half of a file of a checkpoint."""
    real = checkpoint.save_file

    def torn(tensors: Any, path: Path) -> None:
        real(tensors, path)
        if due():
            os.truncate(path, path.stat().st_size // 2)
            die()

    checkpoint.save_file = torn


def _before_renaming(due: Any) -> None:
    real = durable._put_in_place

    def dying(unfinished: Path, target: Path) -> None:
        if target.name.startswith("step-") and due():
            die()
        real(unfinished, target)

    durable._put_in_place = dying


def _remove_half(due: Any) -> None:
    """Die when an old checkpoint has lost one of its files."""
    real = CheckpointStore._directories

    def dying(self: CheckpointStore) -> list[Path]:
        found = real(self)
        if len(found) > self._keep and due():
            next(found[0].glob("*.safetensors")).unlink()
            die()
        return found

    CheckpointStore._directories = dying
