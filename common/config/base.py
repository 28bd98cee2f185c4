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


class Surrogate(StrEnum):
    """The policy-gradient objective on sampled tokens."""

    CLIPPED = "clipped"
    UNCLIPPED = "unclipped"


class Shaping(StrEnum):
    """What is done to the importance ratio of an expert token before it multiplies the advantage.

    gamma: x/(x+γ). none: x. sqrt: √x. log: log(1+x).
    """

    GAMMA = "gamma"
    NONE = "none"
    SQRT = "sqrt"
    LOG = "log"
