"""LUFFY: learning to reason under off-policy guidance.

Yan et al., 2025, https://arxiv.org/abs/2504.14945 (survey Eq. 9-10 and §4.3)

    A_i      = R_i - mean R                      over rollouts *and* demonstrations of the prompt
    L_policy = - sum_t rho_t A_i                 rho_t = pi_theta / pi_old, t sampled by the policy
    L_expert = - sum_t f(rho_t) A_i              rho_t = pi_theta / pi_phi, t written by the expert
    f(x)     = x / (x + gamma)                   other shapings: x, sqrt x, x^exponent, log x

Both sums share one normaliser; with norm token_mean it is Z, the number of all response tokens. An unknown pi_phi is
taken to be one. f keeps the gradient alive where the policy finds the expert unlikely: its weight on grad log pi is
gamma x / (x + gamma)^2, largest at x = gamma. The expert's ratio is never clipped: with A < 0 a clip around f would
kill the gradient of every token below p = 0.4. ratio_min and ratio_max clamp x before f is taken. The tokens of a hint
are the expert's as well.

`luffy` is what the authors ran, `luffy_paper` what they wrote: L_policy clipped, norm token_mean, entropy bonus 0.01.

Departures: the constant normaliser divides by sequences too, so the learning rate does not depend on the batch size.
The entropy bonus is a mean over the sampled tokens of the whole step, not a mean of micro-batch means.
"""

from __future__ import annotations

from functools import partial

from common.config.algorithm import LUFFY
from learner.advantages import Advantage, group_relative, sparing_failed_groups
from learner.algorithms.policy_gradient import regularisers, shape_of, surrogate_term
from learner.losses import is_clamped, shaped_surrogate
from learner.normalisers import Normaliser, normaliser
from learner.ratios import clamped
from learner.selectors import admitting, expert_tokens, response_tokens
from learner.terms import Algorithm, Term


def luffy(config: LUFFY, *, longest_response: int) -> Algorithm:
    """Build LUFFY as configured."""
    norm = normaliser(config.norm, over=response_tokens, longest_response=longest_response)
    return Algorithm(
        config.kind,
        admits=admitting(config.accepts),
        advantage=_advantage(config),
        terms=(surrogate_term(config, norm), _imitate(config, norm), *regularisers(config, norm)),
        needs_reference=config.kl_coefficient > 0,
    )


def _advantage(config: LUFFY) -> Advantage:
    relative = partial(group_relative, divide_by_std=config.divide_by_std, statistics=config.statistics)
    return relative if config.negatives_in_failed_groups else partial(sparing_failed_groups, advantage=relative)


def _imitate(config: LUFFY, norm: Normaliser) -> Term:
    shape = shape_of(config.shaping, gamma=config.gamma, exponent=config.exponent)
    bounds = {"low": config.ratio_min, "high": config.ratio_max}
    loss = partial(shaped_surrogate, shape=partial(clamped, shape=shape, **bounds))
    return Term("expert", on=expert_tokens, loss=loss, norm=norm, clipped=partial(is_clamped, **bounds))
