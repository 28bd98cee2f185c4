"""What the control plane measures of the whole run: labels come and go with the processes they name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.exceptions import ConnectionError

from services.control.overview import ProcessView
from services.control.vitals import FORGOTTEN_S, Vitals


class Silence:
    """A Redis that does not answer."""

    async def hgetall(self, key: str) -> dict[bytes, bytes]:
        raise ConnectionError("refused")


def vitals(redis: Any = None) -> tuple[Vitals, CollectorRegistry]:
    registry = CollectorRegistry()
    control: Any = SimpleNamespace(
        registry=registry, redis=redis, keys=SimpleNamespace(processes="p"), clock=lambda: 0.0
    )
    return Vitals(control), registry


def view(name: str, role: str, *, state: str = "running", age_s: float = 0.5, **told: Any) -> ProcessView:
    alive = age_s <= 10 and state not in ("stopped", "failed")
    return ProcessView(name=name, role=role, state=state, alive=alive, age_s=age_s, **told)


def test_the_living_are_counted_by_role_and_a_role_without_any_is_zero() -> None:
    taken, registry = vitals()
    taken.count([view("g1", "generator"), view("g2", "generator"), view("g3", "generator", age_s=11)])

    def alive(role: str) -> float | None:
        return registry.get_sample_value("tributary_processes_alive", {"role": role})

    assert (alive("generator"), alive("learner"), alive("curriculum"), alive("control")) == (2, 0, 0, 0)


def test_a_silent_process_shows_its_age_until_it_ended_or_is_forgotten() -> None:
    taken, registry = vitals()

    def ages() -> list[float | None]:
        labels = [{"process": name, "role": "generator"} for name in ("killed", "drained")]
        return [registry.get_sample_value("tributary_heartbeat_age_seconds", each) for each in labels]

    taken.count([view("killed", "generator", age_s=40), view("drained", "generator")])
    assert ages() == [40, 0.5]
    taken.count([view("killed", "generator", age_s=41), view("drained", "generator", state="stopped", age_s=3)])
    assert ages() == [41, None]
    taken.count([view("killed", "generator", age_s=FORGOTTEN_S + 1)])
    assert ages() == [None, None]


def test_trouble_is_shown_as_unwell() -> None:
    taken, registry = vitals()
    taken.count([view("learner", "learner", trouble="the main loop has not moved for 130 s")])
    labels = {"process": "learner", "role": "learner"}
    assert registry.get_sample_value("tributary_process_unwell", labels) == 1


def test_a_generator_is_behind_by_the_versions_that_it_does_not_hold() -> None:
    taken, registry = vitals()
    taken.count([view("l", "learner", version=9), view("g1", "generator", version=7), view("g2", "generator")])
    behind = [registry.get_sample_value("tributary_versions_behind", {"process": name}) for name in ("g1", "g2")]
    assert behind == [2, 9]
    taken.count([view("l", "learner", version=3), view("g1", "generator", version=7)])
    assert registry.get_sample_value("tributary_versions_behind", {"process": "g1"}) == 0
    assert registry.get_sample_value("tributary_versions_behind", {"process": "g2"}) is None


async def test_a_redis_that_does_not_answer_is_shown_as_down_and_the_rest_stays_as_it_was() -> None:
    taken, registry = vitals(Silence())
    taken.count([view("g1", "generator", age_s=2)])
    with pytest.raises(ConnectionError):
        await taken.take()
    assert registry.get_sample_value("tributary_redis_up") == 0
    labels = {"process": "g1", "role": "generator"}
    assert registry.get_sample_value("tributary_heartbeat_age_seconds", labels) == 2
