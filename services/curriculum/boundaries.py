"""Where a demonstration may be cut: after its steps, after its sentences, or anywhere. All in numbers of tokens.

A token that reaches over the end of a part belongs to that part. The end of the text is no boundary: a hint is never
the whole demonstration.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from common.config.hints import Cut
from common.trajectory import Demonstration

# A sentence ends with its punctuation and whatever closes after it, if white space and more text follow; or with its
# line, blank lines included. So "3.14" is not cut, and neither is the end of the text.
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’»)\]}]*(?=[^\S\n]+\S)|\n(?:[^\S\n]*\n)*")


def step_boundaries(text: str, token_starts: Sequence[int], separator: str) -> tuple[int, ...]:
    """Numbers of leading tokens after which a step ends. token_starts: where each token begins in `text`."""
    places: list[int] = []
    position = text.find(separator)
    while position >= 0:
        places.append(position + len(separator))
        position = text.find(separator, places[-1])
    return _counts(places, token_starts)


def sentence_boundaries(text: str, token_starts: Sequence[int]) -> tuple[int, ...]:
    """Numbers of leading tokens after which a sentence ends. Blank lines before the first are part of it."""
    begun = len(text) - len(text.lstrip())
    ends = (found.end() for found in _SENTENCE_END.finditer(text))
    return _counts((end for end in ends if end > begun), token_starts)


def _counts(places: Iterable[int], token_starts: Sequence[int]) -> tuple[int, ...]:
    """How many tokens begin before each of these ascending places in the text, each number once.

    By where tokens begin, not by where they end: one character may take several tokens, which all end with it.
    """
    counts: list[int] = []
    for place in places:
        count = bisect_left(token_starts, place)
        if count < len(token_starts) and (not counts or count > counts[-1]):
            counts.append(count)
    return tuple(counts)


def portions(boundaries: Sequence[int], most: int) -> tuple[int, ...]:
    """The cuts between at most `most` nearly equal groups of the parts that `boundaries` separate.

    n boundaries separate n+1 parts; m groups have m-1 cuts between them. The k-th cut comes after ⌊k(n+1)/m⌋ parts.
    """
    parts = len(boundaries) + 1
    groups = min(most, parts)
    return tuple(boundaries[k * parts // groups - 1] for k in range(1, groups))


def places_to_cut(demonstration: Demonstration, cut: Cut) -> Sequence[int]:
    """The hint lengths at which a demonstration may be cut, ascending; never 0 and never all of it."""
    return range(1, len(demonstration.tokens)) if cut is Cut.TOKEN else demonstration.boundaries


def rounded_down(length: int, demonstration: Demonstration, cut: Cut) -> int:
    """The longest hint of at most `length` tokens that ends where it may; 0 if there is none."""
    places = places_to_cut(demonstration, cut)
    below = bisect_right(places, length)
    return places[below - 1] if below else 0
