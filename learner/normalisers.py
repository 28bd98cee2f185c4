"""What a term's sum over tokens is divided by. A count is taken over the whole step before the first forward.

A normaliser answers two questions about a micro-batch: how much it adds to the count, and each token's share of its own
trajectory. Both read data alone, and counts of micro-batches add, since a trajectory is never split over two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, assert_never

from torch import Tensor

from common.config.base import Norm
from learner.batch import TokenBatch
from learner.selectors import Selector


class Normaliser(Protocol):
    """Divides a sum over tokens by something counted over the whole step."""

    def count(self, batch: TokenBatch) -> float:
        """What this batch adds to the step's count."""
        ...

    def shares(self, batch: TokenBatch) -> Tensor:
        """What each token is multiplied with before it is summed.    [T]"""
        ...


@dataclass(frozen=True, slots=True)
class TokenMean:
    """The mean over the tokens of `over`."""

    over: Selector

    def count(self, batch: TokenBatch) -> float:
        """The number of those tokens."""
        return float(self.over(batch).sum())

    def shares(self, batch: TokenBatch) -> Tensor:
        """One.    [T]"""
        return batch.advantages_T.new_ones(len(batch.labels_T))


@dataclass(frozen=True, slots=True)
class SequenceMean:
    """The mean per trajectory over its tokens of `over`, then the mean over the trajectories that have any."""

    over: Selector

    def count(self, batch: TokenBatch) -> float:
        """The number of trajectories with such tokens."""
        return float((self._lengths(batch) > 0).sum())

    def shares(self, batch: TokenBatch) -> Tensor:
        """One over the number of such tokens of the trajectory.    [T]"""
        return 1 / self._lengths(batch).clamp(min=1)[batch.segment_T]

    def _lengths(self, batch: TokenBatch) -> Tensor:
        return batch.sum_per_sequence(self.over(batch).to(batch.advantages_T.dtype))


@dataclass(frozen=True, slots=True)
class Constant:
    """The sum over tokens divided by trajectories times a fixed length, whatever their lengths are.

    (Dr.GRPO, arXiv 2503.20783; with the number of trajectories so that the learning rate does not depend on it.)
    """

    length: int

    def count(self, batch: TokenBatch) -> float:
        """Trajectories times the length."""
        return float(batch.sequences * self.length)

    def shares(self, batch: TokenBatch) -> Tensor:
        """One.    [T]"""
        return batch.advantages_T.new_ones(len(batch.labels_T))


def normaliser(norm: Norm, *, over: Selector, longest_response: int) -> Normaliser:
    """The normaliser that a configuration names. `over`: the tokens that a mean is about."""
    match norm:
        case Norm.TOKEN_MEAN:
            return TokenMean(over)
        case Norm.SEQUENCE_MEAN:
            return SequenceMean(over)
        case Norm.CONSTANT:
            return Constant(longest_response)
        case _:
            assert_never(norm)
