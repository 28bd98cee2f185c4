"""Per-token losses: pure functions of a batch and what the policy says about it, [T] -> [T]. Nothing here averages."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learner.batch import PolicyOutputs, TokenBatch
from learner.ratios import Shape, expert_ratio, policy_ratio

TokenLoss = Callable[[TokenBatch, PolicyOutputs], Tensor]
"""TokenBatch, PolicyOutputs -> float [T]."""

TokenMark = Callable[[TokenBatch, PolicyOutputs], Tensor]
"""TokenBatch, PolicyOutputs -> bool [T]."""


def negative_logprob(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """-log π_θ(y_t)    [T]    (survey Eq. 1)"""
    return -policy.logprobs_T


def negative_entropy(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """-H(π_θ(·|y_<t)): as a term it is the entropy bonus.    [T]"""
    return -policy.entropy_T


def surrogate(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """-ρ_t A_t with ρ = π_θ/π_old    [T]"""
    return -policy_ratio(batch, policy) * batch.advantages_T


def clipped_surrogate(batch: TokenBatch, policy: PolicyOutputs, *, clip_low: float, clip_high: float) -> Tensor:
    """-min(ρ_t A_t, clip(ρ_t, 1 - ε_low, 1 + ε_high) A_t) with ρ = π_θ/π_old    [T]    (survey Eq. 7)"""
    ratio_T = policy_ratio(batch, policy)
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio_T * batch.advantages_T, clipped_T * batch.advantages_T)


def is_clipped(batch: TokenBatch, policy: PolicyOutputs, *, clip_low: float, clip_high: float) -> Tensor:
    """Where `clipped_surrogate` has no gradient although there is an advantage.    bool [T]"""
    ratio_T = policy_ratio(batch, policy)
    above_T = (batch.advantages_T > 0) & (ratio_T > 1 + clip_high)
    below_T = (batch.advantages_T < 0) & (ratio_T < 1 - clip_low)
    return above_T | below_T


def shaped_surrogate(batch: TokenBatch, policy: PolicyOutputs, *, shape: Shape) -> Tensor:
    """-f(ρ_t) A_t with ρ = π_θ/π_φ, never clipped    [T]    (survey §4.3)"""
    return -shape(expert_ratio(batch, policy)) * batch.advantages_T
