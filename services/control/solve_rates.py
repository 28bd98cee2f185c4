"""Solve rates: which training prompts the policy solves how often, read in small parts and ranked."""

from __future__ import annotations

import asyncio
import heapq
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from common.keys import Keys

_PART = 250
_MOST_ATTEMPTS = 999_999_999
Rank = tuple[float, int]
# What the curriculum writes: <data set>:<row>.
_ROW = re.compile(r"[a-z0-9_]+:([0-9]{1,12})")


@dataclass(frozen=True, slots=True)
class SolveRate:
    """What became of a prompt's rollouts. last: mean reward of the newest ones. row: in the data set.

    hinted: (attempts, solved) of rollouts that continued a hint. anchor: hint length that its last search found.
    """

    prompt_id: str
    row: int
    attempts: int
    solved: int
    last: float | None
    hinted: tuple[int, int] | None
    anchor: int | None

    @property
    def rate(self) -> float:
        """The share of attempts that were solved."""
        return self.solved / self.attempts

    @property
    def rank(self) -> Rank:
        """What prompts are ordered by: hardest first."""
        return self.rate, self.row


@dataclass(frozen=True, slots=True)
class Band:
    """Which prompts are asked for: tried at least so often, and solved in a share from `low` to `high`."""

    min_attempts: int
    low: float
    high: float

    def holds(self, prompt: SolveRate) -> bool:
        """Whether a prompt is one of them."""
        near = 1e-9  # 0.1 is no number of the machine, and 1/10 of the attempts is meant by it
        return prompt.attempts >= self.min_attempts and self.low - near <= prompt.rate <= self.high + near


async def read_solve_rates(redis: Redis, keys: Keys) -> dict[bytes, bytes]:
    """Every prompt's record. In parts, as reading tens of thousands at once would keep everyone else waiting."""
    client: Any = redis
    records: dict[bytes, bytes] = {}
    cursor = 0
    while True:
        cursor, part = await client.hscan(keys.prompts, cursor, count=_PART)
        records |= part
        if cursor == 0:
            return records


@dataclass(frozen=True, slots=True)
class Page:
    """Some prompts of a band, hardest first. total: how many the band has. more: whether others follow."""

    total: int
    prompts: list[SolveRate]
    more: bool


async def page_of(records: Mapping[bytes, bytes], band: Band, behind: Rank | None, limit: int) -> Page:
    """Up to `limit` prompts of a band that are ranked behind a place, or the first ones."""
    return await asyncio.to_thread(_page, records, band, behind, limit)


def _page(records: Mapping[bytes, bytes], band: Band, behind: Rank | None, limit: int) -> Page:
    total = 0

    def matching() -> Iterator[SolveRate]:
        nonlocal total
        for name, text in records.items():
            prompt = _solve_rate(name, text)
            if prompt is not None and band.holds(prompt):
                total += 1
                if behind is None or prompt.rank > behind:
                    yield prompt

    # One after the other: sorting or collecting them all is a long step that no other thread can interrupt.
    first = heapq.nsmallest(limit + 1, matching(), key=lambda prompt: prompt.rank)
    return Page(total, first[:limit], more=len(first) > limit)


def _solve_rate(name: bytes, text: bytes) -> SolveRate | None:
    """A prompt's record; None if it was not tried from its bare prompt yet, or is no such record."""
    row = _ROW.fullmatch(name.decode("utf-8", "replace"))
    try:
        told = json.loads(text)
        attempts, solved = int(told["attempts"]), int(told["solved"])
        hinted = told.get("hinted")
        pair = None if hinted is None else (int(hinted["attempts"]), int(hinted["solved"]))
        last, anchor = told.get("last"), told.get("anchor")
        known = float(last) if isinstance(last, int | float) and math.isfinite(last) else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    if row is None or not 0 <= solved <= attempts or not 1 <= attempts <= _MOST_ATTEMPTS:
        return None
    return SolveRate(row[0], int(row[1]), attempts, solved, known, pair, anchor if isinstance(anchor, int) else None)
