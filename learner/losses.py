"""Per-token losses: pure functions of a batch and what the policy says about it, [T] -> [T]. Nothing here averages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.batch import PolicyOutputs, TokenBatch
from learner.ratios import Ratio, Shape, expert_ratio, log_ratio, policy_ratio

TokenLoss = Callable[[TokenBatch, PolicyOutputs], Tensor]
"""TokenBatch, PolicyOutputs -> float [T]."""

TokenWeight = Callable[[TokenBatch, PolicyOutputs], Tensor]
"""TokenBatch, PolicyOutputs -> float [T], without a gradient."""

TokenMark = Callable[[TokenBatch, PolicyOutputs], Tensor]
"""TokenBatch, PolicyOutputs -> bool [T]."""


@dataclass(frozen=True, slots=True)
class Clip:
    """How far a ratio is followed: from 1 - low to 1 + high; with `dual` no further than that where A < 0."""

    low: float
    high: float
    dual: float | None = None


def negative_logprob(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """-log π_θ(y_t)    [T]    (survey Eq. 1)"""
    return -policy.logprobs_T


def negative_entropy(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """-H(π_θ(·|y_<t)): as a term it is the entropy bonus.    [T]"""
    return -policy.entropy_T


def divergence(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """k3 = π_ref/π_θ - log π_ref/π_θ - 1 of the sampled token, which estimates KL(π_θ, π_ref).    [T]

    (GRPO, arXiv 2402.03300, Eq. 4.) Its gradient on log π_θ is 1 - π_ref/π_θ.
    """
    if policy.reference_logprobs_T is None:
        raise ValueError("there are no log-probs of a reference: an algorithm with a KL term sets needs_reference")
    log_ratio_T = log_ratio(policy.reference_logprobs_T, policy.logprobs_T)
    return log_ratio_T.exp() - log_ratio_T - 1


def surrogate(
    batch: TokenBatch, policy: PolicyOutputs, *, ratio: Ratio = policy_ratio, dual: float | None = None
) -> Tensor:
    """-ρ_t A_t    [T]    (survey Eq. 4-5 at ρ = 1)"""
    return -_bounded(ratio(batch, policy) * batch.advantages_T, batch, dual)


def clipped_surrogate(batch: TokenBatch, policy: PolicyOutputs, *, clip: Clip, ratio: Ratio = policy_ratio) -> Tensor:
    """-min(ρ_t A_t, clip(ρ_t, 1 - ε_low, 1 + ε_high) A_t)    [T]    (survey Eq. 7)

    With a dual clip, where A < 0: -max(min(...), c A_t)    (Ye et al., 2020, arXiv 1912.09729).
    """
    ratio_T = ratio(batch, policy)
    clipped_T = ratio_T.clamp(1 - clip.low, 1 + clip.high)
    objective_T = torch.minimum(ratio_T * batch.advantages_T, clipped_T * batch.advantages_T)
    return -_bounded(objective_T, batch, clip.dual)


def is_clipped(batch: TokenBatch, policy: PolicyOutputs, *, clip: Clip, ratio: Ratio = policy_ratio) -> Tensor:
    """Where `clipped_surrogate` has no gradient although there is an advantage.    bool [T]"""
    ratio_T = ratio(batch, policy)
    above_T = (batch.advantages_T > 0) & (ratio_T > 1 + clip.high)
    below_T = (batch.advantages_T < 0) & (ratio_T < 1 - clip.low)
    clipped_T = above_T | below_T
    return clipped_T if clip.dual is None else clipped_T | is_bounded(batch, policy, dual=clip.dual, ratio=ratio)


def weighted_logprob(batch: TokenBatch, policy: PolicyOutputs, *, clip: Clip, ratio: Ratio = policy_ratio) -> Tensor:
    """-sg(clip(ρ_t, 1 - ε_low, 1 + ε_high)) A_t log π_θ(y_t)    [T]    (CISPO, arXiv 2506.13585, Eq. 4)

    A clipped ratio keeps its gradient here. With a dual clip the ratio is at most that where A < 0.
    """
    weight_T = ratio(batch, policy).detach().clamp(1 - clip.low, 1 + clip.high)
    if clip.dual is not None:
        weight_T = torch.where(batch.advantages_T < 0, weight_T.clamp(max=clip.dual), weight_T)
    return -weight_T * batch.advantages_T * policy.logprobs_T


def shaped_surrogate(batch: TokenBatch, policy: PolicyOutputs, *, shape: Shape) -> Tensor:
    """-f(ρ_t) A_t with ρ = π_θ/π_φ, never clipped    [T]    (survey §4.3)"""
    return -shape(expert_ratio(batch, policy)) * batch.advantages_T


def is_clamped(batch: TokenBatch, policy: PolicyOutputs, *, low: float | None, high: float | None) -> Tensor:
    """Where π_θ/π_φ is outside low..high although there is an advantage.    bool [T]"""
    ratio_T = expert_ratio(batch, policy)
    outside_T = torch.zeros_like(ratio_T, dtype=torch.bool)
    if low is not None:
        outside_T = outside_T | (ratio_T < low)
    if high is not None:
        outside_T = outside_T | (ratio_T > high)
    return outside_T & (batch.advantages_T != 0)


def weighted(batch: TokenBatch, policy: PolicyOutputs, *, loss: TokenLoss, weight: TokenWeight) -> Tensor:
    """w_t times a loss    [T]"""
    return weight(batch, policy) * loss(batch, policy)


def is_weightless(batch: TokenBatch, policy: PolicyOutputs, *, mark: TokenMark | None, weight: TokenWeight) -> Tensor:
    """Where `mark` is, and where w_t is zero although there is an advantage.    bool [T]"""
    weightless_T = (weight(batch, policy) == 0) & (batch.advantages_T != 0)
    return weightless_T if mark is None else weightless_T | mark(batch, policy)


def is_bounded(batch: TokenBatch, policy: PolicyOutputs, *, dual: float, ratio: Ratio = policy_ratio) -> Tensor:
    """Where a dual clip has cut off the gradient.    bool [T]"""
    return (batch.advantages_T < 0) & (ratio(batch, policy) > dual)


def _bounded(objective_T: Tensor, batch: TokenBatch, dual: float | None) -> Tensor:
    """The objective, at least dual * A where A < 0.    [T]"""
    if dual is None:
        return objective_T
    floor_T = dual * batch.advantages_T
    return torch.where(batch.advantages_T < 0, torch.maximum(objective_T, floor_T), objective_T)
