"""A weight version is complete and proved, or not there; and a chain of deltas gives every version bit by bit."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.deltas import read_patches
from common.digests import DigestKind, digest
from common.durable import NotWritten
from common.errors import WeightsError
from common.stores.directory import DirectoryStorage
from common.stores.fetching import prove
from common.stores.object_store import ObjectStorage
from common.stores.storage import manifest_at
from common.tensor_file import TensorFile
from common.weights import ANCHOR_FILE, DELTA_FILE, MANIFEST_FILE, Canary, PublicationKind, decode_manifest
from learner.publication.snapshot import Origin, Snapshot
from learner.publication.weight_store import WeightStore

ANCHOR, DELTA = PublicationKind.ANCHOR, PublicationKind.DELTA
WEIGHTS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.linspace(-1, 1, 10_000, dtype=torch.bfloat16),
    "c": torch.tensor(2.5),
    "d": torch.zeros(0, 3),
}


def snapshot(version: int, weights: Mapping[str, Tensor] = WEIGHTS) -> Snapshot:
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    return Snapshot(version, Origin(step=version * 10, revision=3), copies)


def stepped(seed: int, weights: Mapping[str, Tensor] = WEIGHTS, share: float = 0.01) -> dict[str, Tensor]:
    """The weights with other bits in some places."""
    torch.manual_seed(seed)
    return {
        name: torch.where(torch.rand(tensor.shape) < share, torch.randn(tensor.shape).to(tensor.dtype), tensor)
        for name, tensor in weights.items()
    }


def rebuilt(storage: Any, version: int, directory: Path) -> dict[str, Tensor]:
    """What a generator that knows nothing but the store comes to."""
    manifests = [manifest_at(storage, version)]
    while manifests[0].kind is DELTA:
        manifests.insert(0, manifest_at(storage, manifests[0].base))
    path = directory / f"{version}.safetensors"
    first = manifests[0]
    path.write_bytes(storage.read(first.location, ANCHOR_FILE, 0, first.files[ANCHOR_FILE][0]))
    file = TensorFile(path, writable=True)
    for manifest in manifests:
        if manifest.kind is DELTA:
            for patch in read_patches(storage.read(manifest.location, DELTA_FILE, 0, manifest.bytes), file.layouts):
                patch.apply(file.patterns(patch.name))
        assert {name: digest(file.raw(name)) for name in file.layouts} == manifest.tensors
    file.flush()
    return load_file(path)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    def bits(tensor: Tensor) -> bytes:
        return np.asarray(tensor.contiguous().flatten().view(torch.uint8)).tobytes()

    return one.keys() == other.keys() and all(bits(one[name]) == bits(other[name]) for name in one)


def kinds(store: WeightStore) -> list[str]:
    return [manifest_at(store.storage, version).kind.value for version in store.storage.versions()]


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(DirectoryStorage(tmp_path / "weights"))


def test_the_first_version_is_an_anchor_with_a_manifest_that_proves_it(store: WeightStore, tmp_path: Path) -> None:
    manifest = store.write(snapshot(12)).manifest
    prove(store.storage, manifest)
    directory = tmp_path / "weights" / "v000012"
    assert decode_manifest((directory / MANIFEST_FILE).read_bytes()) == manifest
    assert (manifest.version, manifest.step, manifest.revision, manifest.base, manifest.anchor) == (12, 120, 3, 0, 12)
    assert (manifest.kind, manifest.changed, manifest.digests) == (ANCHOR, None, DigestKind.BLAKE3)
    assert (manifest.full_bytes, manifest.location) == (24 + 20_000 + 4 + 0, "v000012")
    assert manifest.bytes == (directory / ANCHOR_FILE).stat().st_size
    assert manifest.tensors["a"] == digest(WEIGHTS["a"].numpy().tobytes())
    assert same(load_file(directory / ANCHOR_FILE), WEIGHTS)


def test_the_second_is_a_delta_on_it_whatever_number_it_has(store: WeightStore, tmp_path: Path) -> None:
    store.write(snapshot(2))
    later = stepped(1) | {"c": torch.tensor(float("nan"))}
    manifest = store.write(snapshot(5, later)).manifest
    assert (manifest.kind, manifest.base, manifest.anchor, [*manifest.files]) == (DELTA, 2, 2, [DELTA_FILE])
    assert manifest.changed == pytest.approx(0.01, rel=0.3)
    assert manifest.bytes < manifest.full_bytes / 20
    assert same(rebuilt(store.storage, 5, tmp_path), later)
    assert store.write(snapshot(6, later)).manifest.changed == 0.0


def test_two_hundred_versions_in_any_mixture_arrive_bit_by_bit(tmp_path: Path) -> None:
    released: list[int] = []
    storage = DirectoryStorage(tmp_path / "weights")
    store = WeightStore(storage, 20, release=lambda snapshot: released.append(snapshot.version))
    weights: dict[str, Tensor] = dict(WEIGHTS)
    states: dict[int, dict[str, Tensor]] = {}
    for version in range(1, 201):
        share = (0.0, 0.001, 0.01, 0.1, 0.5, 1.0)[version % 6]
        states[version] = weights = stepped(version, weights, share)
        store.write(snapshot(version, weights))
        if version % 50 == 0:
            for made in storage.versions():
                assert same(rebuilt(storage, made, tmp_path), states[made])
            store.prune(2, set())
    assert released == [*range(1, 200)]
    assert kinds(store).count("anchor") == 2


def test_an_anchor_comes_every_so_many_versions(tmp_path: Path) -> None:
    store = WeightStore(DirectoryStorage(tmp_path), anchor_every=3)
    for version in range(1, 8):
        store.write(snapshot(version, stepped(version)))
    assert kinds(store) == ["anchor", "delta", "delta", "anchor", "delta", "delta", "anchor"]
    assert manifest_at(store.storage, 4).changed == pytest.approx(0.02, rel=0.3)


def test_an_anchor_comes_when_nearly_everything_has_changed(store: WeightStore) -> None:
    store.write(snapshot(1))
    manifest = store.write(snapshot(2, stepped(2, share=1.0))).manifest
    assert (manifest.kind, manifest.base) == (ANCHOR, 0)
    assert manifest.changed == pytest.approx(1.0, abs=0.01)
    assert store.write(snapshot(3, stepped(3, stepped(2, share=1.0)))).manifest.base == 2


def test_an_anchor_comes_when_the_deltas_would_weigh_more_than_one(store: WeightStore) -> None:
    for version in range(1, 7):
        store.write(snapshot(version, stepped(version, share=0.4)))
    found = [manifest_at(store.storage, version) for version in store.storage.versions()]
    chain = 0
    for manifest in found:
        chain = 0 if manifest.kind is ANCHOR else chain + manifest.bytes
        assert chain <= found[0].bytes
    assert kinds(store)[:2] == ["anchor", "delta"]
    assert kinds(store).count("anchor") >= 2


@pytest.mark.parametrize(
    "change",
    [
        {"e": torch.ones(2)},
        {"c": torch.tensor([2.5])},
        {"c": torch.tensor(2.5, dtype=torch.float64)},
    ],
)
def test_an_anchor_comes_when_tensors_are_others(store: WeightStore, tmp_path: Path, change: dict[str, Tensor]) -> None:
    store.write(snapshot(1))
    store.write(snapshot(2, WEIGHTS | change))
    store.write(snapshot(3, {"a": WEIGHTS["a"]}))
    assert kinds(store) == ["anchor"] * 3
    assert same(rebuilt(store.storage, 2, tmp_path), WEIGHTS | change)


def test_an_anchor_comes_after_a_restart(store: WeightStore, tmp_path: Path) -> None:
    store.write(snapshot(1))
    store.write(snapshot(2, stepped(2)))
    again = WeightStore(DirectoryStorage(tmp_path / "weights"))
    assert again.open() == [1, 2]
    assert again.write(snapshot(3, stepped(3))).manifest.kind is ANCHOR


class Treacherous(DirectoryStorage):
    """A directory whose files are not what was written, when it is told so."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.damages: list[str] = []

    def path(self, location: str, name: str) -> Path:
        path = super().path(location, name)
        match self.damages.pop() if self.damages else "":
            case "cut":
                path.write_bytes(path.read_bytes()[:-1])
            case "flip":
                content = bytearray(path.read_bytes())
                content[-9] ^= 1
                path.write_bytes(content)
            case "gone":
                path.unlink()
            case _:
                pass
        return path


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_what_does_not_read_back_is_no_version_and_the_next_one_is_whole(tmp_path: Path, damage: str) -> None:
    storage, released = Treacherous(tmp_path / "weights"), list[int]()
    store = WeightStore(storage, release=lambda snapshot: released.append(snapshot.version))
    store.write(snapshot(1))
    storage.damages = [damage]
    with pytest.raises(WeightsError):
        store.write(snapshot(2, stepped(2)))
    assert storage.versions() == [1]
    assert released == [2]
    assert store.write(snapshot(3, stepped(3))).manifest.base == 1
    assert same(rebuilt(storage, 3, tmp_path), stepped(3))


