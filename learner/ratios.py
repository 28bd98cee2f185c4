"""Importance ratios between the policy and what wrote a token, and what may be done to them.

One step is one optimiser update, so the learner's own old policy, and its proximal policy π_prox, are sg(π_θ) of the
same forward: exact, and without a second one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learner.batch import PolicyOutputs, TokenBatch
from learner.selectors import Selector, policy_tokens

LOG_RATIO_LIMIT = 20.0

LogRatio = Callable[[TokenBatch, PolicyOutputs], Tensor]
"""TokenBatch, PolicyOutputs -> the logarithm of a ratio [T], within ±LOG_RATIO_LIMIT."""

Ratio = Callable[[TokenBatch, PolicyOutputs], Tensor]
"""TokenBatch, PolicyOutputs -> ratio [T]."""

Shape = Callable[[Tensor], Tensor]
"""Ratio [T] -> what multiplies the advantage [T]."""


def log_ratio(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """log π_θ - log μ, clamped to ±20: beyond that its gradient is zero.    [T]"""
    return (logprobs_T - reference_logprobs_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def ratio(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """exp(log π_θ - log μ), its logarithm clamped to ±20 so that neither it nor its gradient overflows.    [T]"""
    return log_ratio(logprobs_T, reference_logprobs_T).exp()


def policy_log_ratio(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """log π_θ/π_old, with π_old as recorded when the token was sampled.    [T], meaningful on policy tokens"""
    return log_ratio(policy.logprobs_T, batch.behaviour_logprobs_T)


def own_log_ratio(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """log π_θ/sg(π_θ): zero, with the gradient of log π_θ.    [T], meaningful on every token"""
    # A probability of zero would make it inf - inf, and a NaN's gradient passes through every mask.
    logprobs_T = policy.logprobs_T.clamp(min=torch.finfo(policy.logprobs_T.dtype).min)
    return log_ratio(logprobs_T, logprobs_T.detach())


def sequence_log_ratio(batch: TokenBatch, policy: PolicyOutputs, *, of: LogRatio, over: Selector) -> Tensor:
    """The mean of `of` over the trajectory's tokens of `over`, the same on all its tokens.    [T]    (GSPO, Eq. 7)"""
    counted_T = over(batch)
    log_ratio_T = of(batch, policy)
    sum_N = batch.sum_per_sequence(torch.where(counted_T, log_ratio_T, torch.zeros_like(log_ratio_T)))
    count_N = batch.sum_per_sequence(counted_T.to(sum_N.dtype))
    # index_select: on a CPU with several threads indexing adds the gradients of a sequence up in any order.
    return (sum_N / count_N.clamp(min=1)).index_select(0, batch.segment_T)


def exponential(batch: TokenBatch, policy: PolicyOutputs, *, of: LogRatio) -> Tensor:
    """The ratio whose logarithm is `of`.    [T]"""
    return of(batch, policy).exp()


def policy_ratio(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """π_θ/π_old, with π_old as recorded when the token was sampled.    [T], meaningful on policy tokens"""
    return policy_log_ratio(batch, policy).exp()


def own_ratio(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """π_θ/sg(π_θ): one, with the gradient of log π_θ.    [T], meaningful on every token"""
    return own_log_ratio(batch, policy).exp()


def expert_ratio(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """π_θ/π_φ, with π_φ = 1 where it is not known.    [T], meaningful on expert tokens    (survey Eq. 9)"""
    return ratio(policy.logprobs_T, batch.expert_logprobs_T)


def importance_ratio(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """π_θ/π_old where the policy sampled the token, π_θ/π_φ where the expert wrote it.    [T]"""
    return torch.where(policy_tokens(batch), policy_ratio(batch, policy), expert_ratio(batch, policy))


def correction_weight(
    batch: TokenBatch,
    policy: PolicyOutputs,
    *,
    truncate_at: float | None = None,
    keep_low: float | None = None,
    keep_high: float | None = None,
    of: LogRatio = policy_log_ratio,
) -> Tensor:
    """w = π_prox/π_old where the policy sampled the token, one elsewhere; without a gradient.    [T]

    Zero outside keep_low..keep_high, then at most truncate_at. of: whose exponential is w; GSPO's is the sequence's.
    (Decoupled PPO: AReaL, arXiv 2505.24298; masked: IcePop.)
    """
    weight_T = of(batch, policy).detach().exp()
    kept_T = weight_T
    if keep_low is not None:
        kept_T = torch.where(weight_T < keep_low, torch.zeros_like(weight_T), kept_T)
    if keep_high is not None:
        kept_T = torch.where(weight_T > keep_high, torch.zeros_like(weight_T), kept_T)
    if truncate_at is not None:
        kept_T = kept_T.clamp(max=truncate_at)
    return torch.where(policy_tokens(batch), kept_T, torch.ones_like(kept_T))


def unshaped(ratio_T: Tensor) -> Tensor:
    """x"""
    return ratio_T


def gamma_shaped(ratio_T: Tensor, *, gamma: float) -> Tensor:
    """x / (x + γ): its gradient on log x is γx/(x+γ)², largest (1/4) at x = γ.    (LUFFY, arXiv 2504.14945, §3.3)"""
    return ratio_T / (ratio_T + gamma)


def sqrt_shaped(ratio_T: Tensor) -> Tensor:
    """√x"""
    return ratio_T.sqrt()


def power_shaped(ratio_T: Tensor, *, exponent: float) -> Tensor:
    """x^exponent: its gradient on log x is exponent x^exponent."""
    return ratio_T.pow(exponent)


def log_shaped(ratio_T: Tensor) -> Tensor:
    """log x, which is negative below x = 1: its gradient on log x is 1, as in imitation weighted by the advantage."""
    return ratio_T.log()


def clamped(ratio_T: Tensor, *, low: float | None, high: float | None, shape: Shape) -> Tensor:
    """`shape` of x after it was raised to `low` and lowered to `high`; outside there is no gradient."""
    return shape(ratio_T if low is None and high is None else ratio_T.clamp(low, high))
