"""What an algorithm is: credit for each member of a group, then a sum of terms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from learner.advantages import Advantage
from learner.batch import TokenBatch
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
    """What a batch teaches: who of a group is seen, the advantage of each of them, and the terms of the loss."""

    name: str
    admits: Admission
    advantage: Advantage
    terms: tuple[Term, ...]


def taught_tokens(algorithm: Algorithm, batch: TokenBatch) -> Tensor:
    """The tokens that some term is about.    bool [T]"""
    return reduce(torch.logical_or, (term.on(batch) for term in algorithm.terms))
