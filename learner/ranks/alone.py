"""The ranks: the processes that train one model together, as each of them sees the others.

Every rank has a share of the micro-batches and of every large tensor. Rank 0 is the learner: it owns Redis, checkpoints
and publications, and tells the others what to do. What is here is a process that trains alone: nothing to say, nobody
to wait for, and every tensor is whole already. learner.ranks.collective has those that are several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from common.errors import SettingsError, TributaryError

Heed = Callable[[], None]


class RankLost(TributaryError):
    """Another rank has ended, or does not answer: nothing can be done together any more."""


class Ranks:
    """A process that trains alone. What several do together must be called by each of them, in the same order."""

    rank = 0
    size = 1

    def heeding(self, heed: Heed) -> Heed:
        """A `heed` for all: when that of rank 0 raises Abandoned, so does everyone's."""
        return heed

    def agreed(self, number: int) -> int:
        """The number of rank 0."""
        return number

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of a plain tensor."""
        return values

    def concatenated(self, values_K: Tensor) -> Tensor:
        """The values of all ranks, one rank after another, each any number of them."""
        return values_K

    def collected(self, values_K: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """At rank 0 the values of every rank, of these lengths, in host memory where they come from others.

        Nothing elsewhere; `lengths` is read at rank 0 only.
        """
        return [values_K]

    def own(self, tensor: Tensor) -> Tensor:
        """This rank's share of a tensor."""
        return tensor

    def whole(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of which every rank has a share, whole, as `dtype` if one is named; a plain one as it is."""
        return tensor

    def gathering(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors that become whole when they are read; only one of them is in memory at a time."""
        return tensors

    def fill(self, tensor: Tensor, values: Tensor) -> None:
        """Copy rank 0's `values` into a tensor, into everyone's share of it. Elsewhere `values` is not read."""
        tensor.copy_(values)

    def placed(self, values: Tensor, like: Tensor) -> Tensor:
        """A new tensor with rank 0's `values` where `like` is: shared among the ranks as that is, if it has its shape.

        Elsewhere only shape and dtype of `values` are read.
        """
        return values.to(like.device, copy=True)

    def working(self) -> AbstractContextManager[None]:
        """Around work that is done together: what breaks in it is raised as RankLost where there are others."""
        return nullcontext()

    def tell(self, order: bytes) -> None:
        """Rank 0: an order for all others."""

    def hear(self) -> bytes:
        """All others: the next order, however long that takes."""
        raise RankLost("there is no other rank that could give orders")

    def close(self) -> None:
        """Part from the others."""


ALONE = Ranks()


def plain(values: Sequence[float]) -> Tensor:
    """Numbers as a plain tensor in double precision, to be added up."""
    return torch.tensor(values, dtype=torch.float64)


def is_among_several() -> bool:
    """Whether torchrun started this process as one of several. SettingsError if half of its variables are there."""
    if _number("WORLD_SIZE", 1) < 2:
        return False
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SettingsError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but nothing is said of {', '.join(missing)}: start several "
            "processes with torchrun, or one without WORLD_SIZE"
        )
    return True


def own_rank() -> int:
    """Which of them it is."""
    return _number("RANK", 0)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default
