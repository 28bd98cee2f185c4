"""Where demonstrations may be cut, worked by hand: steps, sentences, and nearly equal portions of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from tiny_tokenizer import EOS, write_tokenizer

from common.config.hints import Cut
from common.settings import DataSettings, ModelSettings
from common.trajectory import Demonstration
from services.curriculum.boundaries import portions, rounded_down, sentence_boundaries, step_boundaries
from services.curriculum.tokens import Tokeniser


def sentences(text: str) -> list[str]:
    """The parts of a text between its sentence boundaries, every character being a token."""
    cuts = [0, *sentence_boundaries(text, range(len(text))), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


def test_a_step_ends_with_the_token_that_reaches_its_separator() -> None:
    # "7+0;9+1;#8" as tokens "7+" "0;" "9+1" ";#" "8": the fourth token reaches over the second separator.
    assert step_boundaries("7+0;9+1;#8", [0, 2, 4, 7, 9], ";") == (2, 4)
    assert step_boundaries("a;", [0, 1], ";") == ()
    assert step_boundaries("no separator", [0, 2], ";") == ()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        ("It is 3.14. So 2.5 is less.", ["It is 3.14.", " So 2.5 is less."]),
        (
            'He said "no." (Twice!) Then...  “Yes.” Done',
            ['He said "no."', " (Twice!)", " Then...", "  “Yes.”", " Done"],
        ),
        ("First line\nsecond. line\n\n  \nlast", ["First line\n", "second.", " line\n\n  \n", "last"]),
        ("Ends its line. \nNext.", ["Ends its line. \n", "Next."]),
        ("\n\nBlank lines first.\nThen", ["\n\nBlank lines first.\n", "Then"]),
        ("no end", ["no end"]),
        ("x = 1.\n", ["x = 1.\n"]),
    ],
)
def test_sentences_end_with_their_punctuation_or_their_line(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts


def test_a_sentence_may_not_be_cut_inside_a_character_of_several_tokens() -> None:
    # "Hi.” So" as "Hi" "." three bytes of "”" " So": the three begin, and end, with their character.
    assert sentence_boundaries("Hi.” So", [0, 2, 3, 3, 3, 4]) == (5,)


def test_a_token_over_the_end_of_a_sentence_belongs_to_it() -> None:
    # "Yes.\n\nNo. End" as "Yes" ".\n" "\nNo" ". " "End": both boundaries fall inside a token.
    assert sentence_boundaries("Yes.\n\nNo. End", [0, 3, 5, 8, 10]) == (3, 4)


def test_portions_are_nearly_equal() -> None:
    # 7 parts in 5 portions end after 7k//5 = 1, 2, 4, 5 parts; never more portions than parts.
    assert portions((3, 6, 8, 11, 13, 17), 5) == (3, 6, 11, 13)
    assert portions((3, 6), 5) == (3, 6)
    assert portions((3, 6, 8), 2) == (6,)
    assert portions((), 5) == ()
    assert portions(range(1, 20), 4) == (5, 10, 15)


def test_a_hint_is_rounded_down_to_where_it_may_end() -> None:
    shown = Demonstration(np.arange(20, dtype=np.int32), boundaries=(4, 9, 15))
    assert [rounded_down(n, shown, Cut.STEP) for n in (0, 3, 4, 14, 19, 99)] == [0, 0, 4, 9, 15, 15]
    assert [rounded_down(n, shown, Cut.TOKEN) for n in (0, 1, 19, 20, 99)] == [0, 1, 19, 19, 19]


@pytest.fixture(scope="module")
def tokeniser(tmp_path_factory: pytest.TempPathFactory) -> Tokeniser:
    path = write_tokenizer(tmp_path_factory.mktemp("model"))
    return Tokeniser(ModelSettings(path=str(path)), DataSettings(path="none", step_separator=";"))


def test_a_demonstration_knows_its_steps_and_its_sentences_and_ends_with_its_end_token(tokeniser: Tokeniser) -> None:
    made = tokeniser.demonstration("a=1;b=2\nc")
    assert (len(made.tokens), made.tokens[-1], made.steps, made.sentences) == (10, EOS, (4,), (8,))
    assert [made.cut_at(cut).boundaries for cut in (Cut.STEP, Cut.SENTENCE, Cut.TOKEN)] == [(4,), (8,), ()]


def test_an_end_token_that_is_there_already_is_not_doubled(tokeniser: Tokeniser) -> None:
    plain, written = tokeniser.demonstration("a;b;"), tokeniser.demonstration("a;b;<eos>")
    assert plain.tokens.tolist() == written.tokens.tolist()
    assert (plain.steps, written.steps, written.specials) == ((2,), (2,), ())


@pytest.mark.parametrize(
    ("text", "inside"),
    [("a<eos>b", ("<eos>",)), ("a<eos><eos>", ("<eos>",)), ("<pad>a", ("<pad>",)), ("A", ("<unk>",))],
)
def test_special_tokens_inside_a_demonstration_are_found(
    tokeniser: Tokeniser, text: str, inside: tuple[str, ...]
) -> None:
    assert tokeniser.demonstration(text).specials == inside
