"""The search for an anchor, every turn of it worked by hand on scripted shares of success."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from common.trajectory import AnchorSearch, Finish, Trajectory
from services.generator.search import Findings, SearchResult, find_anchor, usable_cuts

TEN = tuple(range(10, 110, 10))
SEARCH = AnchorSearch(cuts=TEN, members=4, probes=4, above=0.0, below=1.0)


def rollouts(right: int, count: int = 4) -> list[Trajectory]:
    empty = np.zeros(0, np.float32)
    return [
        Trajectory(empty.astype(np.int32), empty.astype(np.uint8), empty, float(member < right), Finish.STOP)
        for member in range(count)
    ]


async def searched(search: AnchorSearch, rights: dict[int, int]) -> tuple[list[int], Findings]:
    """The hint lengths probed, and what was found. rights: hint length → how many of four rollouts succeed."""
    probed: list[int] = []

    async def sample(hint_length: int) -> list[Trajectory]:
        probed.append(hint_length)
        return rollouts(rights[hint_length], search.members)

    return probed, await find_anchor(search, search.cuts, sample)


async def test_the_middle_cut_comes_first_and_is_taken_if_some_succeed_and_some_fail() -> None:
    probed, found = await searched(SEARCH, {50: 1})
    assert probed == [50]
    assert (found.result, found.probes[-1].hint_length, found.probes[-1].share) == (SearchResult.TAKEN, 50, 0.25)


async def test_the_hint_grows_where_all_fail_and_shrinks_where_all_succeed() -> None:
    # Ten cuts, 0..9: middle of (-1, 10) is 4; all fail: (4, 10) → 7; all succeed: (4, 7) → 5; all fail: (5, 7) → 6.
    probed, found = await searched(SEARCH, {50: 0, 80: 4, 60: 0, 70: 2})
    assert probed == [50, 80, 60, 70]
    assert (found.result, found.probes[-1].hint_length) == (SearchResult.TAKEN, 70)


async def test_nothing_is_taken_when_the_probes_are_used_up() -> None:
    probed, found = await searched(replace(SEARCH, probes=2), {50: 0, 80: 0})
    assert probed == [50, 80]
    assert found.result is SearchResult.EXHAUSTED


async def test_nothing_is_taken_when_no_cut_is_left_between_failure_and_success() -> None:
    probed, found = await searched(replace(SEARCH, cuts=(10, 20, 30)), {20: 0, 30: 4})
    assert probed == [20, 30], "between 20, where all fail, and 30, where all succeed, lies no cut"
    assert found.result is SearchResult.EXHAUSTED


async def test_success_everywhere_leads_to_the_shortest_cut_and_failure_everywhere_to_the_longest() -> None:
    three = replace(SEARCH, cuts=(10, 20, 30))
    assert (await searched(three, {20: 4, 10: 4}))[0] == [20, 10]
    assert (await searched(three, {20: 0, 30: 0}))[0] == [20, 30]


@pytest.mark.parametrize(
    ("anchor", "first"), [(80, 80), (84, 80), (86, 90), (85, 80), (1, 10), (10_000, 100), (None, 50)]
)
async def test_a_remembered_anchor_is_tried_first_at_the_nearest_cut(anchor: int | None, first: int) -> None:
    probed, _ = await searched(replace(SEARCH, anchor=anchor), {first: 2})
    assert probed == [first]


async def test_after_a_remembered_anchor_the_search_goes_on_by_halves() -> None:
    # Index 7 first; all succeed: (-1, 7) → 3; all fail: (3, 7) → 5.
    probed, found = await searched(replace(SEARCH, anchor=80), {80: 4, 40: 0, 60: 3})
    assert probed == [80, 40, 60]
    assert found.result is SearchResult.TAKEN


@pytest.mark.parametrize(("right", "probed"), [(1, [50, 80]), (2, [50]), (3, [50, 20])])
async def test_the_band_is_open_at_both_ends(right: int, probed: list[int]) -> None:
    search = replace(SEARCH, above=0.25, below=0.75)
    assert (await searched(search, {50: right, 80: 2, 20: 2}))[0] == probed


async def test_one_cut_is_probed_once() -> None:
    probed, found = await searched(replace(SEARCH, cuts=(10,)), {10: 0})
    assert (probed, found.result) == ([10], SearchResult.EXHAUSTED)


async def test_without_a_cut_there_is_nothing_to_probe() -> None:
    for anchor in (None, 10):
        probed, found = await searched(replace(SEARCH, cuts=(), anchor=anchor), {})
        assert (probed, found.result) == ([], SearchResult.UNUSABLE)


def test_a_cut_that_leaves_nothing_to_sample_is_passed_over() -> None:
    assert usable_cuts(SEARCH, 40) == [10, 20, 30]
    assert usable_cuts(SEARCH, 10) == []
