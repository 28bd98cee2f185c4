"""UFT: unifying supervised and reinforcement fine-tuning.

Liu et al., 2025, https://arxiv.org/abs/2505.16984 (survey Eq. 15)

    A_i    = (R_i - mean R) / (std R + 1e-6)     over the rollouts of a prompt; all of them continue the same hint
    L_RL   = - sum_t min(rho_t A_i, clip(rho_t, 1 - clip_low, 1 + clip_high) A_i)     t = l + 1 .. |y_i|, sampled
    L_hint = - sum_t log pi_theta(y_t | x, y_<t)                                      t = 1 .. l, the hint
    L      = mean L_RL + beta * mean L_hint + kl_coefficient * mean k3 - entropy_bonus * mean H

with means over the tokens of the step that a sum is about. hint_norm sum is Eq. 15 as printed: the hint's sum per
sequence, averaged over sequences. How long a hint is belongs to the hint policy (published: cosine_binomial).

Departures: Eq. 15 as printed has position l in both of its sums; here a token of the hint is imitated and a sampled one
reinforced, none both. Its RL part is a mean per sequence first (norm sequence_mean); the default is the token mean of
the authors' code. The std is the unbiased one, and it is not divided by where all counted rewards are equal.
"""

from __future__ import annotations

from functools import partial
from typing import assert_never

from common.config.algorithm import UFT
from common.config.base import HintNorm
from learner.advantages import group_relative
from learner.algorithms.policy_gradient import regularisers, surrogate_term
from learner.losses import negative_logprob
from learner.normalisers import Constant, Normaliser, TokenMean, normaliser
from learner.selectors import admitting, hint_tokens, policy_tokens
from learner.terms import Algorithm, Term


def uft(config: UFT, *, longest_response: int) -> Algorithm:
    """Build UFT as configured."""
    norm = normaliser(config.norm, over=policy_tokens, longest_response=longest_response)
    imitate = Term("hint", on=hint_tokens, loss=negative_logprob, norm=_hint_norm(config), weight=config.beta)
    return Algorithm(
        config.kind,
        admits=admitting(config.accepts),
        advantage=partial(group_relative, divide_by_std=config.divide_by_std, statistics=config.statistics),
        terms=(surrogate_term(config, norm), *([imitate] if config.beta else []), *regularisers(config, norm)),
        needs_reference=config.kl_coefficient > 0,
    )


def _hint_norm(config: UFT) -> Normaliser:
    match config.hint_norm:
        case HintNorm.MEAN:
            return TokenMean(over=hint_tokens)
        case HintNorm.SUM:
            return Constant(length=1)
        case _:
            assert_never(config.hint_norm)