def test_a_delta_that_brings_about_something_else_is_no_version(
    store: WeightStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[int] = []
    store = WeightStore(store.storage, release=lambda snapshot: released.append(snapshot.version))
    store.write(snapshot(1))
    with monkeypatch.context() as patched:
        patched.setattr("learner.publication.weight_store.apply", lambda patch, tensor: None)
        with pytest.raises(WeightsError, match="the delta of version 2 does not bring"):
            store.write(snapshot(2, stepped(2)))
    assert (store.storage.versions(), released) == ([1], [1, 2])
    assert store.write(snapshot(3, stepped(3))).manifest.kind is ANCHOR
    assert same(rebuilt(store.storage, 3, tmp_path), stepped(3))


def test_a_place_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    place = tmp_path / "weights"
    store = WeightStore(DirectoryStorage(place))
    store.write(snapshot(1))
    place.rename(tmp_path / "aside")
    place.write_text("in the way")
    with pytest.raises(NotWritten, match="cannot write"):
        store.write(snapshot(2, stepped(2)))
    place.unlink()
    (tmp_path / "aside").rename(place)
    assert store.write(snapshot(3, stepped(3))).manifest.base == 1
    assert same(rebuilt(store.storage, 3, tmp_path), stepped(3))


def test_a_store_that_is_closed_breaks_off(store: WeightStore) -> None:
    store.write(snapshot(1))
    thread = threading.Thread(target=store.close)
    thread.start()
    thread.join()
    with pytest.raises(NotWritten, match="the learner ends"):
        store.write(snapshot(2))
    assert [path.name for path in store.storage.root.iterdir()] == ["v000001"]  # type: ignore[attr-defined]


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".v000001.unfinished").mkdir()
    assert WeightStore(DirectoryStorage(tmp_path)).open() == []
    assert list(tmp_path.iterdir()) == []


