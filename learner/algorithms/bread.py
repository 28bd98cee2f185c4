"""BREAD: branched rollouts from expert anchors.

Zhang et al., 2025, https://arxiv.org/abs/2506.17211 (survey §6.1-6.2)

    A_i   = (R_i - mean R) / (std R + 1e-6)      over the group: the plain one, or the one branched from the anchor
    L     = - sum_t min(rho_t A_i, clip(rho_t, 1 - clip_low, 1 + clip_high) A_i)      t sampled by the policy
    rho_t = pi_theta / pi_old                    pi_old as recorded when the token was sampled

divided per sequence by what it sampled and then by the number of sequences: plain GRPO. The expert's prefix up to the
anchor is context: no loss on it, and no part of the length. What makes it BREAD is where the groups come from: a prompt
whose plain rollouts all fail is branched from an anchor that a binary search finds (hint policy branch_on_failure).

Departures: the std is the unbiased one, and it is not divided by where all counted rewards are equal. No KL term unless
asked for.
"""

from __future__ import annotations

from functools import partial

from common.config.algorithm import BREAD
from learner.advantages import group_relative
from learner.algorithms.policy_gradient import regularisers, surrogate_term
from learner.normalisers import normaliser
from learner.selectors import admitting, policy_tokens
from learner.terms import Algorithm


def bread(config: BREAD, *, longest_response: int) -> Algorithm:
    """Build BREAD as configured."""
    norm = normaliser(config.norm, over=policy_tokens, longest_response=longest_response)
    return Algorithm(
        config.kind,
        admits=admitting(config.accepts),
        advantage=partial(group_relative, divide_by_std=config.divide_by_std, statistics=config.statistics),
        terms=(surrogate_term(config, norm), *regularisers(config, norm)),
        needs_reference=config.kl_coefficient > 0,
    )
