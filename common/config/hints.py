"""The hint policies an operator may ask for: what of a demonstration the policy is shown, and who is shown it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from common.config.base import Frozen, Material


class Cut(StrEnum):
    """Where a demonstration may be cut: after any token, or only after a complete step or sentence."""

    TOKEN = "token"
    STEP = "step"
    SENTENCE = "sentence"


class HintUnit(StrEnum):
    """What UFT draws a number of: equal parts of the demonstration, or its tokens."""

    BUCKETS = "buckets"
    TOKENS = "tokens"


class HintDraw(StrEnum):
    """How UFT's number of units comes about while the schedule runs.

    binomial: Binomial(units, p). stage: it falls evenly from all of them to none. uniform: any number, equally often.
    """

    BINOMIAL = "binomial"
    STAGE = "stage"
    UNIFORM = "uniform"


class HintConfig(Frozen):
    """What all hint policies declare. suggestion: a valid beginning, for those whose kind alone is not one."""

    title: ClassVar[str]
    suggestion: ClassVar[dict[str, Any]] = {}

    @property
    def provides(self) -> frozenset[Material]:
        """The material that groups made under this policy hold beside plain rollouts."""
        return frozenset()


class NoHints(HintConfig):
    """Plain rollouts only."""

    title: ClassVar[str] = "No hints"

    kind: Literal["none"] = "none"


class WholeDemonstration(HintConfig):
    """Whole demonstrations join the rollouts of their prompt (LUFFY, SRFT, SFT)."""

    title: ClassVar[str] = "Whole demonstration"

    kind: Literal["demonstration"] = "demonstration"
    count: int = Field(default=1, ge=1, le=64, description="demonstrations per group, as far as the prompt has them")

    @property
    def provides(self) -> frozenset[Material]:
        """Demonstrations."""
        return frozenset({Material.DEMONSTRATIONS})


class IfUnsolved(HintConfig):
    """Whole demonstrations join a group only if (almost) all of its rollouts failed (ReLIFT, HPT)."""

    title: ClassVar[str] = "Demonstration if unsolved"

    kind: Literal["if_unsolved"] = "if_unsolved"
    gate: int = Field(default=0, ge=0, le=1024, description="they join where at most so many rollouts are right")
    count: int = Field(default=1, ge=1, le=64, description="demonstrations per group, as far as the prompt has them")

    @property
    def provides(self) -> frozenset[Material]:
        """Demonstrations."""
        return frozenset({Material.DEMONSTRATIONS})


class Hinting(HintConfig):
    """What the policies share that show a beginning of a demonstration."""

    @property
    def provides(self) -> frozenset[Material]:
        """Hints."""
        return frozenset({Material.HINTS})


class FixedHint(Hinting):
    """The policy continues the leading part of a demonstration: a ratio of it, or a number of tokens."""

    title: ClassVar[str] = "Fixed hint"
    suggestion: ClassVar[dict[str, Any]] = {"ratio": 0.5}

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


class ScheduledHint(Hinting):
    """What the policies share whose hints shrink with the learner's steps.

    The clock runs while the policy is in force. Another `steps` changes its pace and not its place; another `restart`
    sets it back to the beginning.
    """

    steps: int = Field(default=300, ge=1, le=10_000_000, description="T: learner steps that the schedule takes")
    restart: int = Field(default=0, ge=0, le=1_000_000, description="another number starts the schedule over")


class CosineBinomial(ScheduledHint):
    """Every rollout of a prompt continues one hint; its length is binomial, its mean falls as a cosine (UFT)."""

    title: ClassVar[str] = "Cosine binomial"

    kind: Literal["cosine_binomial"] = "cosine_binomial"
    p_high: float = Field(default=0.95, ge=0, le=1, description="p at the beginning")
    p_low: float = Field(default=0.05, ge=0, le=1, description="p at the end; after it there are no hints")
    unit: HintUnit = Field(
        default=HintUnit.BUCKETS, description="what is drawn: buckets of steps or sentences, or tokens"
    )
    buckets: int = Field(default=5, ge=1, le=1000, description="equal parts of a demonstration, at most")
    draw: HintDraw = Field(default=HintDraw.BINOMIAL, description="how the number of units comes about")
    cut: Cut = Field(default=Cut.SENTENCE, description="where the demonstration may be cut")

    @model_validator(mode="after")
    def _ordered(self) -> CosineBinomial:
        if self.p_low > self.p_high:
            raise ValueError(f"p_low ({self.p_low}) must not be above p_high ({self.p_high})")
        return self


class UniformDecay(ScheduledHint):
    """One rollout of a group continues a hint of uniform length, whose lower bound falls as a cosine (Prefix-RFT)."""

    title: ClassVar[str] = "Uniform decay"

    kind: Literal["uniform_decay"] = "uniform_decay"
    steps: int = Field(default=500, ge=1, le=10_000_000, description="T: learner steps that the schedule takes")
    low_start: float = Field(default=0.95, ge=0, le=1, description="lower bound of the share shown, at the beginning")
    low_end: float = Field(default=0.05, ge=0, le=1, description="lower bound of the share shown, from the end on")
    high: float = Field(default=0.95, ge=0, le=1, description="upper bound of the share shown")
    branches: int | None = Field(
        default=1, ge=1, le=1024, description="members that continue the hint; null: every sampled member"
    )
    cut: Cut = Field(default=Cut.TOKEN, description="where the demonstration may be cut (a hint never grows by it)")

    @model_validator(mode="after")
    def _ordered(self) -> UniformDecay:
        if not self.low_end <= self.low_start <= self.high:
            raise ValueError(
                f"low_end ({self.low_end}), low_start ({self.low_start}) and high ({self.high}) must not fall"
            )
        return self


class BranchOnFailure(Hinting):
    """Where a plain group fails wholly, a binary search for the hint from which some rollouts succeed (BREAD)."""

    title: ClassVar[str] = "Branch on failure"

    kind: Literal["branch_on_failure"] = "branch_on_failure"
    episodes: int = Field(default=10, ge=2, le=1000, description="K: equal parts of the demonstration, at most")
    probes: int = Field(default=4, ge=1, le=64, description="groups sampled in one search, at most")
    band_low: float = Field(
        default=0.0, ge=0, lt=1, description="a branch is taken where more than this share succeeds"
    )
    band_high: float = Field(
        default=1.0, gt=0, le=1, description="a branch is taken where less than this share succeeds"
    )
    always_branch: bool = Field(default=False, description="search at once, without a plain group first")
    cut: Cut = Field(default=Cut.SENTENCE, description="where the demonstration may be cut")

    @model_validator(mode="after")
    def _ordered(self) -> BranchOnFailure:
        if self.band_low >= self.band_high:
            raise ValueError(f"band_low ({self.band_low}) must be below band_high ({self.band_high})")
        return self

    def can_take(self, rollouts: int) -> bool:
        """Whether any share of so many rollouts lies inside the band. Of a single one, none or all is right."""
        return any(self.band_low < right / rollouts < self.band_high for right in range(rollouts + 1))


Hints = Annotated[
    NoHints | WholeDemonstration | IfUnsolved | FixedHint | CosineBinomial | UniformDecay | BranchOnFailure,
    Field(discriminator="kind"),
]
HINT_POLICIES: tuple[type[HintConfig], ...] = (
    NoHints,
    WholeDemonstration,
    IfUnsolved,
    FixedHint,
    CosineBinomial,
    UniformDecay,
    BranchOnFailure,
)
