"""What tests of publications share: a gate before the store, and short ways to look at a learner."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from common.durable import NotWritten
from learner.publication.weight_store import WeightStore
from tests.contract.learner_rig import Rig, make_group


def shown(rig: Rig, name: str, **labels: str) -> float:
    value = rig.process.registry.get_sample_value(f"tributary_{name}", labels)
    return float("nan") if value is None else value


async def step(rig: Rig, number: int) -> None:
    """Groups for step `number`, which is awaited."""
    await rig.emit([make_group(2 * number), make_group(2 * number + 1)])
    await rig.steps(number)


class Gate:
    """Holds every write of a version until it is opened; says how many have come to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.versions: list[int] = []
        self.failing: set[int] = set()
        self._open = threading.Event()
        real = WeightStore.write

        def write(store: WeightStore, snapshot: Any) -> Any:
            self.versions.append(snapshot.version)
            assert self._open.wait(20)
            if snapshot.version in self.failing:
                raise NotWritten("no room")
            return real(store, snapshot)

        monkeypatch.setattr(WeightStore, "write", write)

    def open(self) -> None:
        self._open.set()
