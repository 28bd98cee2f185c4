"""The seeded order of a prompt set, which can be resumed anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the endless order of a prompt set: every epoch is a permutation of its own."""

    epoch: int = 0
    position: int = 0


class Order:
    """The seeded order of a prompt set. The same seed and cursor give the same prompts, whatever happened before."""

    def __init__(self, size: int, seed: int, shuffle: bool) -> None:
        self._size = size
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = -1
        self._permutation = np.arange(size)

    def at(self, cursor: Cursor) -> tuple[int, Cursor]:
        """The index of the prompt at a place, and the place after it."""
        if self._shuffle and cursor.epoch != self._epoch:
            self._permutation = np.random.default_rng([self._seed, cursor.epoch]).permutation(self._size)
            self._epoch = cursor.epoch
        following = Cursor(cursor.epoch, cursor.position + 1)
        if following.position >= self._size:
            following = Cursor(cursor.epoch + 1, 0)
        return int(self._permutation[cursor.position % self._size]), following
