"""Anchor searches: which hints a generator may probe where the bare prompt fails (BREAD, arXiv 2506.17211)."""

from __future__ import annotations

from collections.abc import Sequence

from common.config.hints import BranchOnFailure
from common.trajectory import AnchorSearch, Demonstration
from services.curriculum.boundaries import places_to_cut, portions


def anchor_search(
    hints: BranchOnFailure, demonstration: Demonstration, members: int, remembered: int | None
) -> AnchorSearch | None:
    """The search along a demonstration, from the remembered anchor if there is one; None if it cannot be cut."""
    cuts = portions(places_to_cut(demonstration, hints.cut), hints.episodes)
    if not cuts:
        return None
    return AnchorSearch(
        cuts=cuts,
        members=members,
        probes=hints.probes,
        above=hints.band_low,
        below=hints.band_high,
        always=hints.always_branch,
        anchor=_sensible(remembered, cuts, len(demonstration.tokens)),
    )


def _sensible(anchor: int | None, cuts: Sequence[int], whole: int) -> int | None:
    """The cut nearest to an anchor (the shorter of two), which may be from other cuts; None if it fits no longer."""
    if anchor is None or not 0 < anchor < whole:
        return None
    return min(cuts, key=lambda cut: (abs(cut - anchor), cut))
