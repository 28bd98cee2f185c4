"""Schedules of the learning rate: how it goes on once the warm-up is over. Counted in optimiser updates of the run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from common.config.base import Frozen


class ConstantRate(Frozen):
    """The rate stays."""

    kind: Literal["constant"] = "constant"


class Decay(Frozen):
    """The rate falls from its full value to a share of it, and stays there.

    It begins where the warm-up ends, or later if `after` says so: set to the update that a run has reached, `after`
    lets a decay begin in the middle of it.
    """

    steps: int = Field(default=1000, ge=1, le=10_000_000, description="optimiser updates that the decay takes")
    final_ratio: float = Field(
        default=0.0, ge=0, le=1, description="share of the learning rate that is left at its end"
    )
    after: int = Field(
        default=0, ge=0, le=10_000_000, description="optimiser updates before it begins; never before the warm-up ends"
    )


class LinearDecay(Decay):
    """The rate falls along a line."""

    kind: Literal["linear"] = "linear"


class CosineDecay(Decay):
    """The rate falls along half a cosine: slowly, fast, slowly."""

    kind: Literal["cosine"] = "cosine"


Schedule = Annotated[ConstantRate | LinearDecay | CosineDecay, Field(discriminator="kind")]
