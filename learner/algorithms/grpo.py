"""GRPO: group-relative policy optimisation. Dr.GRPO is the same page with other defaults.

Shao et al., 2024, https://arxiv.org/abs/2402.03300 (survey Eq. 6-7); Liu et al., 2025, https://arxiv.org/abs/2503.20783

    A_i = (R_i - mean R) / (std R + 1e-6)        over the members of the group; Dr.GRPO: R_i - mean R
    L   = - sum_t min(rho_t A_i, clip(rho_t, 1 - clip_low, 1 + clip_high) A_i)
    rho_t = pi_theta / pi_old                    pi_old as recorded when the token was sampled

divided per sequence by its length and then by the number of sequences (Eq. 7); Dr.GRPO: by sequences times the longest
response. Where a rollout continues a hint, the hint is context: no loss on it, and no part of the length.

Departures: the std is the unbiased one, and it is not divided by where all counted rewards are equal. Demonstrations in
a group (made under another algorithm, before a switch) are left out before the statistics. No KL term.
"""

from __future__ import annotations

from functools import partial

from common.config.algorithm import GRPO, DrGRPO
from learner.advantages import group_relative
from learner.algorithms.policy_gradient import entropy_terms, surrogate_term
from learner.normalisers import normaliser
from learner.selectors import admitting, policy_tokens
from learner.terms import Algorithm


def grpo(config: GRPO | DrGRPO, *, longest_response: int) -> Algorithm:
    """Build GRPO or Dr.GRPO as configured."""
    norm = normaliser(config.norm, over=policy_tokens, longest_response=longest_response)
    return Algorithm(
        config.kind,
        admits=admitting(config.accepts),
        advantage=partial(group_relative, divide_by_std=config.divide_by_std, statistics=config.statistics),
        terms=(surrogate_term(config, norm), *entropy_terms(config)),
    )
