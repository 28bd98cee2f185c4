"""Places in a log: ids of its entries, as callers pass them to go on from there."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, StringConstraints

_LARGEST = 2**64 - 1
# [0-9], not \d: that takes the digits of every script, and Redis only takes these.
_ID = r"^[0-9]{1,20}-[0-9]{1,20}$"
_ID_OR_TIME = r"^[0-9]{1,20}(-[0-9]{1,20})?$"


def order(place: str) -> tuple[int, int]:
    """What places are compared by: milliseconds, then the number within them."""
    milliseconds, _, sequence = place.partition("-")
    return int(milliseconds), int(sequence or 0)


def is_start(place: str) -> bool:
    """Whether nothing can come before this place. Redis refuses to be asked for it."""
    return place != "+" and order(place) == (0, 0)


def _possible(place: str) -> str:
    if max(order(place)) > _LARGEST:
        raise ValueError(f"no part of an id is greater than {_LARGEST}")
    return place


EntryId = Annotated[str, StringConstraints(pattern=_ID), AfterValidator(_possible)]
Place = Annotated[str, StringConstraints(pattern=_ID_OR_TIME), AfterValidator(_possible)]
