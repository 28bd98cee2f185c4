"""The weight cache: whatever happens on the way, the file is one version bit by bit, or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from publications import Publications, assert_holds, weights

from common.deltas import Patch
from common.digests import file_digest
from common.errors import WeightsError
from common.stores.directory import DirectoryStorage
from common.stores.object_store import ObjectStorage
from common.tensor_file import TensorFile
from common.weights import DELTA_FILE, Manifest, location_of
from services.generator import weight_cache
from services.generator.weight_cache import WeightCache

LIMIT = 1 << 30


@pytest.fixture
def published(tmp_path: Path) -> Publications:
    return Publications(DirectoryStorage(tmp_path / "store"))


def cache(published: Publications, tmp_path: Path, limit: int = LIMIT) -> WeightCache:
    return WeightCache(published.storage, tmp_path / "cache" / "generator-1", limit)


def a_chain(published: Publications, last: int) -> Manifest:
    """An anchor as version 1 and deltas up to `last`."""
    published.anchor(1)
    for version in range(2, last + 1):
        published.delta(version, version - 1)
    return published.manifests[last]


def test_every_version_of_a_chain_is_what_was_published(published: Publications, tmp_path: Path) -> None:
    ours = cache(published, tmp_path)
    a_chain(published, 5)
    for version in range(1, 6):
        ready = ours.advance(published.manifests[version])
        assert_holds(ready.path, version)
        assert ours.held == published.manifests[version]
        assert (ready.base, len(ready.deltas)) == ((version - 1, 1) if version > 1 else (0, 0))
        assert ready.fetched_bytes == published.manifests[version].bytes


def test_who_slept_through_thirty_versions_takes_thirty_deltas(published: Publications, tmp_path: Path) -> None:
    ours = cache(published, tmp_path)
    last = a_chain(published, 31)
    ours.advance(published.manifests[1])
    ready = ours.advance(last)
    assert_holds(ready.path, 31)
    assert (ready.base, len(ready.deltas)) == (1, 30)


def test_who_joins_late_takes_one_anchor_and_what_came_after_it(published: Publications, tmp_path: Path) -> None:
    a_chain(published, 4)
    published.anchor(5)
    last = published.delta(6, 5)
    ready = cache(published, tmp_path).advance(last)
    assert_holds(ready.path, 6)
    assert (ready.base, ready.deltas) == (0, ())
    assert ready.fetched_bytes == published.manifests[5].bytes + last.bytes


def test_an_anchor_on_the_way_is_shorter_than_all_deltas(published: Publications, tmp_path: Path) -> None:
    ours = cache(published, tmp_path)
    a_chain(published, 4)
    ours.advance(published.manifests[2])
    published.anchor(5)
    ready = ours.advance(published.delta(6, 5))
    assert_holds(ready.path, 6)
    assert ready.deltas == ()


def test_a_version_that_is_held_costs_nothing_unless_it_is_asked_for_anew(
    published: Publications, tmp_path: Path
) -> None:
    ours = cache(published, tmp_path)
    last = a_chain(published, 3)
    ours.advance(last)
    assert ours.advance(last).fetched_bytes == 0
    ready = ours.advance(last, anew=True)
    assert_holds(ready.path, 3)
    assert ready.fetched_bytes == sum(manifest.bytes for manifest in published.manifests.values())


def test_a_missing_link_leaves_what_is_held(published: Publications, tmp_path: Path) -> None:
    ours = cache(published, tmp_path)
    last = a_chain(published, 4)
    ready = ours.advance(published.manifests[1])
    published.storage.delete(3)
    with pytest.raises(WeightsError, match="version 4 builds upon 3, which is missing"):
        ours.advance(last)
    assert ours.held == published.manifests[1]
    assert_holds(ready.path, 1)


def test_a_delta_with_another_digest_leaves_what_is_held(published: Publications, tmp_path: Path) -> None:
    ours = cache(published, tmp_path)
    last = a_chain(published, 2)
    ready = ours.advance(published.manifests[1])
    path = tmp_path / "store" / location_of(2) / DELTA_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(WeightsError, match="does not match its digest"):
        ours.advance(last)
    assert ours.held == published.manifests[1]
    assert_holds(ready.path, 1)


def test_a_delta_of_another_base_is_refused_before_it_is_applied(published: Publications, tmp_path: Path) -> None:
    ours = cache(published, tmp_path)
    a_chain(published, 3)
    ready = ours.advance(published.manifests[1])
    store = tmp_path / "store"
    shutil.copy(store / location_of(3) / DELTA_FILE, store / location_of(2) / DELTA_FILE)
    wrong = replace(published.manifests[2], files=published.manifests[3].files)
    with pytest.raises(WeightsError, match="a delta of 2 to 3 as version 2, where version 1 is held"):
        ours.advance(wrong)
    assert ours.held == published.manifests[1]
    assert_holds(ready.path, 1)


def test_a_delta_that_was_made_to_harm_is_an_error_like_any_other(published: Publications, tmp_path: Path) -> None:
    ours = cache(published, tmp_path)
    a_chain(published, 2)
    ours.advance(published.manifests[1])
    path = tmp_path / "store" / location_of(2) / DELTA_FILE
    for harmful in (path.read_bytes()[:-20] + bytes(20), b""):  # with a manifest that proves it
        path.write_bytes(harmful)
        wrong = replace(published.manifests[2], files={DELTA_FILE: (len(harmful), file_digest(path))})
        with pytest.raises(WeightsError):
            ours.advance(wrong)
        ours.advance(published.manifests[1])


def test_a_delta_that_leads_elsewhere_than_its_manifest_says_leaves_nothing_that_could_be_served(
    published: Publications, tmp_path: Path
) -> None:
    ours = cache(published, tmp_path)
    a_chain(published, 3)
    ours.advance(published.manifests[1])
    wrong = replace(published.manifests[2], tensors=published.manifests[3].tensors)
    with pytest.raises(WeightsError, match=r"tensor model\.first does not match its digest"):
        ours.advance(wrong)
    assert ours.held is None
    assert_holds(ours.advance(published.manifests[3]).path, 3)


def test_an_anchor_with_other_tensors_than_its_manifest_names_is_refused(
    published: Publications, tmp_path: Path
) -> None:
    manifest = published.anchor(1)
    short = replace(manifest, tensors={name: proof for name, proof in manifest.tensors.items() if "first" not in name})
    with pytest.raises(WeightsError, match="tensors that are not on both sides"):
        cache(published, tmp_path).advance(short)


def test_a_new_life_goes_on_with_what_the_last_one_left(published: Publications, tmp_path: Path) -> None:
    former = cache(published, tmp_path)
    last = a_chain(published, 4)
    former.open()
    former.advance(published.manifests[3])
    former.close()
    ours = cache(published, tmp_path)
    assert ours.open() == published.manifests[3]
    ready = ours.advance(last)
    assert_holds(ready.path, 4)
    assert ready.fetched_bytes == last.bytes


def test_a_file_that_was_changed_meanwhile_is_not_trusted(published: Publications, tmp_path: Path) -> None:
    former = cache(published, tmp_path)
    former.open()
    ready = former.advance(published.anchor(1))
    former.close()
    TensorFile(ready.path, writable=True).patterns("model.still")[2] ^= 1
    assert cache(published, tmp_path).open() is None


class Killed(BaseException):
    """As far as the files are concerned, the process was killed here."""


@pytest.mark.parametrize("after", range(8))
def test_a_life_that_ends_while_patches_are_applied_leaves_a_version_or_none(
    published: Publications, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    last = a_chain(published, 4)
    ours = cache(published, tmp_path)
    ours.open()
    ours.advance(published.manifests[1])
    patches = 0
    apply = Patch.apply

    def killing(patch: Patch, patterns: np.ndarray) -> None:
        nonlocal patches
        patches += 1
        if patches > after:
            raise Killed
        apply(patch, patterns)

    monkeypatch.setattr(Patch, "apply", killing)
    with pytest.raises(Killed) if after < 6 else _nothing():
        ours.advance(last)
    monkeypatch.undo()
    ours.close()
    successor = cache(published, tmp_path)
    held = successor.open()
    if held is not None:
        assert_holds(tmp_path / "cache" / "generator-1" / "current.safetensors", held.version)
    assert_holds(successor.advance(last).path, 4)


class _nothing:  # noqa: N801 (a context manager is named like a function)
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_a_generator_that_stops_ends_the_fetch(published: Publications, tmp_path: Path) -> None:
    def heed() -> None:
        raise WeightsError("stopping")

    ours = cache(published, tmp_path)
    with pytest.raises(WeightsError, match="stopping"):
        ours.advance(published.anchor(1), heed)
    assert ours.held is None


def test_a_namesake_works_in_a_directory_of_its_own(published: Publications, tmp_path: Path) -> None:
    first, second = cache(published, tmp_path), cache(published, tmp_path)
    a_chain(published, 2)
    assert first.open() is None
    assert second.open() is None
    paths = [ours.advance(published.manifests[version]).path for ours, version in ((first, 1), (second, 2))]
    assert paths[0] != paths[1]
    assert_holds(paths[0], 1)
    assert_holds(paths[1], 2)
    second.close()
    assert cache(published, tmp_path).open() == published.manifests[2]


def test_directories_of_generators_long_gone_are_removed(published: Publications, tmp_path: Path) -> None:
    others = {
        name: WeightCache(published.storage, tmp_path / "cache" / name, LIMIT) for name in ("gone", "here", "new")
    }
    for name, other in others.items():
        other.open()
        other.advance(published.anchor(1) if name == "gone" else published.manifests[1])
    others["gone"].close()
    others["new"].close()
    for name in ("gone", "here"):
        for path in (tmp_path / "cache" / name, tmp_path / "cache" / name / "lock"):
            os.utime(path, (0, 0))
    (tmp_path / "cache" / "something-else").mkdir()
    ours = cache(published, tmp_path)
    ours.open()
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left == {"here", "new", "something-else", "generator-1"}
    ours.close()
    others["here"].close()


def test_what_was_fetched_is_removed_beyond_the_limit_but_never_what_is_needed(
    published: Publications, tmp_path: Path
) -> None:
    distant = ObjectStorage(f"file://{tmp_path / 'store'}")
    ours = WeightCache(distant, tmp_path / "cache" / "generator-1", limit_bytes=1)
    last = a_chain(published, 4)
    places = tmp_path / "cache" / "generator-1" / "fetched"
    for version, there in ((2, {1, 2}), (3, {3})):
        assert_holds(ours.advance(published.manifests[version]).path, version)
        assert {path.name for path in places.iterdir()} == {location_of(number) for number in there}
    roomy = WeightCache(distant, tmp_path / "cache" / "roomy", LIMIT)
    for version in range(1, 5):
        roomy.advance(published.manifests[version])
    assert len(list((tmp_path / "cache" / "roomy" / "fetched").iterdir())) == 4
    assert file_digest(tmp_path / "cache" / "roomy" / "fetched" / location_of(4) / DELTA_FILE) in str(last.files)


def test_a_cache_that_cannot_be_written_says_what_to_set(
    published: Publications, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(weight_cache.shutil, "copyfile", full)
    with pytest.raises(WeightsError, match=r"No space left on device.*set \[weights\] cache"):
        cache(published, tmp_path).advance(published.anchor(1))


def test_two_generators_hold_different_versions_at_once(published: Publications, tmp_path: Path) -> None:
    a_chain(published, 6)
    make: Callable[[str], WeightCache] = lambda name: WeightCache(published.storage, tmp_path / "cache" / name, LIMIT)  # noqa: E731
    fast, slow = make("generator-1"), make("generator-2")
    slow_ready = slow.advance(published.manifests[2])
    for version in (1, 3, 6):
        assert_holds(fast.advance(published.manifests[version]).path, version)
        assert_holds(slow_ready.path, 2)
    assert_holds(slow.advance(published.manifests[5]).path, 5)


def test_a_version_of_another_run_is_not_taken_for_the_one_with_its_number(
    published: Publications, tmp_path: Path
) -> None:
    a_chain(published, 2)
    others = Publications(DirectoryStorage(tmp_path / "others"))
    others.anchor(1)
    others.delta(2, 1, (weights(1), weights(9)))
    former = WeightCache(others.storage, tmp_path / "cache" / "generator-1", LIMIT)
    former.open()
    former.advance(others.manifests[2])
    former.close()
    ours = cache(published, tmp_path)
    assert ours.open() == others.manifests[2]
    assert_holds(ours.advance(published.manifests[2]).path, 2)


def test_a_namesake_too_many_is_refused_and_harms_nobody(published: Publications, tmp_path: Path) -> None:
    manifest = published.anchor(1)
    others = [cache(published, tmp_path) for _ in range(8)]
    for other in others:
        other.open()
        other.advance(manifest)
    states = sorted((tmp_path / "cache").glob("*/current.json"))
    assert len(states) == 8
    ninth = cache(published, tmp_path)
    for call in (ninth.open, lambda: ninth.advance(manifest)):
        with pytest.raises(WeightsError, match="give each generator a name of its own"):
            call()
    assert sorted((tmp_path / "cache").glob("*/current.json")) == states
    others[3].close()
    assert_holds(ninth.advance(manifest).path, 1)
    for other in (*others, ninth):
        other.close()


def test_a_directory_is_left_to_others_only_when_the_work_in_it_has_ended(
    published: Publications, tmp_path: Path
) -> None:
    ours = cache(published, tmp_path)
    ours.open()
    successors: list[WeightCache] = []

    def close() -> None:
        ours.close()
        successors.append(cache(published, tmp_path))
        successors[0].open()

    ours.advance(published.anchor(1), lambda: None if successors else close())
    later = cache(published, tmp_path)
    assert later.open() == published.manifests[1], "our directory is free"
    assert len(list((tmp_path / "cache").iterdir())) == 2, "it was not while we worked"
    with pytest.raises(WeightsError, match="is closed"):
        ours.advance(published.manifests[1])
    for other in (*successors, later):
        other.close()


def test_what_lies_here_already_is_not_counted_as_fetched(published: Publications, tmp_path: Path) -> None:
    distant = ObjectStorage(f"file://{tmp_path / 'store'}")
    ours = WeightCache(distant, tmp_path / "cache" / "generator-1", LIMIT)
    last = a_chain(published, 3)
    ours.advance(published.manifests[1])
    assert ours.advance(last).fetched_bytes == published.manifests[2].bytes + last.bytes
    assert ours.advance(last, anew=True).fetched_bytes == 0
