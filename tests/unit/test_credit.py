"""The credit: as much as can be trained in time, and not a group more."""

from __future__ import annotations

import math

import pytest

from common.config.live import LiveConfig, parse_live
from services.curriculum.credit import allowed


def live(max_staleness: int, publish_every: int = 1) -> LiveConfig:
    return parse_live({"groups_per_step": 16, "max_staleness": max_staleness, "publish_every": publish_every})


@pytest.mark.parametrize(
    ("max_staleness", "publish_every", "lag", "groups"),
    [
        (0, 1, 0, 16),  # on-policy: one step's groups at a time
        (0, 1, 1, 0),  # ... and none before the version of the last step is there
        (2, 1, 0, 48),
        (2, 1, 1, 32),
        (2, 1, 2, 16),
        (2, 1, 3, 0),
        (4, 4, 0, 80),
        (4, 4, 1, 80),  # three spare versions are twelve steps: more than five steps' groups are not asked for
        (4, 4, 4, 16),
        (4, 4, 5, 0),
        (4, 2, 3, 48),
    ],
)
def test_the_credit_shrinks_by_what_the_generators_lack(
    max_staleness: int, publish_every: int, lag: int, groups: int
) -> None:
    assert allowed(live(max_staleness, publish_every), lag) == groups


def test_demonstrations_do_not_wait_for_weights() -> None:
    sft = parse_live(
        {"groups_per_step": 16, "max_staleness": 2, "algorithm": {"kind": "sft"}, "hints": {"kind": "demonstration"}}
    )
    assert allowed(sft, 9) == 48


@pytest.mark.parametrize("publish_every", [1, 2, 3, 4])
@pytest.mark.parametrize("max_staleness", range(5))
@pytest.mark.parametrize("lag", range(6))
def test_no_group_within_the_credit_is_too_old_when_it_is_trained_and_with_a_version_a_step_one_more_would_be(
    max_staleness: int, publish_every: int, lag: int
) -> None:
    """Queued behind the others, under the worst of all phases: a version has its turn right after the next step."""
    groups = allowed(live(max_staleness, publish_every), lag)

    def age(place: int) -> int:
        return lag + math.ceil(place // 16 / publish_every)

    assert all(age(place) <= max_staleness for place in range(groups))
    assert groups <= 16 * (max_staleness + 1)
    if publish_every == 1:
        assert age(groups) > max_staleness
