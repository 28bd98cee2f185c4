"""Retention: which versions of a weight store nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from common.weights import Manifest, PublicationKind


def expendable(manifests: Mapping[int, Manifest | None], keep: int, wanted: Iterable[int]) -> set[int]:
    """The versions that may go: all before the newest `keep` anchors, but for the chains of the `wanted` ones.

    manifests: of all versions in the store; None for one that cannot be read. Any generator can begin again with the
    newest anchor, so that what it holds needs nothing in the store; only what it is fetching does, and the newest
    announced version, which an anchor that was never announced may follow.
    """
    anchors = sorted(v for v, manifest in manifests.items() if manifest and manifest.kind is PublicationKind.ANCHOR)
    if len(anchors) < keep:
        return set()
    needed = {version for version in manifests if version >= anchors[-keep]}
    for version in wanted:
        needed |= chain(manifests, version)
    return manifests.keys() - needed


def chain(manifests: Mapping[int, Manifest | None], version: int) -> set[int]:
    """A version and all that its deltas build upon, as far as it is there; and its anchor, where a broken one ends."""
    links: set[int] = set()
    anchors: set[int] = set()
    while (manifest := manifests.get(version)) is not None and version not in links:
        links.add(version)
        anchors.add(manifest.anchor)
        if manifest.kind is PublicationKind.ANCHOR:
            break
        version = manifest.base
    return links | anchors
