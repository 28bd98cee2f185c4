"""Directories that appear whole or not at all: filled under another name, synced to disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from common.errors import TributaryError

_UNFINISHED = ".unfinished"
_REPLACED = ".replaced"


class NotWritten(TributaryError):
    """A directory could not be written: the disk is full, or it may not be written to. Nothing of it is left."""


@contextmanager
def appearing(target: Path) -> Generator[Path]:
    """A directory to fill that becomes `target` when the block ends well. NotWritten if the disk does not take it."""
    unfinished = target.with_name(f".{target.name}{_UNFINISHED}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        for path in unfinished.iterdir():
            sync(path)
        sync(unfinished)
        _put_in_place(unfinished, target)
    except OSError as error:
        raise not_written(target, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def not_written(target: Path, error: Exception) -> NotWritten:
    """The error that says so, with how much room is left."""
    return NotWritten(f"cannot write {target}: {error}{_space(target)}")


def _put_in_place(unfinished: Path, target: Path) -> None:
    """Rename to `target`. A directory of that name stands aside until then: at any moment one of the two is whole."""
    replaced = target.with_name(f".{target.name}{_REPLACED}")
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    try:
        unfinished.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(parent: Path) -> None:
    """Remove what a killed writer left unfinished in `parent`; put back what it had not yet replaced.

    NotWritten if that cannot be put back.
    """
    for path in parent.glob(f".*{_REPLACED}"):
        target = path.with_name(path.name.removeprefix(".").removesuffix(_REPLACED))
        if target.exists():
            shutil.rmtree(path, ignore_errors=True)
            continue
        try:
            path.rename(target)
            sync(parent)
        except OSError as error:
            raise NotWritten(f"cannot put {target} back from {path.name}: {error}") from error
    for path in parent.glob(f".*{_UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)


def _space(target: Path) -> str:
    """How much room is left, as the end of a sentence."""
    for parent in target.parents:
        if parent.exists():
            free_mb = shutil.disk_usage(parent).free / 1e6
            return f" ({free_mb:.0f} MB are free there: make room, or correct the permissions)"
    return ""
