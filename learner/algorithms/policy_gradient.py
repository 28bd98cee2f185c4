"""What the policy-gradient pages share: the surrogate on sampled tokens, its corrections, and what keeps it in bounds.

    clipped      - min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A)             PPO, arXiv 1707.06347, Eq. 7
    unclipped    - rho_t A
    cispo        - sg(clip(rho_t, 1 - clip_low, 1 + clip_high)) A log pi_theta          arXiv 2506.13585, Eq. 4
    gspo         clipped, with rho = exp(mean_t log pi_theta / pi_old) of the sequence  arXiv 2507.18071, Eq. 5-7
                 and gspo_clip_low, gspo_clip_high
    dual clip    where A < 0 the surrogate is at most - c A                             arXiv 1912.09729
    corrections  rho = pi_theta / pi_prox, all of it times sg(w), w = pi_prox / pi_old  arXiv 2505.24298
    entropy      - entropy_bonus * H, a mean over the sampled tokens
    kl           kl_coefficient * (pi_ref / pi_theta - log pi_ref / pi_theta - 1)       arXiv 2402.03300, Eq. 4

A step is one optimiser update, so pi_prox, the policy at its start, is sg(pi_theta) of the same forward: with a
correction rho is one, no clip acts, and w carries all of the gap. With gspo w is the sequence's as rho is. A dual clip
bounds an unclipped ratio and the weight of cispo as well.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import assert_never

from common.config.algorithm import Corrections, PolicyGradient, Reinforcing
from common.config.base import Shaping, Surrogate
from learner.losses import (
    Clip,
    clipped_surrogate,
    divergence,
    is_bounded,
    is_clipped,
    is_weightless,
    negative_entropy,
    surrogate,
    weighted,
    weighted_logprob,
)
from learner.normalisers import Normaliser, TokenMean
from learner.ratios import (
    LogRatio,
    Shape,
    correction_weight,
    exponential,
    gamma_shaped,
    log_shaped,
    own_log_ratio,
    policy_log_ratio,
    power_shaped,
    sequence_log_ratio,
    sqrt_shaped,
    unshaped,
)
from learner.selectors import policy_tokens
from learner.terms import Term


def surrogate_term(config: PolicyGradient, norm: Normaliser) -> Term:
    """What the policy learns from the tokens that it sampled itself."""
    clip = Clip(config.clip_low, config.clip_high, config.dual_clip)
    of, gap = _followed(config.corrections), policy_log_ratio
    match config.surrogate:
        case Surrogate.CLIPPED:
            term = _clipped_term(clip, of, norm)
        case Surrogate.UNCLIPPED:
            term = _unclipped_term(config.dual_clip, of, norm)
        case Surrogate.CISPO:
            loss = partial(weighted_logprob, clip=clip, ratio=partial(exponential, of=of))
            term = Term("policy", on=policy_tokens, loss=loss, norm=norm)
        case Surrogate.GSPO:
            of, gap = (partial(sequence_log_ratio, of=each, over=policy_tokens) for each in (of, gap))
            term = _clipped_term(Clip(config.gspo_clip_low, config.gspo_clip_high, config.dual_clip), of, norm)
        case _:
            assert_never(config.surrogate)
    return corrected(term, config.corrections, gap)


def unclipped_term(config: Reinforcing, norm: Normaliser) -> Term:
    """Ratio times advantage on the tokens that the policy sampled itself."""
    return corrected(_unclipped_term(None, _followed(config.corrections), norm), config.corrections)


def corrected(term: Term, corrections: Corrections, gap: LogRatio = policy_log_ratio) -> Term:
    """`term` weighted by w = π_prox/π_old on policy tokens if a correction is on; `gap`: log w."""
    if not corrections.any:
        return term
    weight = partial(
        correction_weight,
        truncate_at=corrections.truncate_at,
        keep_low=corrections.keep_low,
        keep_high=corrections.keep_high,
        of=gap,
    )
    marked = partial(is_weightless, mark=term.clipped, weight=weight)
    return replace(term, loss=partial(weighted, loss=term.loss, weight=weight), clipped=marked)


def regularisers(config: Reinforcing, norm: Normaliser) -> tuple[Term, ...]:
    """The entropy bonus and the KL to the reference, on sampled tokens; nothing where a weight is zero.

    norm: the policy term's, which the KL shares. An algorithm with a KL term sets needs_reference.
    """
    entropy = Term(
        "entropy",
        on=policy_tokens,
        loss=negative_entropy,
        norm=TokenMean(over=policy_tokens),
        weight=config.entropy_bonus,
    )
    kl = Term("kl", on=policy_tokens, loss=divergence, norm=norm, weight=config.kl_coefficient)
    return tuple(term for term in (entropy, kl) if term.weight)


def shape_of(shaping: Shaping, *, gamma: float, exponent: float = 1.0) -> Shape:
    """The function of the importance ratio that a configuration names."""
    match shaping:
        case Shaping.GAMMA:
            return partial(gamma_shaped, gamma=gamma)
        case Shaping.NONE:
            return unshaped
        case Shaping.SQRT:
            return sqrt_shaped
        case Shaping.POWER:
            return partial(power_shaped, exponent=exponent)
        case Shaping.LOG:
            return log_shaped
        case _:
            assert_never(shaping)


def _followed(corrections: Corrections) -> LogRatio:
    """The logarithm of the ratio that the surrogate is about: π_θ/π_old, or with a correction π_θ/π_prox."""
    return own_log_ratio if corrections.any else policy_log_ratio


def _clipped_term(clip: Clip, of: LogRatio, norm: Normaliser) -> Term:
    ratio = partial(exponential, of=of)
    loss, mark = partial(clipped_surrogate, clip=clip, ratio=ratio), partial(is_clipped, clip=clip, ratio=ratio)
    return Term("policy", on=policy_tokens, loss=loss, norm=norm, clipped=mark)


def _unclipped_term(dual: float | None, of: LogRatio, norm: Normaliser) -> Term:
    ratio = partial(exponential, of=of)
    mark = None if dual is None else partial(is_bounded, ratio=ratio, dual=dual)
    return Term("policy", on=policy_tokens, loss=partial(surrogate, ratio=ratio, dual=dual), norm=norm, clipped=mark)
