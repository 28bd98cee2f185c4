"""Stages of a publication at which a learner can be made to die as by kill -9. `arm` is called in its process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from common import durable
from common.weights import WeightAnnouncements
from learner.publication import weight_store
from learner.publication.publisher import Publisher
from learner.publication.weight_store import WeightStore

DIES_AT = 3
"""The publication, counted from the start of the process, that is not survived."""

STAGES = (
    "partial file",
    "file without manifest",
    "not renamed",
    "not read back",
    "not announced",
    "not told",
    "pruning",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(stage: str) -> None:
    """Die at a stage of STAGES; "" is none."""
    calls = [0]

    def due() -> bool:
        calls[0] += 1
        return calls[0] >= DIES_AT

    def before(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def dying(*args: Any, **options: Any) -> Any:
            if due():
                die()
            return real(*args, **options)

        setattr(owner, name, dying)

    match stage:
        case "":
            pass
        case "partial file":
            _tear_files(due)
        case "file without manifest":
            before(WeightStore, "_describe")
        case "not renamed":
            _before_renaming(due)
        case "not read back":
            before(WeightStore, "_prove")
        case "not announced":
            before(WeightAnnouncements, "announce")
        case "not told":
            before(Publisher, "_tell")
        case "pruning":
            before(WeightStore, "prune")
        case _:
            raise ValueError(stage)


def _tear_files(due: Any) -> None:
    """Leave half of the file of a version."""
    real = weight_store.write_delta

    def torn(file: Any, *args: Any, **options: Any) -> Any:
        size = real(file, *args, **options)
        if due():
            file.truncate(size.bytes // 2)
            file.flush()
            die()
        return size

    weight_store.write_delta = torn


def _before_renaming(due: Any) -> None:
    real = durable._put_in_place

    def dying(unfinished: Path, target: Path) -> None:
        if due():
            die()
        real(unfinished, target)

    durable._put_in_place = dying
