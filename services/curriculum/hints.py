"""Hint policies at work: which members the group of a prompt gets, and how much of a demonstration they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from common.config.base import Material
from common.config.hints import Cut, FixedHint, NoHints, WholeDemonstration
from common.config.live import LiveConfig
from common.trajectory import Demonstration, GroupPlan


def plan_group(live: LiveConfig, demonstrations: Sequence[Demonstration]) -> GroupPlan | None:
    """The members of a group for a prompt with these demonstrations (possibly none).

    None if the group would be empty: an algorithm without rollouts passes over prompts without a demonstration.
    """
    rollouts = live.algorithm.rollouts
    hints = live.hints
    match hints:
        case NoHints():
            plan = GroupPlan(plain=rollouts)
        case WholeDemonstration():
            plan = GroupPlan(plain=rollouts, demonstrations=min(hints.count, len(demonstrations)))
        case FixedHint():
            length = hint_length(hints, demonstrations[0]) if demonstrations else 0
            branched = min(hints.branches or rollouts, rollouts) if length else 0
            whole = min(hints.demonstrations, len(demonstrations))
            plan = GroupPlan(rollouts - branched, branched, length, whole)
        case _:
            assert_never(hints)
    return plan if plan.plain + plan.branched + plan.demonstrations > 0 else None


def hint_length(hints: FixedHint, demonstration: Demonstration) -> int:
    """How many leading tokens of a demonstration are shown: never all of them, never more than asked for."""
    whole = len(demonstration.tokens)
    asked = hints.tokens if hints.tokens is not None else int((hints.ratio or 0.0) * whole)
    length = min(asked, whole - 1)
    if hints.cut is Cut.STEP:
        return max((b for b in demonstration.boundaries if b <= length), default=0)
    return length


def uses_demonstrations(live: LiveConfig) -> bool:
    """Whether groups need a demonstration's tokens, as a hint or whole."""
    return bool(live.hints.provides & {Material.HINTS, Material.DEMONSTRATIONS})
