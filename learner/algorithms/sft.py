"""SFT: supervised fine-tuning on demonstrations.

Survey Eq. 1-2.

    L = - sum_t log pi_theta(y_t | x, y_<t)      over the tokens of demonstrations, divided by their number

Departures: none. (Eq. 1 as printed conditions on y_<=t; its gradient, Eq. 2, has the y_<t that is meant.) Rollouts of
the group are left out: they are neither trained on nor forwarded.
"""

from __future__ import annotations

from common.config.algorithm import SFT
from learner.advantages import unit
from learner.losses import negative_logprob
from learner.normalisers import normaliser
from learner.selectors import demonstration_tokens, demonstrations_only
from learner.terms import Algorithm, Term


def sft(config: SFT, *, longest_response: int) -> Algorithm:
    """Build SFT as configured."""
    norm = normaliser(config.norm, over=demonstration_tokens, longest_response=longest_response)
    imitate = Term("imitation", on=demonstration_tokens, loss=negative_logprob, norm=norm)
    return Algorithm(config.kind, admits=demonstrations_only, advantage=unit, terms=(imitate,))
