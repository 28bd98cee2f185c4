"""What an algorithm is: credit for each member of a group, then a sum of terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from common.trajectory import Group, Trajectory
from learner.advantages import Advantage
from learner.batch import PolicyOutputs, TokenBatch
from learner.losses import TokenLoss, TokenMark
from learner.normalisers import Normaliser
from learner.selectors import Admission, Selector


@dataclass(frozen=True, slots=True)
class Term:
    """weight * the sum over `on` of a per-token loss, divided by what `norm` counts over the whole step.

    `norm` may count over other tokens than `on`: so two terms can share one denominator. `clipped` marks the tokens
    whose gradient the loss has cut off; None where it never does.
    """

    name: str
    on: Selector
    loss: TokenLoss
    norm: Normaliser
    weight: float = 1.0
    clipped: TokenMark | None = None


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What a batch teaches: who of a group is seen, the advantage of each of them, and the terms of the loss.

    needs_reference: some term reads `PolicyOutputs.reference_logprobs_T`. survey: what has to be known of the whole
    step before the terms are complete. rehearsal: a step of imitation that may follow.
    """

    name: str
    admits: Admission
    advantage: Advantage
    terms: tuple[Term, ...]
    needs_reference: bool = False
    survey: Survey | None = None
    rehearsal: Rehearsal | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """A look at the whole step, without a gradient, that completes an algorithm.

    observe: a micro-batch and its outputs -> any number of values [K]; all of them, over micro-batches and ranks, go to
    `settle`. What that returns has the same terms with the same norms.
    """

    observe: Callable[[TokenBatch, PolicyOutputs], Tensor]
    settle: Callable[[Tensor], Algorithm]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Imitation of demonstrations that were collected while reinforcing (ReLIFT).

    collects: what a group leaves to be imitated, or None. When `size` of them wait, one step of `algorithm` follows
    with an optimiser state of its own and `learning_rate`; at most `limit` are kept.
    """

    algorithm: Algorithm
    collects: Callable[[Group], Trajectory | None]
    size: int
    limit: int
    learning_rate: float


def taught_tokens(algorithm: Algorithm, batch: TokenBatch) -> Tensor:
    """The tokens that some term is about.    bool [T]"""
    return reduce(torch.logical_or, (term.on(batch) for term in algorithm.terms))


def surveyed(
    algorithm: Algorithm,
    looks: Iterable[tuple[TokenBatch, PolicyOutputs]],
    everyone: Callable[[Tensor], Tensor] = lambda values_K: values_K,
) -> Algorithm:
    """The algorithm as its survey completes it. looks: the step's micro-batches, read only if there is one.

    everyone: the values of one rank -> those of all.
    """
    if algorithm.survey is None:
        return algorithm
    with torch.no_grad():
        seen = [algorithm.survey.observe(batch, outputs) for batch, outputs in looks]
        return algorithm.survey.settle(everyone(torch.cat(seen) if seen else torch.zeros(0)))
