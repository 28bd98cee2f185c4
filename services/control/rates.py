"""Rates: how often one client may call. A bucket for each client and kind of call, refilled as time passes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

BURST_S = 2.0
MOST_BUCKETS = 4096


class Call(Enum):
    """What a call does: it reads, or it changes something."""

    READ = auto()
    WRITE = auto()


@dataclass(slots=True)
class _Bucket:
    """Calls that a client may still make at once, as they were at a time."""

    calls: float
    at_s: float


class Rates:
    """Counts the calls of every client. clock: seconds that only grow.

    A client may make two seconds' worth of calls at once, and one in any case. No more than MOST_BUCKETS are kept: who
    has not called for longest is forgotten first, and starts again with a full one.
    """

    def __init__(self, reads_per_s: float, writes_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = {Call.READ: reads_per_s, Call.WRITE: writes_per_s}
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, Call], _Bucket] = OrderedDict()

    def wait_s(self, client: str, call: Call) -> float:
        """Seconds until `client` may make this call; 0 if it may now, and then it is counted."""
        rate = self._per_s[call]
        if rate == 0:
            return 0.0
        now_s, most = self._clock(), max(1.0, BURST_S * rate)
        bucket = self._buckets.get((client, call))
        if bucket is None:
            bucket = self._buckets[client, call] = _Bucket(most, now_s)
            if len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end((client, call))
        bucket.calls = min(most, bucket.calls + rate * (now_s - bucket.at_s))
        bucket.at_s = now_s
        if bucket.calls < 1:
            return (1 - bucket.calls) / rate
        bucket.calls -= 1
        return 0.0
