"""The writing of a step: the arrays of all its micro-batches, made at once and then sliced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.trajectory import Logprobs, Source, Tokens, Trajectory
from learner.batch import MicroBatch, Place, Span, Spans, TokenBatch
from learner.packing.cut import Piece

Integers = NDArray[np.int64]
Places = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Credited:
    """A trajectory that an algorithm sees, with its advantage."""

    place: Place
    trajectory: Trajectory
    advantage: float


class Written(NamedTuple):
    """The micro-batches of a plan, and the response tokens of all of them together."""

    micro_batches: tuple[MicroBatch, ...]
    tokens: TokenBatch


class _Seat(NamedTuple):
    """Where a trajectory's tokens stand: the `shared` leading ones from shared_start, the others from `start`."""

    member: int
    start: int
    shared_start: int = 0
    shared: int = 0

    def moved(self, by: int) -> _Seat:
        """The same seat so many positions on."""
        return _Seat(self.member, self.start + by, self.shared_start + by, self.shared)


class _Plot(NamedTuple):
    """The positions of one micro-batch, and what stands there. lengths: of its rows, without padding."""

    seats: tuple[_Seat, ...]
    lengths: tuple[int, ...]
    spans: tuple[Span, ...] = ()

    @property
    def width(self) -> int:
        """Positions of a row."""
        return max(self.lengths)

    @property
    def size(self) -> int:
        """Positions of all its rows."""
        return len(self.lengths) * self.width


def written(pieces: Sequence[Piece | None], members: Sequence[Credited]) -> Written:
    """The micro-batches that `pieces` describe; the numbers in their rows are indices into `members`."""
    sizes = [len(member.trajectory.tokens) for member in members]
    plots = [_plot(piece, sizes) for piece in pieces]
    starts = [0, *accumulate(plot.size for plot in plots)]  # of the micro-batches among the step's positions
    seats = list(chain.from_iterable(plot.seats for plot in plots))
    chosen = [members[seat.member] for seat in seats]
    sizes_N = np.array([sizes[seat.member] for seat in seats], dtype=np.int64)
    first_N1 = np.concatenate([[0], np.cumsum(sizes_N)])  # of the trajectories among the step's tokens
    place_F = np.arange(first_N1[-1], dtype=np.int32)  # of a token in its trajectory
    place_F -= np.repeat(first_N1[:-1].astype(np.int32), sizes_N)
    cell_F = _cells(seats, place_F, sizes_N)
    sources_F = _joined([member.trajectory.sources for member in chosen], np.uint8)
    tokens_F = _joined([member.trajectory.tokens for member in chosen], np.int32)
    is_response_F = sources_F != np.uint8(Source.PROMPT)
    is_response_F[first_N1[:-1][sizes_N > 0]] = False  # nothing predicts a trajectory's first token
    response_T = np.flatnonzero(is_response_F)
    ends_N1 = np.searchsorted(response_T, first_N1)
    tokens = _token_batch(chosen, response_T, np.diff(ends_N1), tokens_F, sources_F)
    moved = [seat.moved(start) for plot, start in zip(plots, starts, strict=False) for seat in plot.seats]
    arrays = _Arrays(
        ids=_laid(tokens_F, moved, first_N1, starts[-1]),
        positions=_laid(place_F, moved, first_N1, starts[-1]) if any(plot.spans for plot in plots) else None,
        predictor_T=cell_F.take(response_T - 1).astype(np.int64),
        places=tuple(member.place for member in chosen),
        tokens=tokens,
    )
    micro_batches: list[MicroBatch] = []
    last = 0
    for plot, start in zip(plots, starts, strict=False):
        first, last = last, last + len(plot.seats)
        tokens_of = slice(int(ends_N1[first]), int(ends_N1[last]))
        micro_batches.append(arrays.micro_batch(plot, start, tokens_of, slice(first, last)))
    return Written(tuple(micro_batches), tokens)


@dataclass(frozen=True, slots=True, eq=False)
class _Arrays:
    """The arrays of a whole step, of which micro-batches are slices. ids, positions: of every position, [P]."""

    ids: Integers
    positions: Integers | None
    predictor_T: Integers
    places: tuple[Place, ...]
    tokens: TokenBatch

    def micro_batch(self, plot: _Plot, start: int, tokens: slice, sequences: slice) -> MicroBatch:
        """The micro-batch whose positions begin at `start`, with these of the step's tokens and trajectories."""
        area = slice(start, start + plot.size)
        return MicroBatch(
            input_ids=_tensor(self.ids[area]).view(len(plot.lengths), plot.width),
            lengths_B=torch.tensor(plot.lengths, dtype=torch.int64),
            predictor_T=_tensor(self.predictor_T[tokens]),
            tokens=self.tokens.part(tokens, sequences),
            places=self.places[sequences],
            spans=spans_of(plot.spans, self.positions[area]) if plot.spans and self.positions is not None else None,
        )


