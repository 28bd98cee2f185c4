"""The prompts of a run: tokenised, checked against the context, in a seeded order that can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.errors import SettingsError
from common.settings import DatasetSettings
from common.trajectory import Demonstration, Tokens
from services.curriculum.rows import Row, read_rows
from services.curriculum.tokens import Tokeniser


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One problem with its prompt in tokens. Demonstrations stay text until they are asked for."""

    prompt_id: str
    tokens: Tokens
    answer: str
    demonstrations: tuple[str, ...]


class PromptSet:
    """All problems of a data set. `name` is part of their ids."""

    def __init__(self, name: str, prompts: list[Prompt], tokeniser: Tokeniser) -> None:
        self.name = name
        self.prompts = prompts
        self._tokeniser = tokeniser

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def with_demonstrations(self) -> int:
        """How many problems have at least one demonstration."""
        return sum(bool(p.demonstrations) for p in self.prompts)

    def demonstrations(self, prompt: Prompt, longest: int) -> tuple[Demonstration, ...]:
        """The demonstrations of a problem that have at most `longest` tokens and fit in the context."""
        room = min(longest, self._tokeniser.context - len(prompt.tokens))
        made = (self._tokeniser.demonstration(text) for text in prompt.demonstrations)
        return tuple(d for d in made if len(d.tokens) <= room)


Progress = Callable[[int, int], None]


def load_prompts(
    name: str, source: DatasetSettings, tokeniser: Tokeniser, progress: Progress | None = None
) -> PromptSet:
    """Read and tokenise a data set. progress(done, all) is called now and then."""
    rows = read_rows(source)
    prompts: list[Prompt] = []
    for row in rows:
        prompts.append(_prompt(name, row, source, tokeniser))
        if progress is not None and len(prompts) % 1000 == 0:
            progress(len(prompts), len(rows))
    return PromptSet(name, prompts, tokeniser)


def _prompt(name: str, row: Row, source: DatasetSettings, tokeniser: Tokeniser) -> Prompt:
    tokens = tokeniser.prompt(row.prompt)
    if len(tokens) >= tokeniser.context:
        raise SettingsError(
            f"the prompt in row {row.number + 1} of {source.path} has {len(tokens)} tokens, which leaves no room for a "
            f"response in the model's context of {tokeniser.context}: shorten it, or raise [model] max_model_len"
        )
    if len(tokens) == 0:
        raise SettingsError(f"the prompt in row {row.number + 1} of {source.path} has no tokens: remove the row")
    return Prompt(f"{name}:{row.number}", tokens, row.answer, row.demonstrations)


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
