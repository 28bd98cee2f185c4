"""REINFORCE, with and without a baseline.

Williams, 1992, https://doi.org/10.1007/BF00992696 (survey Eq. 3-5); leave-one-out: Kool et al., 2019, and Ahmadian et
al., 2024, https://arxiv.org/abs/2402.14740

    A_i   = R_i                                  baseline none (Eq. 4)
    A_i   = R_i - mean R                         group_mean (Eq. 5)
    A_i   = R_i - mean of the others' R          leave_one_out; a group of one has A = R
    L     = - sum_t rho_t A_i                    over sampled tokens
    rho_t = pi_theta / pi_old                    pi_old as recorded when the token was sampled

At rho = 1, strictly on policy, the gradient is that of Eq. 4 and 5, - sum_t A_i grad log pi_theta; otherwise rho is the
importance ratio that makes it unbiased token by token. R_t is the reward of the whole response. The tokens of a hint
are context: no loss on them.

Departures: the sum is divided by sequences times the longest response (norm constant; others can be asked for), so the
learning rate does not depend on the batch. Demonstrations in a group are left out before the statistics.
"""

from __future__ import annotations

from functools import partial
from typing import assert_never

from common.config.algorithm import REINFORCE
from common.config.base import Baseline
from learner.advantages import Advantage, group_relative, leave_one_out, plain_reward
from learner.algorithms.policy_gradient import regularisers, unclipped_term
from learner.normalisers import normaliser
from learner.selectors import admitting, policy_tokens
from learner.terms import Algorithm


def reinforce(config: REINFORCE, *, longest_response: int) -> Algorithm:
    """Build REINFORCE as configured."""
    norm = normaliser(config.norm, over=policy_tokens, longest_response=longest_response)
    return Algorithm(
        config.kind,
        admits=admitting(config.accepts),
        advantage=_advantage(config),
        terms=(unclipped_term(config, norm), *regularisers(config, norm)),
        needs_reference=config.kl_coefficient > 0,
    )


def _advantage(config: REINFORCE) -> Advantage:
    match config.baseline:
        case Baseline.NONE:
            return plain_reward
        case Baseline.GROUP_MEAN:
            return partial(group_relative, divide_by_std=False, statistics=config.statistics)
        case Baseline.LEAVE_ONE_OUT:
            return partial(leave_one_out, statistics=config.statistics)
        case _:
            assert_never(config.baseline)
