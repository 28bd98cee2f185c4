"""Revisions as HTTP entity tags (RFC 9110): `"7"` is revision 7."""

from __future__ import annotations

import re

_TAG = re.compile(r'(?:W/)?"([0-9]{1,18})"')


def etag_of(revision: int) -> str:
    """The entity tag of a revision."""
    return f'"{revision}"'


def expected_revisions(if_match: str | None) -> frozenset[int] | None:
    """The revisions that an If-Match header allows; None if any will do. A tag that is not ours allows none."""
    if if_match is None or if_match.strip() == "*":
        return None
    # A proxy that compresses answers makes tags weak; ours name content exactly, so they stay good.
    tags = (_TAG.fullmatch(tag.strip()) for tag in if_match.split(","))
    return frozenset(int(tag[1]) for tag in tags if tag)
