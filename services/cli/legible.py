"""Text that came from elsewhere (a model, a data set, another operator), made fit for a terminal."""

from __future__ import annotations

import unicodedata

_LINE_END = "⏎"


def legible(text: object) -> str:
    """The text with whatever would move the cursor, change colours or hide written out. Line ends stay."""
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in str(text))


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"


def one_line(text: object, longest: int = 200) -> str:
    """The same in one line of a cell, cut off where it is long."""
    line = legible(str(text)[: longest + 1]).replace("\n", _LINE_END)
    return line if len(line) <= longest else line[: longest - 1] + "…"
