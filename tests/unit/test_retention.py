"""What is removed from a store: whatever is older than the newest anchors and part of no chain that is fetched."""

from __future__ import annotations

from common.weights import Manifest, PublicationKind, location_of
from learner.publication.retention import chain, expendable


def manifest(version: int, base: int = 0) -> Manifest:
    kind = PublicationKind.DELTA if base else PublicationKind.ANCHOR
    anchor = max(anchor for anchor in (1, 5, 7, 8) if anchor <= version)
    return Manifest(version, 1, 1, kind, base, location_of(version), {}, {}, 0, 0.0, anchor=anchor)


# 1 ← 2 ← 4   5 ← 6   8 ← 9 ← 10   (3 and 7 were passed over)
BASES = {1: 0, 2: 1, 4: 2, 5: 0, 6: 5, 8: 0, 9: 8, 10: 9}
STORE: dict[int, Manifest | None] = {version: manifest(version, base) for version, base in BASES.items()}


def test_the_newest_anchors_and_all_after_them_stay() -> None:
    assert expendable(STORE, 1, ()) == {1, 2, 4, 5, 6}
    assert expendable(STORE, 2, ()) == {1, 2, 4}
    assert expendable(STORE, 3, ()) == expendable(STORE, 9, ()) == set()
    assert expendable({}, 1, ()) == set()


def test_the_chain_of_a_version_that_is_fetched_stays() -> None:
    assert chain(STORE, 4) == {1, 2, 4}
    assert expendable(STORE, 1, [2]) == {4, 5, 6}
    assert expendable(STORE, 1, [4, 6]) == set()
    broken: dict[int, Manifest | None] = {version: link for version, link in STORE.items() if version != 2}
    assert expendable(broken, 1, [4]) == {5, 6}  # whoever cannot come to 4 comes to 1
    assert expendable(STORE, 1, [10, 77]) == {1, 2, 4, 5, 6}


def test_what_cannot_be_read_is_removed_once_it_is_old() -> None:
    assert expendable(STORE | {3: None, 7: None, 11: None}, 2, [3]) == {1, 2, 3, 4}


def test_deltas_that_build_upon_each_other_end_the_chain() -> None:
    circle: dict[int, Manifest | None] = {5: manifest(5, 6), 6: manifest(6, 5), 7: manifest(7), 8: manifest(8)}
    assert chain(circle, 5) == {5, 6}
    assert expendable(circle, 1, [5]) == {7}
