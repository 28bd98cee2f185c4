"""Checkpoints are whole or skipped, and a full disk costs none of the old ones."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import learner.storage.checkpoint as module
from learner.storage.checkpoint import Checkpoint, CheckpointStore, NoCheckpoint, Progress
from learner.storage.durable import NotWritten


def checkpoint(step: int, numbers: int = 4) -> Checkpoint:
    progress = Progress(
        step=step,
        version=step + 1,
        revision=2,
        updates=step,
        unpublished=1,
        seen=("g1", "g2"),
        unacknowledged=("1-0", "2-0"),
        step_of=((0, 0), (3, 2)),
        published=(1, 2),
    )
    return Checkpoint(progress, {"model": {"weight": torch.arange(float(numbers)) + step}, "optimizer": {}})


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Larger files are refused by the kernel, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_was_committed_is_read_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.commit(checkpoint(5))
    read = store.newest()
    assert read is not None
    assert read.progress == checkpoint(5).progress
    assert read.tensors["model"]["weight"].equal(torch.arange(4.0) + 5)
    assert not read.tensors["optimizer"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (5, 10, 100_000_0, 20):
        store.commit(checkpoint(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000020", "step-1000000"]


def test_a_run_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", keep=2).newest() is None


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "record"])
def test_a_damaged_checkpoint_is_skipped_and_set_aside(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.commit(checkpoint(5))
    newest = store.commit(checkpoint(10))
    weights, record = newest / "model.safetensors", newest / "checkpoint.json"
    match damage:
        case "flip":
            weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "lose":
            weights.unlink()
        case _:
            record.write_text(record.read_text()[:40])
    read = store.newest()
    assert read is not None
    assert read.progress.step == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000005", "step-000010.damaged"]


@pytest.mark.parametrize("why", ["schema", "disk"])
def test_a_checkpoint_that_may_be_whole_is_neither_passed_over_nor_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.commit(checkpoint(5))
    record = store.commit(checkpoint(10)) / "checkpoint.json"
    if why == "schema":
        record.write_text(json.dumps({**json.loads(record.read_text()), "schema": 99}))
    else:

        def away(path: Path) -> str:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(module, "file_digest", away)
    said = {"schema": "its schema is 99, this program reads up to 1", "disk": "Input/output error"}[why]
    with pytest.raises(NoCheckpoint, match=rf"step-000010 cannot be read: .*{said}"):
        store.newest()
    with pytest.raises(NoCheckpoint, match="step-000010 is unreadable"):
        store.saved_policy(10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000005", "step-000010"]


def test_a_run_whose_every_checkpoint_is_damaged_does_not_begin_anew_by_itself(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (5, 10):
        (store.commit(checkpoint(step)) / "model.safetensors").write_bytes(b"")
    for _ in range(2):  # nor when it is started again
        with pytest.raises(NoCheckpoint, match=r"damaged \(step-000005.damaged, step-000010.damaged\): put a copy"):
            store.newest()


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.commit(checkpoint(5))
    unfinished = tmp_path / ".step-000010.unfinished"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    read = store.newest()
    assert read is not None
    assert read.progress.step == 5
    assert not unfinished.exists()


def test_a_full_disk_is_said_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.commit(checkpoint(5))
    with files_of_at_most(4096), pytest.raises(NotWritten, match=r"cannot write .*step-000010: .* MB are free there"):
        store.commit(checkpoint(10, numbers=10_000))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000005"]
    store.commit(checkpoint(10, numbers=10_000))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000010"]


def test_a_step_that_is_committed_again_replaces_the_lost_history(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.commit(checkpoint(5, numbers=4))
    store.commit(checkpoint(5, numbers=6))
    read = store.newest()
    assert read is not None
    assert len(read.tensors["model"]["weight"]) == 6


def test_a_checkpoint_that_is_removed_for_a_newer_one_while_it_is_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.commit(checkpoint(5))
    digest = module.file_digest

    def overtaken(path: Path) -> str:
        monkeypatch.setattr(module, "file_digest", digest)
        store.commit(checkpoint(10))
        return digest(path)

    monkeypatch.setattr(module, "file_digest", overtaken)
    assert store.saved_policy().progress.step == 10
