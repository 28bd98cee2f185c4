"""The ledger: which groups were consumed, and which of their stream entries still wait for a checkpoint.

An entry is acknowledged only after the checkpoint that contains its effect has committed; a group id that was consumed
once is not consumed again.
"""

from __future__ import annotations

from collections.abc import Iterable

from learner.intake import Arrival

_REMEMBERED = 65_536


class Ledger:
    """Consumed group ids (the newest `remembered`), and entries (id → bytes) that are not acknowledged yet."""

    def __init__(
        self, seen: Iterable[str] = (), unacknowledged: Iterable[str] = (), *, remembered: int = _REMEMBERED
    ) -> None:
        self._remembered = remembered
        self._seen = dict.fromkeys(seen)
        self._unacknowledged = dict.fromkeys(unacknowledged, 0)

    def has_seen(self, group_id: str) -> bool:
        """Whether a group was consumed before."""
        return group_id in self._seen

    def consume(self, arrival: Arrival) -> None:
        """Enter a group that was trained on or dropped."""
        self._seen[arrival.group.group_id] = None
        self._unacknowledged[arrival.entry_id] = arrival.bytes
        while len(self._seen) > self._remembered:
            del self._seen[next(iter(self._seen))]

    def forget(self, entry_ids: Iterable[str]) -> None:
        """Strike entries that have been acknowledged."""
        for entry_id in entry_ids:
            self._unacknowledged.pop(entry_id, None)

    @property
    def seen(self) -> tuple[str, ...]:
        """Consumed group ids, oldest first."""
        return tuple(self._seen)

    @property
    def unacknowledged(self) -> tuple[str, ...]:
        """Entries to acknowledge when the next checkpoint commits, oldest first."""
        return tuple(self._unacknowledged)

    @property
    def unacknowledged_bytes(self) -> int:
        """What the unacknowledged entries hold in Redis."""
        return sum(self._unacknowledged.values())
