"""Emphasis: weights that are read from the policy's entropy, and the tokens of which it is least certain.

All of them are detached: they say how much a token counts, and send no gradient. The entropy is that of the learner's
own forward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learner.batch import PolicyOutputs, TokenBatch
from learner.losses import TokenWeight
from learner.selectors import Selector

ENTROPY_LIMIT = 20.0
"""Above the entropy of any vocabulary: weights stay finite whatever a policy says."""

_TIE = 1e-6
_ROUNDING = 1e-9


def token_entropy(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """H of each token's own position.    [T]"""
    return _entropy(policy)


def sequence_entropy(batch: TokenBatch, policy: PolicyOutputs, *, over: Selector) -> Tensor:
    """The mean H over the tokens of `over` of the token's trajectory; 0 where it has none.    [T]"""
    counted_T = over(batch)
    entropy_T = _entropy(policy)
    sums_N = batch.sum_per_sequence(torch.where(counted_T, entropy_T, torch.zeros_like(entropy_T)))
    counts_N = batch.sum_per_sequence(counted_T.to(entropy_T.dtype))
    return (sums_N / counts_N.clamp(min=1))[batch.segment_T]


def given_entropy(batch: TokenBatch, policy: PolicyOutputs, *, entropy: float) -> Tensor:
    """The same H for every token: that of the whole step.    [T]"""
    return torch.full_like(policy.entropy_T, entropy)


def exp_entropy(batch: TokenBatch, policy: PolicyOutputs, *, entropy: TokenWeight, sign: int, scale: float) -> Tensor:
    """scale * exp(±H).    [T]    (survey Eq. 11 and 13)"""
    return scale * (sign * entropy(batch, policy)).exp()


def entropy_sums(batch: TokenBatch, policy: PolicyOutputs, *, over: tuple[Selector, ...]) -> Tensor:
    """For each selector the sum of H over its tokens, and their number; float64.    [2 * len(over)]"""
    entropy_T = _entropy(policy).double()
    chosen = [entropy_T[selector(batch)] for selector in over]
    return torch.stack([figure for e in chosen for figure in (e.sum(), e.new_tensor(float(len(e))))])


def entropy_means(sums: Tensor, selectors: int) -> list[float]:
    """The mean H for each of so many selectors, from the `entropy_sums` of any number of batches one after another.

    0 where no token was selected.
    """
    rows = len(sums) // (2 * selectors)
    totals_S2 = sums.reshape(rows, selectors, 2).sum(dim=0)
    return [float(mean) for mean in totals_S2[:, 0] / totals_S2[:, 1].clamp(min=1)]


def most_uncertain(batch: TokenBatch, policy: PolicyOutputs, *, over: Selector, share: float) -> Tensor:
    """1 on the ceil(share n) of a trajectory's n tokens of `over` that have the highest entropy, else 0.    [T]

    Of equally uncertain tokens the earlier one is taken.
    """
    # All tokens are ranked, those of `over` first: how many these are, only the GPU knows.
    counted_T = over(batch)
    entropy_T = torch.where(counted_T, _entropy(policy), -torch.ones_like(policy.entropy_T))
    order_T = entropy_T.argsort(descending=True, stable=True)
    order_T = order_T[batch.segment_T[order_T].argsort(stable=True)]
    segment_T = batch.segment_T[order_T]
    sizes_N, counts_N = (batch.sum_per_sequence(t.double()) for t in (torch.ones_like(counted_T), counted_T))
    rank_T = torch.arange(len(order_T), device=order_T.device) - (sizes_N.cumsum(0) - sizes_N)[segment_T]
    kept_N = torch.ceil(share * counts_N - _ROUNDING)
    return torch.zeros_like(entropy_T).scatter(0, order_T, (rank_T < kept_N[segment_T]).to(entropy_T.dtype))


def entropies(batch: TokenBatch, policy: PolicyOutputs, *, over: Selector) -> Tensor:
    """H of the tokens of `over`.    [K]"""
    return _entropy(policy)[over(batch)]


def threshold(entropies_K: Tensor, share: float) -> float:
    """The entropy that the ceil(share K) highest ones reach; infinite where none is to be taken."""
    kept = math.ceil(share * len(entropies_K) - _ROUNDING)
    if kept == 0:
        return math.inf
    return float(entropies_K.topk(kept).values[-1])


def at_least(batch: TokenBatch, policy: PolicyOutputs, *, entropy: float) -> Tensor:
    """1 where H reaches `entropy`, to a relative 10⁻⁶, else 0.    [T]

    Tokens that tie at the threshold are all taken: so which ones are does not depend on the order in which they come,
    nor on the last bit of a forward that was cut another way.
    """
    return (_entropy(policy) >= entropy * (1 - _TIE)).to(policy.entropy_T.dtype)


def _entropy(policy: PolicyOutputs) -> Tensor:
    return policy.entropy_T.detach().clamp(0.0, ENTROPY_LIMIT)
