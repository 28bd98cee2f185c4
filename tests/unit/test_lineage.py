"""Staleness by history, not by version numbers."""

from __future__ import annotations

from learner.lineage import Lineage


def published(*versions_and_steps: tuple[int, int]) -> Lineage:
    lineage = Lineage()
    for version, step in versions_and_steps:
        lineage.publish(version, step)
    return lineage


def test_without_restarts_staleness_is_the_difference_of_versions() -> None:
    lineage = published((1, 1), (2, 2), (3, 3))
    assert [lineage.staleness(version) for version in (0, 1, 2, 3)] == [3, 2, 1, 0]


def test_steps_between_two_publications_do_not_count() -> None:
    lineage = published((1, 5), (2, 10))
    assert [lineage.staleness(version) for version in (0, 1, 2)] == [2, 1, 0]


def test_a_restart_does_not_age_what_was_sampled_before_it() -> None:
    before = published(*((n, n) for n in range(1, 5)))
    resumed = Lineage(before.step_of, before.published)  # the checkpoint of step 4
    for lost in (5, 6):  # announced, and lost with the learner
        resumed.note(lost, lost)
    resumed.note(7, 4)  # the restored weights under a new number
    assert [resumed.staleness(version) for version in (3, 4, 5, 6, 7)] == [1, 0, 0, 0, 0]
    for version, step in ((8, 5), (9, 6), (10, 7)):
        resumed.publish(version, step)
    uninterrupted = published(*((n, n) for n in range(1, 8)))
    assert [resumed.staleness(v) for v in range(7)] == [uninterrupted.staleness(v) for v in range(7)]
    assert [resumed.staleness(version) for version in (7, 8, 10)] == [3, 2, 0]


def test_an_unknown_version_counts_as_the_next_older_one() -> None:
    lineage = Lineage({4: 40, 8: 80}, (40, 80))
    assert lineage.staleness(6) == lineage.staleness(4) == 1
    assert lineage.staleness(99) == 0


def test_what_it_remembers_is_bounded() -> None:
    lineage = published(*((n, n) for n in range(1, 5000)))
    assert len(lineage.step_of) == len(lineage.published) == 4096
    assert lineage.staleness(4990) == 9
