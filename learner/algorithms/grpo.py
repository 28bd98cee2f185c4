"""GRPO: group-relative policy optimisation. Dr.GRPO and DAPO are the same page with other defaults.

Shao et al., 2024, https://arxiv.org/abs/2402.03300 (survey Eq. 6-7); Dr.GRPO: Liu et al., 2025,
https://arxiv.org/abs/2503.20783; DAPO: Yu et al., 2025, https://arxiv.org/abs/2503.14476

    A_i   = (R_i - mean R) / (std R + 1e-6)      over the members of the group; Dr.GRPO: R_i - mean R
    L     = - sum_t min(rho_t A_i, clip(rho_t, 1 - clip_low, 1 + clip_high) A_i)
    rho_t = pi_theta / pi_old                    pi_old as recorded when the token was sampled

divided per sequence by its length and then by the number of sequences (Eq. 7); Dr.GRPO: by sequences times the longest
response; DAPO: by the number of sampled tokens, with clip_high 0.28. Where a rollout continues a hint, the hint is
context: no loss on it, and no part of the length. DAPO further leaves out groups whose rollouts all earned the same,
and lowers a reward by up to 1 over the last `overlong_buffer` share of the longest response (its Eq. 13):

    R_i  += max(-1, min(0, (L_max - L_buffer - |y_i|) / L_buffer))

Departures: the std is the unbiased one, and it is not divided by where all counted rewards are equal. Demonstrations in
a group (made under another algorithm, before a switch) are left out before the statistics. No KL term unless asked for.
DAPO: a step is not filled up with other groups for those left out, it is smaller; what a group earned is compared
before the penalty, a single rollout is never flat, and |y_i| includes a hint.
"""

from __future__ import annotations

from functools import partial

from common.config.algorithm import GRPO
from learner.advantages import Advantage, group_relative, softly_overlong
from learner.algorithms.policy_gradient import regularisers, surrogate_term
from learner.normalisers import normaliser
from learner.selectors import admitting, dropping_flat_groups, policy_tokens
from learner.terms import Algorithm


def grpo(config: GRPO, *, longest_response: int) -> Algorithm:
    """Build GRPO, or a preset of it, as configured."""
    norm = normaliser(config.norm, over=policy_tokens, longest_response=longest_response)
    admits = admitting(config.accepts)
    return Algorithm(
        config.kind,
        admits=partial(dropping_flat_groups, admits=admits) if config.drop_flat_groups else admits,
        advantage=_advantage(config, longest_response),
        terms=(surrogate_term(config, norm), *regularisers(config, norm)),
        needs_reference=config.kl_coefficient > 0,
    )


def _advantage(config: GRPO, longest_response: int) -> Advantage:
    relative = partial(group_relative, divide_by_std=config.divide_by_std, statistics=config.statistics)
    if config.overlong_buffer == 0:
        return relative
    return partial(softly_overlong, advantage=relative, longest=longest_response, buffer=config.overlong_buffer)
