"""Checkpoints: all that the learner needs to go on as if it had never stopped, in directories whole or skipped.

    step-000120/  model.safetensors  optimizer.safetensors  generators.safetensors  checkpoint.json
                  rehearsal.safetensors  rehearsal_optimizer.safetensors   (once an algorithm has rehearsed)

checkpoint.json is written last and holds the digests of the others. Nothing is executed on reading.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from common.digests import file_digest
from common.errors import TributaryError
from learner.storage.durable import appearing, sweep
from learner.trainer import TensorFiles

_SCHEMA = 1
_RECORD = "checkpoint.json"
_POLICY = "model"
_DAMAGED = ".damaged"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the learner is. version: held. updates: optimiser updates; unpublished: those since the last publication.

    seen: consumed group ids. unacknowledged: stream entries whose effect this checkpoint contains. step_of: pairs of
    version and step; published: steps of publications (see Lineage).
    """

    step: int
    version: int
    revision: int
    updates: int
    unpublished: int
    seen: tuple[str, ...]
    unacknowledged: tuple[str, ...]
    step_of: tuple[tuple[int, int], ...]
    published: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Progress, and the trainer's tensors by file name without suffix."""

    progress: Progress
    tensors: TensorFiles


@dataclass(frozen=True, slots=True, eq=False)
class SavedPolicy:
    """The weights of a checkpoint, by their names inside the module."""

    progress: Progress
    weights: Mapping[str, Tensor]


class NoCheckpoint(TributaryError):
    """No checkpoint holds what was asked for, or none that is there can be used."""


class Damaged(Exception):
    """A checkpoint directory is incomplete or altered."""


class Unreadable(Damaged):
    """A checkpoint directory may be whole, and cannot be read: not by this program, or not now."""


class CheckpointStore:
    """The checkpoints of one run; the newest `keep` are kept. complaints: what `newest` had to pass over, and why."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.complaints: list[str] = []
        self._directory = directory
        self._keep = keep

    def commit(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and remove the oldest. NotWritten if the disk does not take it; older ones are intact."""
        target = self._directory / f"step-{checkpoint.progress.step:06d}"
        with appearing(target) as directory:
            files: dict[str, tuple[int, str]] = {}
            for name, tensors in checkpoint.tensors.items():
                path = directory / f"{name}.safetensors"
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
                files[path.name] = (path.stat().st_size, file_digest(path))
            record = {"schema": _SCHEMA, "progress": asdict(checkpoint.progress), "files": files}
            (directory / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        for old in self._directories()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def newest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint; None if there never was any. A damaged one is said, and set aside.

        NoCheckpoint if all are damaged, or if one may be whole and cannot be read: what they held is acknowledged, so
        to go on without it is for an operator to decide.
        """
        sweep(self._directory)
        for directory in reversed(self._directories()):
            try:
                return _read(directory)
            except Unreadable as error:
                raise NoCheckpoint(
                    f"the checkpoint {directory} cannot be read: {error}. It was left as it is: make it readable, or "
                    "move it away to go on from the one before it"
                ) from error
            except Damaged as error:
                self.complaints.append(f"the checkpoint {directory} is damaged and was passed over: {error}")
                log.warning(self.complaints[-1])
                _set_aside(directory)
        if damaged := sorted(path.name for path in self._directory.glob(f"step-*{_DAMAGED}")):
            raise NoCheckpoint(
                f"every checkpoint in {self._directory} is damaged ({', '.join(damaged)}): put a copy of one back, or "
                "remove them to begin the run anew"
            )
        return None

    def saved_policy(self, step: int | None = None) -> SavedPolicy:
        """The policy of the checkpoint of `step`, or of the newest undamaged one. NoCheckpoint says why there is none.

        Nothing is changed on disk: this may be called while a learner trains.
        """
        problems: list[str] = []
        directories = self._directories()
        for directory in reversed(directories):
            if step in (None, _step(directory)):
                try:
                    found = _read(directory, {_POLICY})
                    return SavedPolicy(found.progress, found.tensors[_POLICY])
                except (Damaged, KeyError) as error:
                    problems.append(f"{directory.name} is {_ill(error)}: {error}")
        if problems and step is None and directories != self._directories():  # removed meanwhile, for newer ones
            return self.saved_policy()
        if problems:
            raise NoCheckpoint(f"no checkpoint in {self._directory} can be used ({'; '.join(problems)})")
        if not directories:
            raise NoCheckpoint(
                f"there is no checkpoint in {self._directory}: train until the first one, or order one with "
                "`tributary checkpoint`"
            )
        steps = [_step(directory) for directory in directories]
        raise NoCheckpoint(f"there is no checkpoint of step {step} in {self._directory}: choose one of {steps}")

    def _directories(self) -> list[Path]:
        """Committed checkpoints, oldest first."""
        found = [p for p in self._directory.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdecimal()]
        return sorted(found, key=_step)


def _step(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))


def _ill(error: Exception) -> str:
    return "unreadable" if isinstance(error, Unreadable) else "damaged"


def _set_aside(directory: Path) -> None:
    """Rename a damaged directory, so that it neither counts among those kept nor blocks a new one of its name."""
    aside = directory.with_name(directory.name + _DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):  # a directory that cannot be renamed is skipped again next time
        directory.rename(aside)


def _read(directory: Path, only: Container[str] | None = None) -> Checkpoint:
    """A checkpoint, with all of its files or only those of some names.

    Damaged if it is not as it was written; Unreadable if that cannot be found out.
    """
    try:
        record = cast(dict[str, Any], json.loads((directory / _RECORD).read_text(encoding="utf-8")))
        if record["schema"] > _SCHEMA:
            raise Unreadable(f"its schema is {record['schema']}, this program reads up to {_SCHEMA}")
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, (size, digest) in record["files"].items():
            path = directory / name
            if only is not None and path.stem not in only:
                continue
            if path.stat().st_size != size or file_digest(path) != digest:
                raise Damaged(f"{name} does not match its digest")
            tensors[path.stem] = load_file(path)
        return Checkpoint(_progress(record["progress"]), tensors)
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    except OSError as error:  # permissions, a disk that is away: nothing is said about what is on it
        raise Unreadable(str(error)) from error


def _progress(fields: dict[str, Any]) -> Progress:
    return Progress(
        step=int(fields["step"]),
        version=int(fields["version"]),
        revision=int(fields["revision"]),
        updates=int(fields["updates"]),
        unpublished=int(fields["unpublished"]),
        seen=tuple(fields["seen"]),
        unacknowledged=tuple(fields["unacknowledged"]),
        step_of=tuple((int(version), int(step)) for version, step in fields["step_of"]),
        published=tuple(int(step) for step in fields["published"]),
    )
