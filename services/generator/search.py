"""The search for an anchor: how much of a demonstration must be shown so that some rollouts succeed and some fail.

BREAD, arXiv 2506.17211, §6.1: a binary search over the places where the demonstration may be cut. From a hint that is
too short every rollout fails, from one that is too long every rollout succeeds; in neither case does the group say
anything about the policy. Each probe is a whole group of rollouts, so few are allowed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from common.trajectory import AnchorSearch, Trajectory


class SearchResult(StrEnum):
    """How a search ended.

    unneeded: a plain rollout was right. taken: a probe was taken. exhausted: no probe was. unusable: there was no cut
    that leaves anything to sample.
    """

    UNNEEDED = "unneeded"
    TAKEN = "taken"
    EXHAUSTED = "exhausted"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Probe:
    """A group of rollouts that continue the same hint."""

    hint_length: int
    rollouts: tuple[Trajectory, ...]

    @property
    def share(self) -> float:
        """The share of them that is right."""
        return sum(rollout.is_right for rollout in self.rollouts) / len(self.rollouts)


@dataclass(frozen=True, slots=True)
class Findings:
    """Every probe of a search, in order. taken: whether the last one is the group that was looked for."""

    probes: tuple[Probe, ...]
    taken: bool

    @property
    def result(self) -> SearchResult:
        """How the search ended."""
        if not self.probes:
            return SearchResult.UNUSABLE
        return SearchResult.TAKEN if self.taken else SearchResult.EXHAUSTED


def usable_cuts(search: AnchorSearch, max_tokens: int) -> list[int]:
    """The cuts after which something can still be sampled: hint and continuation share `max_tokens`."""
    return [cut for cut in search.cuts if cut < max_tokens]


async def find_anchor(
    search: AnchorSearch, cuts: Sequence[int], sample: Callable[[int], Awaitable[Sequence[Trajectory]]]
) -> Findings:
    """Search `cuts` (ascending). sample(hint length) gives the rollouts of one probe.

    The bare prompt stands for a cut at which all fail, the whole demonstration for one at which all succeed.
    """
    all_fail, all_succeed = -1, len(cuts)
    probes: list[Probe] = []
    at = _beginning(cuts, search.anchor)
    while all_fail < at < all_succeed and len(probes) < search.probes:
        probe = Probe(cuts[at], tuple(await sample(cuts[at])))
        probes.append(probe)
        if probe.share <= search.above:
            all_fail = at
        elif probe.share >= search.below:
            all_succeed = at
        else:
            return Findings(tuple(probes), taken=True)
        at = _middle(all_fail, all_succeed)
    return Findings(tuple(probes), taken=False)


def _beginning(cuts: Sequence[int], anchor: int | None) -> int:
    """The index of the cut to try first: the one nearest to the remembered anchor, or else the middle."""
    if anchor is None or not cuts:
        return _middle(-1, len(cuts))
    return min(range(len(cuts)), key=lambda index: abs(cuts[index] - anchor))


def _middle(low: int, high: int) -> int:
    """Half way between two indices; `low` itself where nothing lies between."""
    return (low + high) // 2
