"""The transfer of micro-batches to the device: the next one is on its way while the current one computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from learner.batch import MicroBatch


class Transfer:
    """Brings micro-batches to one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None

    def arriving(self, micro_batches: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
        """Each micro-batch on the device, in order. It is done with when the next one is asked for."""
        if self._copying is not None:
            return _overtaking(micro_batches, torch.cuda.current_stream(self._device), self._copying)
        return (micro.to(self._device) for micro in micro_batches)


def _overtaking(
    micro_batches: Sequence[MicroBatch], computing: torch.cuda.Stream, copying: torch.cuda.Stream
) -> Iterator[MicroBatch]:
    """Copies go through a stream of their own, one micro-batch ahead of the computation.

    A micro-batch's memory belongs to that stream and is given out again in its order only. It waits for the work that
    the computing stream was given so far before every copy, so it never overwrites what is still being read.
    """
    coming: tuple[MicroBatch, torch.cuda.Event] | None = None
    for micro in (*micro_batches, None):
        arrived, coming = coming, None if micro is None else _sent(micro, computing, copying)
        if arrived is not None:
            here, is_there = arrived
            computing.wait_event(is_there)
            yield here


def _sent(
    micro: MicroBatch, computing: torch.cuda.Stream, copying: torch.cuda.Stream
) -> tuple[MicroBatch, torch.cuda.Event]:
    """A micro-batch under way, and the mark behind its last byte."""
    copying.wait_stream(computing)
    with torch.cuda.stream(copying):
        here = micro.pinned().to(copying.device)
        is_there = torch.cuda.Event()
        is_there.record(copying)
    return here, is_there
