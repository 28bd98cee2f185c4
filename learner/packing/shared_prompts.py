"""Rows: what a forward computes in one piece, a trajectory or several of a group that begin with the same tokens.

What they share, the prompt and perhaps a hint, is computed once. G responses of R tokens to a prompt of P tokens are
P + GR tokens of work instead of G(P + R).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from common.trajectory import Tokens, Trajectory

WORTHWHILE = 1.5
"""Tokens without sharing over tokens with it, below which a group is not shared."""


@dataclass(frozen=True, slots=True)
class Row:
    """members: which trajectories of the step. shared: how many leading tokens all of them share. tokens: its cells."""

    members: tuple[int, ...]
    shared: int
    tokens: int


def single_rows(trajectories: Sequence[Trajectory], first: int) -> list[Row]:
    """A row for each; they are number `first` of the step and those that follow."""
    return [Row((first + i,), 0, max(1, len(t.tokens))) for i, t in enumerate(trajectories)]


def shared_rows(trajectories: Sequence[Trajectory], first: int, budget: int) -> list[Row]:
    """The rows of one group, none of several trajectories over `budget` tokens; shared only where it is worthwhile."""
    alone = single_rows(trajectories, first)
    shared = _common_beginning([t.tokens for t in trajectories])
    # The saving of a part of the group is less than that of the whole: most groups are done with here.
    if not _is_worthwhile([len(t.tokens) for t in trajectories], shared):
        return alone
    rows: list[Row] = []
    for chosen in _chunks([len(t.tokens) - shared for t in trajectories], budget - shared):
        lengths = [len(trajectories[i].tokens) for i in chosen]
        if _is_worthwhile(lengths, shared):
            rows.append(Row(tuple(first + i for i in chosen), shared, _cells(lengths, shared)))
        else:
            rows += [alone[i] for i in chosen]
    return rows


def _common_beginning(sequences: Sequence[Tokens]) -> int:
    """How many leading tokens all of them have in common."""
    common = len(sequences[0])
    for one, other in pairwise(sequences):
        common = min(common, len(other))
        differs = one[:common] != other[:common]
        if differs.any():
            common = int(np.argmax(differs))
    return common


def _is_worthwhile(lengths: Sequence[int], shared: int) -> bool:
    return shared > 0 and len(lengths) > 1 and sum(lengths) >= WORTHWHILE * _cells(lengths, shared)


def _cells(lengths: Sequence[int], shared: int) -> int:
    return shared + sum(length - shared for length in lengths)


def _chunks(own: Sequence[int], room: int) -> list[list[int]]:
    """Trajectories in order, as many together as have room for their own tokens; as few chunks as that takes."""
    chunks: list[list[int]] = []
    left = -1
    for i, tokens in enumerate(own):
        if tokens > left:
            chunks.append([])
            left = room
        chunks[-1].append(i)
        left -= tokens
    return chunks
