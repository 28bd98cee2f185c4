"""Demonstrations that cannot be used: set aside with the reason, counted once each, and never in silence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from common.events import EventKind
from common.metrics import CurriculumMetrics
from common.process import Process
from common.streams import UnusableRecord

_SHOWN = 2000
_RECORDED_AT_ONCE = 200
QUIET_S = 60.0


class Reason(StrEnum):
    """Why a demonstration cannot be used."""

    EMPTY = "empty"
    SPECIAL_TOKENS = "special_tokens"
    TOO_LONG = "too_long"
    RECORDED_LOGPROBS = "recorded_logprobs"
    UNSCORABLE = "unscorable"


_SAID = {
    Reason.EMPTY: "empty",
    Reason.SPECIAL_TOKENS: "with special tokens inside",
    Reason.TOO_LONG: "too long",
    Reason.RECORDED_LOGPROBS: "with recorded log-probs that do not fit",
    Reason.UNSCORABLE: "that the expert could not score",
}


class UnfitDemonstration(ValueError):
    """A demonstration that cannot be used, whatever else happens; says why, without its name."""

    def __init__(self, reason: Reason, why: str) -> None:
        self.reason = reason
        super().__init__(why)


@dataclass(frozen=True, slots=True)
class Unusable:
    """A demonstration that was set aside. identity: it is counted once under this name. why: one sentence."""

    identity: str
    reason: Reason
    why: str
    text: str

    def record(self) -> UnusableRecord:
        """What the quarantine keeps of it."""
        payload = json.dumps({"demonstration": self.text[:_SHOWN], "characters": len(self.text)})
        return UnusableRecord(self.identity, self.why, payload.encode())


class SetAside:
    """What one data set had set aside so far. demonstrations: how many it has."""

    def __init__(self, dataset: str, demonstrations: int) -> None:
        self.dataset = dataset
        self.demonstrations = demonstrations
        self.totals: Counter[Reason] = Counter()
        self._seen: set[str] = set()
        self._news: list[Unusable] = []

    def note(self, unusable: Unusable) -> None:
        """Take one in; the same one again changes nothing."""
        if unusable.identity not in self._seen:
            self._seen.add(unusable.identity)
            self._news.append(unusable)
            self.totals[unusable.reason] += 1

    def news(self) -> list[Unusable]:
        """What came in since the last call."""
        news, self._news = self._news, []
        return news

    def sentence(self) -> str:
        """The totals in one sentence; "" if there is nothing to say."""
        if not self.totals:
            return ""
        parts = ", ".join(f"{count} {_SAID[reason]}" for reason, count in sorted(self.totals.items()))
        return (
            f"of the {self.demonstrations} demonstrations in {self.dataset!r}, {self.totals.total()} cannot be used "
            f"and were set aside: {parts}"
        )


class SetAsideReport:
    """Tells everyone what was set aside: the quarantine each, the metrics the number, operators the totals.

    While more keeps coming (a large data set is looked at as it is used), the totals are told at most once a minute.
    """

    def __init__(
        self, process: Process, metrics: CurriculumMetrics, sets: Sequence[SetAside], clock_s: Callable[[], float]
    ) -> None:
        self._process = process
        self._metrics = metrics
        self._sets = sets
        self._clock_s = clock_s
        self._told_s = float("-inf")
        self._untold: set[str] = set()

    async def tell(self) -> bool:
        """Tell what is new. Whether anything was."""
        news = [unusable for known in self._sets for unusable in known.news()]
        for start in range(0, len(news), _RECORDED_AT_ONCE):
            await self._keep(news[start : start + _RECORDED_AT_ONCE])
        if news:
            self._untold |= {known.dataset for known in self._sets if known.totals}
        if self._untold and self._clock_s() - self._told_s >= QUIET_S:
            text = "; ".join(known.sentence() for known in self._sets if known.dataset in self._untold)
            self._told_s, self._untold = self._clock_s(), set()
            await self._process.tell(EventKind.NOTICE, {"text": f"{text}. Each is in the quarantine with the reason"})
        return bool(news)

    async def _keep(self, news: Sequence[Unusable]) -> None:
        process, records = self._process, [unusable.record() for unusable in news]
        await process.patiently(
            "record what cannot be used", lambda: process.delivery.record_unusable(records, by=process.name)
        )
        process.metrics.quarantined.labels("demonstrations").inc(len(news))
        for unusable in news:
            self._metrics.set_aside.labels(unusable.reason.value).inc()
