"""What every part of the live configuration shares: frozen, strict about unknown keys, readable without torch."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Material(StrEnum):
    """What a group can hold beside plain rollouts."""

    HINTS = "hints"
    DEMONSTRATIONS = "demonstrations"


class Norm(StrEnum):
    """What a term's sum is divided by, counted over the whole step (methods §0.2).

    token_mean: the term's tokens. sequence_mean: a mean per sequence, then over the sequences. constant: sequences
    times the longest allowed response (Dr.GRPO).
    """

    TOKEN_MEAN = "token_mean"
    SEQUENCE_MEAN = "sequence_mean"
    CONSTANT = "constant"


class Statistics(StrEnum):
    """Whose rewards make a group's mean and standard deviation: every member's, or the plain rollouts' only."""

    JOINT = "joint"
    POLICY_ONLY = "policy_only"


class Baseline(StrEnum):
    """What REINFORCE takes off a reward: nothing, the mean of the group, or the mean of the others (RLOO)."""

    NONE = "none"
    GROUP_MEAN = "group_mean"
    LEAVE_ONE_OUT = "leave_one_out"


class Surrogate(StrEnum):
    """The policy-gradient objective on sampled tokens.

    clipped: min(rA, clip(r)A). unclipped: rA. cispo: sg(clip(r)) A log π_θ. gspo: clipped, with one ratio per
    sequence, exp(mean log r).
    """

    CLIPPED = "clipped"
    UNCLIPPED = "unclipped"
    CISPO = "cispo"
    GSPO = "gspo"


class Shaping(StrEnum):
    """What is done to the importance ratio of an expert token before it multiplies the advantage.

    gamma: x/(x+γ). none: x. sqrt: √x. power: x^exponent. log: log x.
    """

    GAMMA = "gamma"
    NONE = "none"
    SQRT = "sqrt"
    POWER = "power"
    LOG = "log"


class HintNorm(StrEnum):
    """How UFT adds up the loss on hint tokens: their mean over the step, or their sum per sequence (Eq. 15)."""

    MEAN = "mean"
    SUM = "sum"


class Selection(StrEnum):
    """Within what Prefix-RFT ranks the tokens of hints by entropy: one trajectory, or the whole step."""

    TRAJECTORY = "trajectory"
    BATCH = "batch"


class EntropyScope(StrEnum):
    """Over what SRFT averages the entropy of its weights: a sequence, no more than a token, or the whole step."""

    SEQUENCE = "sequence"
    TOKEN = "token"
    BATCH = "batch"


class SelfReward(StrEnum):
    """What SRFT's own rollouts are weighted with: ±1 times log π_θ (the paper), or advantage times ratio (the code)."""

    PM1 = "pm1"
    ADVANTAGE = "advantage"
