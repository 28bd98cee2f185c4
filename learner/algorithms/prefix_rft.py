"""Prefix-RFT: blending supervised and reinforcement fine-tuning with prefix sampling.

Huang et al., 2025, https://arxiv.org/abs/2507.01679 (survey §6)

    A_i = R_i - mean R                           over the members of the group, the hinted one among them
    L   = - sum_t CLIP(rho_t, A_it)              t sampled by the policy, and t of a hint
    CLIP(rho, A) = min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), and not below dual_clip A where A < 0
    rho_t = pi_theta / pi_old                    where the policy sampled the token
    rho_t = pi_theta / sg(pi_theta)              on a hint: the policy's own ratio, not that to the expert
    A_it = 0                                     on a hint, but for its keep_share tokens of the highest entropy

divided by sequences times the longest response (Dr.GRPO). Hint tokens without an advantage stay in every denominator.
A step is one optimiser update, so on a hint rho is 1 and no clip acts there. Ranked is the entropy of this step's own
forward, within a trajectory (the earlier of two equal tokens is kept) or over the whole step (all that tie are kept).

Departures: the constant normaliser divides by sequences too, so the learning rate does not depend on the batch size.
Whole demonstrations in a group (made under another algorithm) are left out before the statistics.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from common.config.algorithm import PrefixRFT
from common.config.base import Selection
from learner.advantages import group_relative
from learner.algorithms.policy_gradient import regularisers, surrogate_term
from learner.emphasis import at_least, entropies, most_uncertain, threshold
from learner.losses import TokenWeight, is_weightless, surrogate, weighted
from learner.normalisers import Normaliser, normaliser
from learner.ratios import own_ratio
from learner.selectors import admitting, hint_tokens, response_tokens
from learner.terms import Algorithm, Survey, Term


def prefix_rft(config: PrefixRFT, *, longest_response: int) -> Algorithm:
    """Build Prefix-RFT as configured."""
    norm = normaliser(config.norm, over=response_tokens, longest_response=longest_response)
    within = partial(most_uncertain, over=hint_tokens, share=config.keep_share)
    algorithm = Algorithm(
        config.kind,
        admits=admitting(config.accepts),
        advantage=partial(group_relative, divide_by_std=config.divide_by_std, statistics=config.statistics),
        terms=(surrogate_term(config, norm), _prefix_term(within, norm), *regularisers(config, norm)),
        needs_reference=config.kl_coefficient > 0,
    )
    if config.selection is Selection.TRAJECTORY:
        return algorithm

    def settle(entropies_K: Tensor) -> Algorithm:
        over_all = partial(at_least, entropy=threshold(entropies_K, config.keep_share))
        policy, _, *others = algorithm.terms
        return replace(algorithm, terms=(policy, _prefix_term(over_all, norm), *others), survey=None)

    return replace(algorithm, survey=Survey(observe=partial(entropies, over=hint_tokens), settle=settle))


def _prefix_term(kept: TokenWeight, norm: Normaliser) -> Term:
    """What is learnt from the tokens of hints that `kept` is 1 on."""
    return Term(
        "prefix",
        on=hint_tokens,
        loss=partial(weighted, loss=partial(surrogate, ratio=own_ratio), weight=kept),
        norm=norm,
        clipped=partial(is_weightless, mark=None, weight=kept),
    )
