"""Directories of tensors that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from common import durable
from common.durable import NotWritten, not_written, sweep, sync

__all__ = ["NotWritten", "appearing", "sweep", "sync"]


@contextmanager
def appearing(target: Path) -> Generator[Path]:
    """A directory to fill that becomes `target` when the block ends well. NotWritten if the disk does not take it."""
    with durable.appearing(target) as directory:
        try:
            yield directory
        except SafetensorError as error:  # what it raises for a full disk
            raise not_written(target, error) from error
