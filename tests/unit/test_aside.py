"""Work aside of the training: after the snapshot was taken, and over before its memory is used again."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from common.stores.directory import DirectoryStorage
from learner.publication import weight_store
from learner.publication.aside import Aside
from learner.publication.snapshot import Origin, Snapshot
from learner.publication.weight_store import WeightStore


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a pretended stream of a GPU was told, in order."""
    told: list[str] = []

    class Stream:
        def __init__(self, priority: int) -> None:
            told.append(f"made with priority {priority}")

        def wait_event(self, event: Any) -> None:
            told.append(f"waits for {event}")

        def synchronize(self) -> None:
            told.append("settled")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    return told


def test_on_a_cpu_there_is_nothing_to_it(done: list[str]) -> None:
    aside = Aside()
    with aside.after(None):
        aside.settle()
    assert done == []


def test_a_copy_is_read_once_it_is_there_and_given_back_when_nothing_reads_it_any_more(
    done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noting(patch: Any, tensor: Any) -> None:
        done.append("applies")
        real(patch, tensor)

    def snapshot(version: int) -> Snapshot:
        tensors = {"w": torch.arange(100.0).index_fill(0, torch.tensor([3]), float(version))}
        return replace(Snapshot(version, Origin(version, 1), tensors), taken=cast(Any, f"copy {version}"))

    real = weight_store.apply
    monkeypatch.setattr(weight_store, "apply", noting)
    store = WeightStore(
        DirectoryStorage(tmp_path), release=lambda snapshot: done.append(f"gives {snapshot.version} back")
    )
    store.write(snapshot(1))
    assert done == ["made with priority -1", "waits for copy 1", "settled"]
    del done[:]
    store.write(snapshot(2))
    assert done == ["waits for copy 2", "applies", "settled", "gives 1 back", "settled"]
