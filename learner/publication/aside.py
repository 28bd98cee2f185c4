"""Aside: work on a GPU beside the training; neither waits for the other there. On a CPU there is nothing to it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

_FIRST = -1
"""The priority of a stream whose small kernels pass over those of the training."""


class Aside:
    """A stream of one device. For one thread at a time.

    Whoever reads on the stream that training uses waits, at every number that comes to the host, for all the kernels
    that training has queued before: seconds for each of some thousand reads.
    """

    def __init__(self) -> None:
        self._stream: Any = None

    @contextmanager
    def after(self, event: torch.cuda.Event | None) -> Generator[None]:
        """What is done inside comes after `event`, and is over at the end. None: there is no GPU."""
        if event is None:
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(priority=_FIRST)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(event)
            try:
                yield
            finally:
                self.settle()

    def settle(self) -> None:
        """Wait until what was begun is done."""
        if self._stream is not None:
            self._stream.synchronize()
