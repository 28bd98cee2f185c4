"""Importance ratios between the policy and what wrote a token, and what may be done to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learner.batch import PolicyOutputs, TokenBatch

LOG_RATIO_LIMIT = 20.0

Shape = Callable[[Tensor], Tensor]
"""Ratio [T] -> what multiplies the advantage [T]."""


def ratio(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """exp(log π_θ - log μ), its logarithm clamped to ±20 so that neither it nor its gradient overflows.    [T]"""
    return (logprobs_T - reference_logprobs_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def policy_ratio(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """π_θ/π_old, with π_old as recorded when the token was sampled.    [T], meaningful on policy tokens"""
    return ratio(policy.logprobs_T, batch.behaviour_logprobs_T)


def expert_ratio(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """π_θ/π_φ, with π_φ = 1 where it is not known.    [T], meaningful on expert tokens    (survey Eq. 9)"""
    return ratio(policy.logprobs_T, batch.expert_logprobs_T)


def unshaped(ratio_T: Tensor) -> Tensor:
    """x"""
    return ratio_T


def gamma_shaped(ratio_T: Tensor, *, gamma: float) -> Tensor:
    """x / (x + γ): its gradient on log x is γx/(x+γ)², largest (1/4) at x = γ.    (LUFFY, arXiv 2504.14945, §3.3)"""
    return ratio_T / (ratio_T + gamma)


def sqrt_shaped(ratio_T: Tensor) -> Tensor:
    """√x"""
    return ratio_T.sqrt()


def log_shaped(ratio_T: Tensor) -> Tensor:
    """log(1 + x)"""
    return torch.log1p(ratio_T)
