"""Guards: what an operator wants done, without being asked, when a figure of the run leaves its range.

    {"name": "collapse", "watch": "effective_sample_size", "below": 0.3, "steps": 3, "action": {"kind": "rollback"}}

There are none by default. The control plane keeps watch over the record of every step; what a guard changes is a
revision of its own in the guard's name.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from common.config.base import Frozen


class Figure(StrEnum):
    """A figure of a step's record. The last three are told per source of tokens."""

    REWARD = "reward"
    ENTROPY = "entropy"
    LOSS = "loss"
    GRAD_NORM = "grad_norm"
    STALENESS = "staleness"
    EFFECTIVE_SAMPLE_SIZE = "effective_sample_size"
    RATIO = "ratio"
    CLIP_FRACTION = "clip_fraction"


PER_SOURCE = frozenset({Figure.EFFECTIVE_SAMPLE_SIZE, Figure.RATIO, Figure.CLIP_FRACTION})


class RollBack(Frozen):
    """Return to the newest configuration of an operator that was not in force yet since an operator's last change.

    The guards themselves stay as they are.
    """

    kind: Literal["rollback"] = "rollback"


class SetValues(Frozen):
    """Change the live configuration by a JSON merge patch (RFC 7396); it cannot change the guards."""

    kind: Literal["set"] = "set"
    patch: dict[str, Any] = Field(min_length=1, examples=[{"optimizer": {"learning_rate": 5e-7}}])

    @model_validator(mode="after")
    def _leaves_guards_alone(self) -> SetValues:
        if "guards" in self.patch:
            raise ValueError("a guard cannot change the guards: leave them out of its patch")
        return self


class PauseLearner(Frozen):
    """Pause the learner at the next step boundary and leave the rest to an operator."""

    kind: Literal["pause"] = "pause"


Action = Annotated[RollBack | SetValues | PauseLearner, Field(discriminator="kind")]


class Guard(Frozen):
    """Fires once when `watch` was out of range in `steps` successive steps under one revision.

    A guard that fired is spent until an operator makes another revision. A step without the figure (no such tokens)
    neither counts nor breaks the row.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$", description="unique; names its revisions' author")
    watch: Figure
    source: Literal["policy", "hint", "demonstration"] = Field(
        default="policy", description="whose tokens, for a figure that is told per source"
    )
    below: float | None = Field(default=None, description="out of range: less than this")
    above: float | None = Field(default=None, description="out of range: more than this")
    steps: int = Field(default=3, ge=1, le=1000, description="successive steps out of range until it fires")
    action: Action

    @model_validator(mode="after")
    def _has_one_bound(self) -> Guard:
        if (self.below is None) == (self.above is None):
            raise ValueError(f'guard "{self.name}" needs one bound: set either below or above')
        return self

    def is_out(self, value: float) -> bool:
        """Whether a figure of this value is out of range."""
        return value < self.below if self.below is not None else value > (self.above or 0.0)
