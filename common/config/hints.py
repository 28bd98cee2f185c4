"""The hint policies an operator may ask for: what of a demonstration the policy is shown, and who is shown it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from common.config.base import Frozen, Material


class Cut(StrEnum):
    """Where a demonstration may be cut: after any token, or only after a complete step."""

    TOKEN = "token"
    STEP = "step"


class HintConfig(Frozen):
    """What all hint policies declare."""

    title: ClassVar[str]

    @property
    def provides(self) -> frozenset[Material]:
        """The material that groups made under this policy hold beside plain rollouts."""
        return frozenset()


class NoHints(HintConfig):
    """Plain rollouts only."""

    title: ClassVar[str] = "No hints"

    kind: Literal["none"] = "none"


class WholeDemonstration(HintConfig):
    """Whole demonstrations join the rollouts of their prompt (LUFFY, SFT)."""

    title: ClassVar[str] = "Whole demonstration"

    kind: Literal["demonstration"] = "demonstration"
    count: int = Field(default=1, ge=1, le=64, description="demonstrations per group, as far as the prompt has them")

    @property
    def provides(self) -> frozenset[Material]:
        """Demonstrations."""
        return frozenset({Material.DEMONSTRATIONS})


class FixedHint(HintConfig):
    """The policy continues the leading part of a demonstration: a ratio of it, or a number of tokens."""

    title: ClassVar[str] = "Fixed hint"

    kind: Literal["fixed"] = "fixed"
    ratio: float | None = Field(default=None, ge=0, lt=1, description="share of the demonstration that is shown")
    tokens: int | None = Field(default=None, ge=0, description="leading tokens of the demonstration that are shown")
    branches: int | None = Field(
        default=None, ge=1, le=1024, description="members that continue the hint; null: every sampled member"
    )
    cut: Cut = Field(default=Cut.TOKEN, description="where the demonstration may be cut (a hint never grows by it)")
    demonstrations: int = Field(default=0, ge=0, le=64, description="whole demonstrations that join the group as well")

    @model_validator(mode="after")
    def _one_unit(self) -> FixedHint:
        if (self.ratio is None) == (self.tokens is None):
            raise ValueError('give either "ratio" or "tokens" (the other must be null)')
        return self

    @property
    def provides(self) -> frozenset[Material]:
        """Hints, and demonstrations if any join the group."""
        whole = {Material.DEMONSTRATIONS} if self.demonstrations else set[Material]()
        return frozenset({Material.HINTS} | whole)


Hints = Annotated[NoHints | WholeDemonstration | FixedHint, Field(discriminator="kind")]
HINT_POLICIES: tuple[type[HintConfig], ...] = (NoHints, WholeDemonstration, FixedHint)

REMEDIES: dict[Material, str] = {
    Material.DEMONSTRATIONS: '{"hints": {"kind": "demonstration"}}',
    Material.HINTS: '{"hints": {"kind": "fixed", "ratio": 0.5}}',
}
