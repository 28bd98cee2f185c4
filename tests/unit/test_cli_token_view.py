"""The token view: who wrote what, told by colours where there are any and by words where there are none."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from services.cli.legible import legible, one_line
from services.cli.token_view import Aspect, classifier, describe_trajectory, segments, show_group, token_table

SOURCES = ["prompt", "prompt", "hint", "policy", "policy", "policy"]
TOKENS: dict[str, Any] = {
    "id": [1, 2, 3, 4, 5, 6],
    "text": ["1+1", "=", "two", " is", " 2", "\x1b[31m"],
    "source": SOURCES,
    "version": [None, None, None, 3, 3, 4],
    "behaviour_logprob": [None, None, None, -0.5, -0.25, -1.0],
    "policy_logprob": [None, None, -2.0, -0.5, -0.25, -2.0],
    "expert_logprob": [None] * 6,
    "ratio": [None, None, 0.1353, 1.0, 1.0, 0.3679],
}


def trajectory(**changes: Any) -> dict[str, Any]:
    whole = {"kind": "hinted", "reward": 1.0, "reward_parts": {"numeric": 1.0}, "advantage": 0.5, "versions": [3, 4]}
    return {**whole, "tokens": TOKENS, **changes}


def group(*trajectories: dict[str, Any]) -> dict[str, Any]:
    ids = {"group_id": "g", "prompt_id": "train:1", "generator": "generator-1", "algorithm": "uft"}
    return {**ids, "step": 5, "revision": 2, "notice": "", "trajectories": list(trajectories)}


def shown(document: dict[str, Any], aspect: Aspect = Aspect.SOURCE, *, colours: bool = False) -> str:
    system = "standard" if colours else None
    console = Console(width=100, file=io.StringIO(), force_terminal=colours, highlight=False, color_system=system)
    show_group(console, document, aspect)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def told(aspect: Aspect) -> list[tuple[str, str]]:
    classify = classifier(aspect, group(trajectory()))
    return [(name, text) for name, _, text in segments(TOKENS, range(2, 6), classify)]


def test_neighbours_of_one_kind_are_one_stretch_by_source_version_or_ratio() -> None:
    assert told(Aspect.SOURCE) == [("hint", "two"), ("policy", " is 2\x1b[31m")]
    assert told(Aspect.VERSION) == [("hint", "two"), ("version 3", " is 2"), ("version 4", "\x1b[31m")]
    assert told(Aspect.RATIO) == [("ratio < 0.5", "two"), ("0.8 … 1.25", " is 2"), ("ratio < 0.5", "\x1b[31m")]


def test_without_colours_each_stretch_says_what_it_is_and_with_them_a_legend_does() -> None:
    plain = shown(group(trajectory()))
    assert "[hint] two\n[policy]  is 2" in plain
    assert "■" not in plain
    coloured = shown(group(trajectory()), colours=True)
    assert "\x1b[33mtwo\x1b[0m" in coloured
    assert "■ \x1b[0mhint" in coloured


def test_what_a_model_wrote_cannot_steer_the_terminal() -> None:
    for colours in (False, True):
        assert "\x1b[31m" not in shown(group(trajectory()), Aspect.VERSION, colours=colours).replace("■", "")
    assert "\\x1b[31m" in shown(group(trajectory()))


def test_a_prompt_that_all_share_is_printed_once() -> None:
    text = shown(group(trajectory(), trajectory(kind="rollout", reward=None, advantage=None)))
    assert text.count("1+1=") == 1
    assert "1  hinted · reward 1 · advantage +0.500 · 4 tokens · version 3, 4 · ratio 0.135 … 1.000" in text
    assert "2  rollout · reward – · not used by the algorithm" in text
    other = {**TOKENS, "text": ["2+2", *TOKENS["text"][1:]]}
    assert "prompt of 2" in shown(group(trajectory(), trajectory(tokens=other)))


def test_the_parts_of_a_reward_are_named_if_there_are_several() -> None:
    line = describe_trajectory(trajectory(reward_parts={"right": 1.0, "short": None}))
    assert "reward 1 (right 1, short –)" in line


def test_every_token_of_a_response_has_a_row_with_its_numbers() -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(token_table(trajectory()))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in capture.get().splitlines() if "│" in line]
    assert rows[0] == ["2", "two", "hint", "", "", "-2.0000", "", "0.1353"]
    assert rows[-1] == ["5", "\\x1b[31m", "policy", "4", "-1.0000", "-2.0000", "", "0.3679"]


def test_text_from_elsewhere_is_written_out_where_it_would_act() -> None:
    assert legible("a\tb\r\x07\u202e\u00a0é\n") == "a\\tb\\r\\x07\\u202e\u00a0é\n"
    assert one_line("one\ntwo") == "one⏎two"
    assert one_line("x" * 300, 10) == "x" * 9 + "…"
