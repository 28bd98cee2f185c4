"""Words: the text of tokens, piece by piece, with the run's tokenizer and without torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer

from common.settings import ModelSettings

TRY_AGAIN_S = 60.0
_UNFINISHED = "\ufffd"
# A character of UTF-8 has at most four bytes; whatever is unfinished after that many tokens will stay so.
_LONGEST_CHARACTER = 4


@dataclass(frozen=True, slots=True)
class Spelling:
    """How tokens are written. tokenizer: None if there is none, then ids stand for words. notice: why there is none."""

    tokenizer: Tokenizer | None
    notice: str = ""

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        if self.tokenizer is None:
            return "".join(_by_id(token) for token in tokens)
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The part of the text that each token adds; together they are the text.

        A character that several tokens make up stands with the last of them, so the others may add nothing.
        """
        if self.tokenizer is None:
            return [_by_id(token) for token in tokens]
        pieces: list[str] = []
        # A token is decoded after those just before it, as some tokenizers write the first word differently.
        known, begun = 0, 0
        before = ""
        for end in range(1, len(tokens) + 1):
            if self.tokenizer.id_to_token(tokens[end - 1]) is None:  # ids beyond the vocabulary: padding of the model
                pieces.append(_by_id(tokens[end - 1]))
                known, begun, before = end, end, ""
                continue
            text = self.text(tokens[known:end])
            waits = text.endswith(_UNFINISHED) and end < len(tokens) and end - begun < _LONGEST_CHARACTER
            if waits:
                pieces.append("")
                continue
            pieces.append(text[len(before) :])
            known, begun = begun, end
            before = self.text(tokens[known:begun])
        return pieces


class Words:
    """The spelling of a run's tokens, read when it is first asked for. clock: seconds that only grow."""

    def __init__(self, model: ModelSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = model.path
        self._clock = clock
        self._turn = asyncio.Lock()
        self._spelling: Spelling | None = None
        self._tried_s = 0.0

    async def spelling(self) -> Spelling:
        """How tokens are written. A tokenizer that could not be read is tried again after TRY_AGAIN_S."""
        async with self._turn:
            found = self._spelling
            if found is None or (found.tokenizer is None and self._clock() - self._tried_s >= TRY_AGAIN_S):
                self._tried_s = self._clock()
                found = self._spelling = await asyncio.to_thread(_read, self._path)
        return found


def _read(path: str) -> Spelling:
    """The tokenizer of a model directory or of a hub name."""
    file = Path(path) / "tokenizer.json"
    try:
        if Path(path).is_absolute():
            return Spelling(Tokenizer.from_file(str(file)))
        # Only what this machine has: nobody who wants to read a group should wait for a hub.
        return Spelling(Tokenizer.from_file(hf_hub_download(path, file.name, local_files_only=True)))
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exceptions, and what is shown must not end us
        reason = str(error).partition("\n")[0][:200]
        return Spelling(None, f"the tokenizer of {path} cannot be read ({reason}): tokens are shown by their ids")


def _by_id(token: int) -> str:
    return f"⟨{token}⟩"
