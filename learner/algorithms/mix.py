"""Naive mix and mix: demonstrations beside rollouts under one clipped surrogate. Ablations on the way to LUFFY.

Survey Eq. 8 (naive_mix) and Eq. 9-10 (mix).

    A_i   = (R_i - mean R) / (std R + 1e-6)      over rollouts *and* demonstrations of the prompt
    L     = - 1/Z [ sum_expert CLIP(rho_t, A_i) + sum_policy CLIP(rho_t, A_i) ]
    CLIP(rho, A) = min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)
    rho_t = pi_theta / pi_old                    t sampled by the policy, pi_old as recorded then
    rho_t = pi_theta / sg(pi_theta)              t written by the expert, naive_mix: the wrong denominator
    rho_t = pi_theta / pi_phi                    t written by the expert, mix: the right one

Z is the number of all response tokens (norm token_mean). An unknown pi_phi is taken to be one. The tokens of a hint are
the expert's as well. naive_mix divides by the learner's own old policy, recomputed: with one update per step it is the
policy itself, so that rho is one, the gradient - A grad log pi_theta, and no expert token is ever clipped. In mix an
expert token with A < 0 has no gradient below 1 - clip_low.

Departures: `surrogate` chooses the objective of sampled tokens only; expert tokens have CLIP whatever it is, and no
correction. With another norm both sums share that one instead of Z.
"""

from __future__ import annotations

from functools import partial

from common.config.algorithm import Mix, NaiveMix
from learner.advantages import group_relative
from learner.algorithms.policy_gradient import regularisers, surrogate_term
from learner.losses import Clip, clipped_surrogate, is_clipped
from learner.normalisers import normaliser
from learner.ratios import Ratio, expert_ratio, own_ratio
from learner.selectors import admitting, expert_tokens, response_tokens
from learner.terms import Algorithm, Term


def naive_mix(config: NaiveMix, *, longest_response: int) -> Algorithm:
    """Build the naive mix as configured."""
    return _mixed(config, own_ratio, longest_response)


def mix(config: Mix, *, longest_response: int) -> Algorithm:
    """Build the mix as configured."""
    return _mixed(config, expert_ratio, longest_response)


def _mixed(config: NaiveMix | Mix, ratio: Ratio, longest_response: int) -> Algorithm:
    norm = normaliser(config.norm, over=response_tokens, longest_response=longest_response)
    clip = Clip(config.clip_low, config.clip_high, config.dual_clip)
    loss, clipped = partial(clipped_surrogate, clip=clip, ratio=ratio), partial(is_clipped, clip=clip, ratio=ratio)
    imitate = Term("expert", on=expert_tokens, loss=loss, norm=norm, clipped=clipped)
    return Algorithm(
        config.kind,
        admits=admitting(config.accepts),
        advantage=partial(group_relative, divide_by_std=config.divide_by_std, statistics=config.statistics),
        terms=(surrogate_term(config, norm), imitate, *regularisers(config, norm)),
        needs_reference=config.kl_coefficient > 0,
    )
