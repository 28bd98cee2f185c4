"""Hint policies at work: which members the group of a prompt gets, and how much of a demonstration they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from common.config.base import Material
from common.config.hints import (
    BranchOnFailure,
    CosineBinomial,
    Cut,
    FixedHint,
    Hints,
    IfUnsolved,
    NoHints,
    UniformDecay,
    WholeDemonstration,
)
from common.config.live import LiveConfig
from common.trajectory import AnchorSearch, Demonstration, GroupPlan
from services.curriculum.boundaries import places_to_cut, rounded_down
from services.curriculum.schedules import binomial_hint, lowest_share, probability, uniform_hint
from services.curriculum.searches import anchor_search

_OF_HINTS = 1  # keeps the draws of hints apart from those of the order of prompts, which have the same seed


@dataclass(frozen=True, slots=True)
class Occasion:
    """What a plan depends on besides prompt and configuration.

    phase: of the hint schedule. seed: the run's, and the number of the request: the same request is planned the same
    way again. anchor: the hint length that an earlier search of this prompt found.
    """

    phase: float = 0.0
    seed: tuple[int, int] = (0, 0)
    anchor: int | None = None

    @property
    def random(self) -> np.random.Generator:
        """The draws of this request."""
        return np.random.default_rng([*self.seed, _OF_HINTS])


@dataclass(frozen=True, slots=True)
class Planned:
    """What a request asks for: the members of its group, and the search that may replace them."""

    plan: GroupPlan
    search: AnchorSearch | None = None

    @property
    def demonstrations(self) -> int:
        """How many of the prompt's demonstrations a generator needs to carry it out."""
        shown = self.search is not None or self.plan.branched > 0
        return max(self.plan.demonstrations, int(shown))


def plan_group(live: LiveConfig, demonstrations: Sequence[Demonstration], occasion: Occasion) -> Planned | None:
    """The members of a group for a prompt with these demonstrations (possibly none).

    None if the group would be empty: an algorithm without rollouts passes over prompts without a demonstration.
    """
    rollouts, hints = live.algorithm.rollouts, live.hints
    match hints:
        case NoHints():
            planned = Planned(GroupPlan(rollouts))
        case WholeDemonstration():
            planned = Planned(GroupPlan(rollouts, demonstrations=min(hints.count, len(demonstrations))))
        case IfUnsolved():
            whole = min(hints.count, len(demonstrations))
            planned = Planned(GroupPlan(rollouts, demonstrations=whole, gate=hints.gate if whole else None))
        case FixedHint():
            whole = min(hints.demonstrations, len(demonstrations))
            planned = Planned(_branched(rollouts, hints.branches, _hint_length(hints, demonstrations, occasion), whole))
        case CosineBinomial():
            planned = Planned(_branched(rollouts, None, _hint_length(hints, demonstrations, occasion)))
        case UniformDecay():
            planned = Planned(_branched(rollouts, hints.branches, _hint_length(hints, demonstrations, occasion)))
        case BranchOnFailure():
            first = demonstrations[:1]
            found = [anchor_search(hints, shown, rollouts, occasion.anchor) for shown in first if rollouts]
            planned = Planned(GroupPlan(rollouts), found[0] if found else None)
        case _:
            assert_never(hints)
    plan = planned.plan
    return planned if plan.plain + plan.branched + plan.demonstrations > 0 else None


def _branched(rollouts: int, branches: int | None, length: int, whole: int = 0) -> GroupPlan:
    """A group of which `branches` rollouts (None: all) continue a hint, if there is any."""
    branched = min(branches or rollouts, rollouts) if length else 0
    return GroupPlan(rollouts - branched, branched, length if branched else 0, whole)


def _hint_length(
    hints: FixedHint | CosineBinomial | UniformDecay, demonstrations: Sequence[Demonstration], occasion: Occasion
) -> int:
    """How many leading tokens of the first demonstration are shown; 0 if there is none."""
    if not demonstrations:
        return 0
    shown = demonstrations[0]
    match hints:
        case FixedHint():
            return fixed_hint(hints, shown)
        case CosineBinomial():
            return binomial_hint(hints, shown, occasion.phase, occasion.random)
        case UniformDecay():
            return uniform_hint(hints, shown, occasion.phase, occasion.random)
        case _:
            assert_never(hints)


def fixed_hint(hints: FixedHint, demonstration: Demonstration) -> int:
    """A hint length: never all of the demonstration, never more than asked for."""
    asked = hints.tokens if hints.tokens is not None else int((hints.ratio or 0.0) * len(demonstration.tokens))
    return rounded_down(asked, demonstration, hints.cut)


def cut_of(hints: Hints) -> Cut:
    """Where a hint policy cuts; after steps if it shows no hints."""
    match hints:
        case FixedHint() | CosineBinomial() | UniformDecay() | BranchOnFailure():
            return hints.cut
        case NoHints() | WholeDemonstration() | IfUnsolved():
            return Cut.STEP
        case _:
            assert_never(hints)


def level(hints: Hints, phase: float) -> dict[str, float]:
    """What a schedule has come down to, under its name: p of UFT, low of Prefix-RFT; empty if there is none."""
    match hints:
        case CosineBinomial():
            return {"p": probability(hints, phase)}
        case UniformDecay():
            return {"low": lowest_share(hints, phase)}
        case _:
            return {}


def demonstrations_used(hints: Hints) -> int:
    """How many demonstrations of a prompt a group uses at most, as a hint or whole."""
    match hints:
        case NoHints():
            return 0
        case WholeDemonstration() | IfUnsolved():
            return hints.count
        case FixedHint():
            return max(1, hints.demonstrations)
        case CosineBinomial() | UniformDecay() | BranchOnFailure():
            return 1
        case _:
            assert_never(hints)


def cannot_be_cut(hints: Hints, demonstration: Demonstration) -> bool:
    """Whether a hint policy finds no place in a demonstration where its hint could end."""
    if not hints.provides & {Material.HINTS}:
        return False
    return not places_to_cut(demonstration, cut_of(hints))
