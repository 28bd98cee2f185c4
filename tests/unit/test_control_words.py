"""The text of tokens piece by piece: together the pieces are the text, whatever the tokenizer makes of characters."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import write_tokenizer
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel

from common.settings import ModelSettings
from services.control.words import TRY_AGAIN_S, Spelling, Words


def of_bytes() -> Tokenizer:
    """Every byte is a token, as the rarest characters are for GPT-2, Llama 3 and Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


def of_words() -> Tokenizer:
    """Words carry the space before them, and the first one's is not written: SentencePiece."""
    tokenizer = Tokenizer(WordLevel({"▁the": 0, "▁sum": 1, "s": 2, "▁": 3}, unk_token="s"))
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
    return tokenizer


@given(st.text(max_size=40))
def test_pieces_of_bytes_are_the_text_whatever_it_is(text: str) -> None:
    tokenizer = of_bytes()
    tokens = tokenizer.encode(text).ids
    pieces = Spelling(tokenizer).pieces(tokens)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == text


def test_a_character_of_several_tokens_stands_with_the_last_of_them() -> None:
    tokenizer = of_bytes()
    tokens = tokenizer.encode("a✓b<eos>").ids
    assert Spelling(tokenizer).pieces(tokens) == ["a", "", "", "✓", "b", "<eos>"]


def test_a_character_that_is_never_finished_is_shown_as_such_and_what_follows_is_not_lost() -> None:
    tokenizer = of_bytes()
    begun = tokenizer.encode("✓").ids[:2]
    rest = tokenizer.encode("abc").ids
    assert Spelling(tokenizer).pieces(begun) == ["", "\ufffd"]
    assert "".join(Spelling(tokenizer).pieces(begun + rest)) == "\ufffdabc"
    lone = [begun[0]] * 9
    assert set("".join(Spelling(tokenizer).pieces(lone + rest))) == set("\ufffdabc")


@given(st.lists(st.integers(0, 3), max_size=12))
def test_spaces_that_belong_to_words_are_kept_between_them(tokens: list[int]) -> None:
    spelling = Spelling(of_words())
    assert "".join(spelling.pieces(tokens)) == spelling.text(tokens)


def test_an_id_beyond_the_vocabulary_is_shown_as_a_number() -> None:
    tokenizer = of_bytes()
    a = tokenizer.encode("a").ids
    assert Spelling(tokenizer).pieces([*a, 9999, *a]) == ["a", "⟨9999⟩", "a"]


async def test_a_tokenizer_that_comes_later_is_found_after_a_while(tmp_path: Path) -> None:
    now_s = 100.0
    words = Words(ModelSettings(path=str(tmp_path / "model")), lambda: now_s)
    missing = await words.spelling()
    assert "cannot be read" in missing.notice
    assert missing.text([7, 8]) == "⟨7⟩⟨8⟩"
    write_tokenizer(tmp_path / "model")
    assert await words.spelling() is missing
    now_s += TRY_AGAIN_S
    found = await words.spelling()
    assert found.notice == ""
    assert await words.spelling() is found


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\x00"])
async def test_a_damaged_tokenizer_is_a_notice_and_no_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    spelling = await Words(ModelSettings(path=str(tmp_path))).spelling()
    assert spelling.tokenizer is None
    assert str(tmp_path) in spelling.notice


async def test_a_hub_name_that_is_not_on_this_machine_is_not_waited_for() -> None:
    spelling = await Words(ModelSettings(path="nobody/has-this-one")).spelling()
    assert spelling.tokenizer is None
    assert "nobody/has-this-one cannot be read" in spelling.notice