def _plot(piece: Piece | None, sizes: Sequence[int]) -> _Plot:
    """Where the trajectories of a piece stand. One without any is a single position of padding."""
    if piece is None:
        return _Plot((), (1,))
    if not piece.packed:
        width = max(row.tokens for row in piece.rows)
        seats = tuple(_Seat(row.members[0], number * width) for number, row in enumerate(piece.rows))
        return _Plot(seats, tuple(row.tokens for row in piece.rows))
    placed: list[_Seat] = []
    spans: list[Span] = []
    at = 0
    for row in piece.rows:
        beginning = Span(at, row.shared)
        spans.append(beginning)
        at += row.shared
        for member in row.members:
            placed.append(_Seat(member, at, beginning.start, row.shared))
            spans.append(Span(at, max(sizes[member], 1) - row.shared, beginning.start, row.shared))
            at += spans[-1].length
    return _Plot(tuple(placed), (at,), tuple(span for span in spans if span.length))


def _cells(seats: Sequence[_Seat], place_F: Places, sizes_N: Integers) -> Places:
    """The position of every token in its micro-batch.    [F]"""
    own_N = np.array([seat.start - seat.shared for seat in seats], dtype=np.int32)
    cell_F = place_F + np.repeat(own_N, sizes_N)
    shared_N = np.array([seat.shared for seat in seats], dtype=np.int32)
    if shared_N.any():
        common_N = np.array([seat.shared_start for seat in seats], dtype=np.int32)
        is_shared_F = place_F < np.repeat(shared_N, sizes_N)
        np.add(place_F, np.repeat(common_N, sizes_N), out=cell_F, where=is_shared_F)
    return cell_F


def spans_of(spans: tuple[Span, ...], positions: Integers) -> Spans:
    """Spans that together are a row, in order, with each token's place in its own trajectory."""
    queries = [span.length for span in spans]
    keys = [span.keys for span in spans]
    attended: Tensor | None = None
    if queries != keys:
        runs = chain.from_iterable(
            (
                np.arange(span.prefix_start, span.prefix_start + span.prefix_length),
                np.arange(span.start, span.start + span.length),
            )
            for span in spans
        )
        attended = _tensor(np.concatenate(list(runs)))
    return Spans(
        spans=spans,
        position_ids=_tensor(positions)[None],
        query_ends_K1=torch.tensor([0, *accumulate(queries)], dtype=torch.int32),
        key_ends_K1=torch.tensor([0, *accumulate(keys)], dtype=torch.int32),
        keys=attended,
        longest_query=max(queries),
        longest_key=max(keys),
    )


def _token_batch(
    members: Sequence[Credited],
    response_T: Integers,
    counts_N: Integers,
    tokens_F: Tokens,
    sources_F: NDArray[np.uint8],
) -> TokenBatch:
    trajectories = [member.trajectory for member in members]
    advantages_N = np.array([member.advantage for member in members], dtype=np.float64)
    behaviour_F = _joined([t.behaviour_logprobs for t in trajectories], np.float32)
    sources_T = sources_F.take(response_T)
    expert_T, has_expert_T = _expert_logprobs(trajectories, response_T, sources_T)
    return TokenBatch(
        labels_T=_tensor(tokens_F.take(response_T).astype(np.int64)),
        sources_T=_tensor(sources_T),
        advantages_T=_tensor(np.repeat(advantages_N, counts_N)),
        behaviour_logprobs_T=_tensor(behaviour_F.take(response_T)),
        expert_logprobs_T=_tensor(expert_T),
        has_expert_T=_tensor(has_expert_T),
        segment_T=_tensor(np.repeat(np.arange(len(members)), counts_N)),
        rewards_N=torch.tensor([t.reward for t in trajectories], dtype=torch.float64),
        is_demonstration_N=torch.tensor([t.is_demonstration for t in trajectories], dtype=torch.bool),
    )


def _expert_logprobs(
    trajectories: Sequence[Trajectory], response_T: Integers, sources_T: NDArray[np.uint8]
) -> tuple[Logprobs, NDArray[np.bool_]]:
    """log π_φ where the expert wrote the token and it is known, else 0; and where it is known.    [T], [T]"""
    if all(t.expert_logprobs is None for t in trajectories):
        return np.zeros(len(response_T), dtype=np.float32), np.zeros(len(response_T), dtype=np.bool_)
    lengths = [len(t.tokens) for t in trajectories]
    given = [
        np.zeros(n) if t.expert_logprobs is None else t.expert_logprobs
        for t, n in zip(trajectories, lengths, strict=True)
    ]
    given_F = _joined(given, np.float32)
    known_F = np.repeat([t.expert_logprobs is not None for t in trajectories], lengths)
    wrote_T = (sources_T == Source.HINT) | (sources_T == Source.DEMONSTRATION)
    known_T = wrote_T & known_F.take(response_T)
    return np.where(known_T, given_F.take(response_T), np.float32(0.0)), known_T


def _joined(arrays: Sequence[NDArray[Any]], dtype: type[Any]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype=dtype), *arrays], dtype=dtype, casting="unsafe")


def _laid(values_F: NDArray[Any], seats: Sequence[_Seat], first_N1: Integers, size: int) -> Integers:
    """The values of all tokens at their positions; zero, which is padding, where no token stands."""
    array = np.zeros(size, dtype=np.int64)
    ends: list[int] = first_N1.tolist()
    for seat, first, end in zip(seats, ends, ends[1:], strict=False):  # whole runs: scattering is far slower
        own = first + seat.shared
        array[seat.start : seat.start + end - own] = values_F[own:end]
        if seat.shared:
            array[seat.shared_start : seat.shared_start + seat.shared] = values_F[first:own]
    return array


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]
