"""Ranks that are several: torch.distributed, under torchrun. Tensors and raw bytes travel, nothing is pickled."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from common.errors import SettingsError
from learner.outcome import Abandoned
from learner.ranks.alone import Heed, RankLost, Ranks

log = logging.getLogger(__name__)

COLLECTIVE_S = 600.0
"""How long one waits for the others in the middle of work. Loading, and torch.compile on the first step, take long."""

_ORDER_S = 30 * 86400.0
# Orders come in a group of their own: a learner that is paused gives none for days. That it has died shows at once all
# the same, since its connections close.


class CollectiveRanks(Ranks):
    """One of several ranks, all of which share everything evenly. mesh: all of them in a row."""

    def __init__(self, device: torch.device) -> None:
        """Meet the others, as torchrun's variables say. RankLost if they do not come."""
        try:
            dist.init_process_group(_backend(device), timeout=timedelta(seconds=COLLECTIVE_S))
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._orders: Any = dist.new_group(  # pyright: ignore[reportUnknownMemberType]
                backend="gloo", timeout=timedelta(seconds=_ORDER_S)
            )
            self.mesh: DeviceMesh = init_device_mesh(device.type, (self.size,))
        except (RuntimeError, ValueError) as error:
            raise RankLost(f"the ranks of the learner did not come together: {_first_sentence(error)}") from error
        self._device = device

    def heeding(self, heed: Heed) -> Heed:
        """Everyone learns what rank 0 decides before each micro-batch; that takes a fraction of a millisecond."""

        def together() -> None:
            abandoned: Abandoned | None = None
            if self.rank == 0:
                try:
                    heed()
                except Abandoned as reason:
                    abandoned = reason
            if self.agreed(abandoned is not None):
                raise abandoned or Abandoned("the step was given up by rank 0")

        return together

    def agreed(self, number: int) -> int:
        """The number of rank 0."""
        said = torch.tensor([number], dtype=torch.int64)
        with self.working():
            dist.broadcast(said, 0)
        return int(said)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        total = values.clone()
        with self.working():
            dist.all_reduce(total)  # pyright: ignore[reportUnknownMemberType]
        return total

    def concatenated(self, values_K: Tensor) -> Tensor:
        """The values of all ranks, one rank after another."""
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(values_K)
        lengths = [int(length) for length in self.sum(counts)]
        padded = values_K.new_zeros(max(1, *lengths))
        padded[: len(values_K)] = values_K
        everyone = [torch.empty_like(padded) for _ in lengths]
        with self.working():
            dist.all_gather(everyone, padded)  # pyright: ignore[reportUnknownMemberType]
        return torch.cat([theirs[:length] for theirs, length in zip(everyone, lengths, strict=True)])

    def collected(self, values_K: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """At rank 0 the values of every rank, those of others in host memory."""
        with self.working():
            if self.rank != 0:
                if len(values_K):
                    dist.send(values_K.cpu(), 0)
                return []
            everyone = [values_K]
            for rank, length in enumerate(lengths[1:], start=1):
                everyone.append(torch.empty(length, dtype=values_K.dtype))
                if length:
                    dist.recv(everyone[-1], rank)
            return everyone

    def own(self, tensor: Tensor) -> Tensor:
        """This rank's share."""
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def whole(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The whole tensor, on its device."""
        if not isinstance(tensor, DTensor):
            return tensor
        with self.working():
            return cast(DTensor, tensor.to(dtype or tensor.dtype)).full_tensor()  # pyright: ignore

    def gathering(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors that become whole when they are read."""
        return _Gathering(tensors, self.whole)

    def fill(self, tensor: Tensor, values: Tensor) -> None:
        """Send rank 0's values to all; each keeps its share."""
        whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        if self.rank == 0:
            whole.copy_(values)
        with self.working():
            dist.broadcast(whole, 0)
        if isinstance(tensor, DTensor):
            shared = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
            cast(DTensor, tensor.detach()).to_local().copy_(shared.to_local())
        else:
            tensor.copy_(whole)

    def placed(self, values: Tensor, like: Tensor) -> Tensor:
        """A new tensor with rank 0's values, shared as `like` is."""
        shared = isinstance(like, DTensor) and like.shape == values.shape
        place = (
            torch.zeros_like(like.detach(), dtype=values.dtype)
            if shared
            else torch.empty(values.shape, dtype=values.dtype, device=like.device)
        )
        self.fill(place, values)
        return place

    @contextmanager
    def working(self) -> Generator[None]:
        """Whatever breaks inside is raised as RankLost."""
        try:
            yield
        except RuntimeError as error:
            log.warning("the work of all ranks broke here", extra={"rank": self.rank}, exc_info=error)
            # Whoever is left cannot know where the others are: the job ends, and resumes from its last checkpoint.
            raise RankLost(
                f"rank {self.rank} of {self.size} cannot go on with the others: {_first_sentence(error)}"
            ) from error

    def tell(self, order: bytes) -> None:
        """Send an order to all others."""
        self._send(torch.tensor([len(order)], dtype=torch.int64))
        self._send(torch.frombuffer(bytearray(order), dtype=torch.uint8))

    def hear(self) -> bytes:
        """The next order."""
        length = self._send(torch.zeros(1, dtype=torch.int64))
        return self._send(torch.empty(int(length), dtype=torch.uint8)).numpy().tobytes()  # pyright: ignore

    def close(self) -> None:
        """Part from the others."""
        dist.destroy_process_group()

    def _send(self, data: Tensor) -> Tensor:
        """Rank 0's data, there and elsewhere."""
        with self.working():
            dist.broadcast(data, 0, group=self._orders)
        return data


class _Gathering(Mapping[str, Tensor]):
    """Tensors by name, each of them gathered whenever it is read."""

    def __init__(self, tensors: Mapping[str, Tensor], whole: Callable[[Tensor], Tensor]) -> None:
        self._tensors = tensors
        self._whole = whole

    def __getitem__(self, name: str) -> Tensor:
        return self._whole(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def own_device(device: torch.device) -> torch.device:
    """The device of this rank where the learner computes on `device`: each rank of a machine has a GPU of its own.

    SettingsError if there are more ranks than GPUs.
    """
    if device.type != "cuda":
        return device
    own, there = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))), torch.cuda.device_count()
    asked = max(own.index + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if asked > there:
        raise SettingsError(
            f"the learner was started as {asked} processes on a machine where torch sees {there} GPUs, and each needs "
            f'one: set learner.processes (torchrun: --nproc-per-node) to {there} at most, or learner.device to "cpu"'
        )
    torch.cuda.set_device(own)
    return own


def _backend(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0]
