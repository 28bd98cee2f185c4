"""The terms that the policy-gradient pages share: the surrogate on sampled tokens, and the entropy bonus."""

from __future__ import annotations

from functools import partial
from typing import assert_never

from common.config.algorithm import PolicyGradient
from common.config.base import Surrogate
from learner.losses import clipped_surrogate, is_clipped, negative_entropy, surrogate
from learner.normalisers import Normaliser, TokenMean
from learner.selectors import policy_tokens
from learner.terms import Term


def surrogate_term(config: PolicyGradient, norm: Normaliser) -> Term:
    """What the policy learns from the tokens that it sampled itself."""
    match config.surrogate:
        case Surrogate.CLIPPED:
            clip = {"clip_low": config.clip_low, "clip_high": config.clip_high}
            loss, clipped = partial(clipped_surrogate, **clip), partial(is_clipped, **clip)
            return Term("policy", on=policy_tokens, loss=loss, norm=norm, clipped=clipped)
        case Surrogate.UNCLIPPED:
            return Term("policy", on=policy_tokens, loss=surrogate, norm=norm)
        case _:
            assert_never(config.surrogate)


def entropy_terms(config: PolicyGradient) -> tuple[Term, ...]:
    """The entropy bonus, a mean over sampled tokens; nothing when its weight is zero."""
    if config.entropy_bonus == 0:
        return ()
    norm = TokenMean(over=policy_tokens)
    return (Term("entropy", on=policy_tokens, loss=negative_entropy, norm=norm, weight=config.entropy_bonus),)