def test_old_versions_go_with_those_of_earlier_lives(store: WeightStore, tmp_path: Path) -> None:
    for version in range(1, 4):
        store.write(snapshot(version, stepped(version)))
    again = WeightStore(DirectoryStorage(tmp_path / "weights"))
    for version in range(4, 7):
        again.write(snapshot(version, stepped(version)))
    again.prune(1, {2})
    assert again.storage.versions() == [1, 2, 4, 5, 6]
    (tmp_path / "weights" / "v000001" / MANIFEST_FILE).write_text("{}")
    fresh = WeightStore(DirectoryStorage(tmp_path / "weights"))
    fresh.prune(1, set())
    assert fresh.storage.versions() == [4, 5, 6]


def test_the_same_through_an_object_store(tmp_path: Path) -> None:
    store = WeightStore(ObjectStorage("memory://weights", tmp_path / "scratch"))
    for version in range(1, 4):
        store.write(snapshot(version, stepped(version)))
    assert kinds(store) == ["anchor", "delta", "delta"]
    assert same(rebuilt(store.storage, 3, tmp_path), stepped(3))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_manifest_tells_the_canary_of_its_snapshot(store: WeightStore) -> None:
    canary = Canary(((1, 2),), ((-0.5,),), 1e-3, 1e-4, "float32")
    assert store.write(replace(snapshot(1), sing=lambda: canary)).manifest.canary == canary
    assert manifest_at(store.storage, 1).canary == canary
    assert store.write(snapshot(2)).manifest.canary is None


def test_the_anchor_of_the_newest_version_stays_when_others_that_were_never_announced_follow_it(
    store: WeightStore, tmp_path: Path
) -> None:
    store.write(snapshot(1))
    for version in (2, 3):  # left by a store that could neither prove nor remove them
        WeightStore(store.storage).write(snapshot(version))
    store.write(snapshot(4, stepped(4)))
    store.prune(2, set())
    assert store.storage.versions() == [1, 2, 3, 4]
    assert same(rebuilt(store.storage, 4, tmp_path), stepped(4))


def test_a_manifest_that_cannot_be_read_now_is_read_later(store: WeightStore, tmp_path: Path) -> None:
    for version in range(1, 4):
        store.write(snapshot(version, stepped(version)))
    again = WeightStore(DirectoryStorage(tmp_path / "weights"))
    link = tmp_path / "weights" / "v000002" / MANIFEST_FILE
    link.rename(link.with_name("away"))
    link.mkdir()  # listed, and not to be read
    again.prune(1, {3})
    link.rmdir()
    link.with_name("away").rename(link)
    again.write(snapshot(4))
    again.prune(1, {3})
    assert again.storage.versions() == [1, 2, 3, 4]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no room")])
@pytest.mark.parametrize("where", ["write_delta", "apply", "canary"])
def test_a_lack_of_memory_costs_a_version_and_not_the_learner(
    store: WeightStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    released: list[int] = []
    store = WeightStore(store.storage, release=lambda snapshot: released.append(snapshot.version))
    store.write(snapshot(1))
    taken = snapshot(2, stepped(2))
    with monkeypatch.context() as patched:
        if where == "canary":
            taken = replace(taken, sing=fail)
        else:
            patched.setattr(f"learner.publication.weight_store.{where}", fail)
        with pytest.raises(NotWritten, match="no memory to publish version 2"):
            store.write(taken)
    assert (sorted(released), store.storage.versions()) == ([1, 2], [1])
    assert store.write(snapshot(3, stepped(3))).manifest.kind is ANCHOR
    assert same(rebuilt(store.storage, 3, tmp_path), stepped(3))


def test_another_error_of_torch_is_not_taken_for_a_lack_of_memory(store: WeightStore) -> None:
    def fail() -> Canary:
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        store.write(replace(snapshot(1), sing=fail))


def test_an_anchor_breaks_off_at_its_next_tensor(store: WeightStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def closing(data: Any) -> str:
        seen.append(data.nbytes)
        store.close()
        return digest(data)

    monkeypatch.setattr("learner.publication.weight_store.digest", closing)
    with pytest.raises(NotWritten, match="the learner ends"):
        store.write(snapshot(1))
    assert len(seen) == 1
    assert store.storage.versions() == []
