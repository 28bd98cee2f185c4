"""The cut of a step: which rows make a micro-batch, and which micro-batches a rank computes. About lengths only."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learner.packing.layout import Layout, Share
from learner.packing.shared_prompts import Row

_COST = 256
"""What one more micro-batch costs, in positions: so much padding is rather computed than another forward made."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one micro-batch: one after another if packed, else padded to the longest. tokens: with padding."""

    rows: tuple[Row, ...]
    packed: bool
    tokens: int


def pieces_of(rows: Sequence[Row], layout: Layout, share: Share) -> list[Piece | None]:
    """The micro-batches of a share, the largest first; None is one without a row.

    Every rank comes to the same cut by itself, and takes its part of it. None exceeds layout.tokens unless a single row
    does. The ranks' numbers of micro-batches are equal and their tokens nearly so.
    """
    if share.size == 1:
        return [*_longest_first(_cut(rows, layout.tokens, layout.packed))]
    return _dealt(_evenly_cut(rows, layout, share.size), share)


def _evenly_cut(rows: Sequence[Row], layout: Layout, ranks: int) -> list[Piece]:
    """A cut whose number of micro-batches the ranks share without remainder if the rows suffice, of like size."""
    best = _cut(rows, layout.tokens, layout.packed)
    number = -(-len(best) // ranks) * ranks
    low, high = 1, layout.tokens
    while low < high:  # the smallest limit that does not make more of them
        middle = (low + high) // 2
        pieces = _cut(rows, middle, layout.packed)
        if len(pieces) <= number:
            best, high = pieces, middle
        else:
            low = middle + 1
    return best


def _dealt(pieces: Sequence[Piece], share: Share) -> list[Piece | None]:
    """In each round every rank gets one, the largest the rank that has least so far."""
    taken: list[Piece | None] = []
    loads = [0] * share.size
    ordered = sorted(pieces, key=lambda piece: -piece.tokens)
    for start in range(0, len(ordered), share.size):
        hand = ordered[start : start + share.size]
        order = sorted(range(share.size), key=lambda rank: (loads[rank], rank))
        mine: Piece | None = None
        for rank, piece in zip(order, hand, strict=False):
            loads[rank] += piece.tokens
            mine = piece if rank == share.rank else mine
        taken.append(mine)
    return taken


def _longest_first(pieces: Sequence[Piece]) -> list[Piece]:
    """By the longest row, then by all tokens: a lack of memory then shows at once."""
    return sorted(pieces, key=lambda piece: (-max(row.tokens for row in piece.rows), -piece.tokens))


def _cut(rows: Sequence[Row], limit: int, packed: bool) -> list[Piece]:
    together = [row for row in rows if packed or row.shared]
    padded = [row for row in rows if not (packed or row.shared)]
    return _packed(together, limit) + _padded(padded, limit)


def _padded(rows: Sequence[Row], limit: int) -> list[Piece]:
    """Rows of like length together, so that positions and number of micro-batches cost least."""
    ordered = sorted(rows, key=lambda row: -row.tokens)
    count = len(ordered)
    numbers = np.arange(1, count + 1)
    costs = np.zeros(count + 1)  # of the rows from this one on
    ends = [0] * count  # of the micro-batch that begins with this row
    for first in range(count - 1, -1, -1):
        width = ordered[first].tokens
        most = min(count - first, max(1, limit // width))
        cost = costs[first + 1 : first + most + 1] + width * numbers[:most]
        taken = most - int(np.argmin(cost[::-1]))
        costs[first] = cost[taken - 1] + _COST
        ends[first] = first + taken
    pieces: list[Piece] = []
    first = 0
    while first < count:
        chosen = tuple(ordered[first : ends[first]])
        pieces.append(Piece(chosen, False, chosen[0].tokens * len(chosen)))
        first = ends[first]
    return pieces


def _packed(rows: Sequence[Row], limit: int) -> list[Piece]:
    """As few as possible, or nearly, and of like size."""
    large = [Piece((row,), True, row.tokens) for row in rows if row.tokens >= limit]
    small = sorted((row for row in rows if row.tokens < limit), key=lambda row: -row.tokens)
    number = -(-sum(row.tokens for row in small) // limit)
    while (spread := _spread(small, number, limit)) is None:
        number += 1
    return large + spread


def _spread(rows: Sequence[Row], number: int, limit: int) -> list[Piece] | None:
    """Rows spread over so many micro-batches, each row to the one with least; None if one then exceeds the limit."""
    loads = [(0, i) for i in range(number)]
    chosen: list[list[Row]] = [[] for _ in loads]
    for row in rows:
        load, i = loads[0]
        if load + row.tokens > limit:
            return None
        heapq.heapreplace(loads, (load + row.tokens, i))
        chosen[i].append(row)
    return [Piece(tuple(rows), True, load) for load, i in sorted(loads) if (rows := chosen[i])]
