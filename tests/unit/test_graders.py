"""Graders: what they read out of a response, and which names and options they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import SettingsError
from services.generator.graders import Grade, load
from services.generator.graders.grade import as_grade


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("7+7+0=14;#10164", 1.0),
        ("#1 no, #10164", 1.0),
        ("# 10164 \n", 1.0),
        ("#010164", 0.0),
        ("#10164;", 0.0),
        ("10164", 0.0),
        ("10164#", 0.0),
        ("", 0.0),
    ],
)
def test_marker_wants_the_exact_text_after_the_last_marker(response: str, reward: float) -> None:
    assert load("marker", {})(response, "10164").reward == reward


def test_the_marker_is_an_option() -> None:
    assert load("marker", {"marker": "Answer:"})("Answer: blue", "blue") == Grade(1.0, {"answered": 1.0})


def test_an_empty_answer_needs_its_marker() -> None:
    assert [load("marker", {})(response, "").reward for response in ("#", "")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("She sold 48/2 = 24 clips.\n#### 72", "72"),
        ("#### 1,234", "1234"),
        ("#### 1234", "1,234"),
        ("#### $18", "18"),
        ("#### -$5", "-5"),
        ("#### \u22125", "-5"),
        ("#### 18 dollars", "18"),
        ("#### 3 km/h", "3"),
        ("#### 12.", "12"),
        ("#### 4.50", "4.5"),
        ("#### **42**", "42"),
        ("####\n\n8\nand more: 9", "8"),
        ("#### 4 then #### 5", "5"),
        ("so \\boxed{\\frac{1}{2}} it is, of 3", "0.5"),
        ("\\boxed{1} or rather \\boxed{\\text{about } 7}", "7"),
        ("The answer is 72.", "72"),
        ("that is 5-3", "3"),
        ("first 1, then -7", "-7"),
        ("17", "#### 17"),
    ],
)
def test_numeric_knows_a_number_however_it_is_written(response: str, answer: str) -> None:
    assert load("numeric", {})(response, answer) == Grade(1.0, {"answered": 1.0})


@pytest.mark.parametrize(
    ("response", "answered"),
    [
        ("#### 73", 1.0),
        ("72, so #### 27", 1.0),
        ("#### none", 1.0),
        ("####", 0.0),
        ("seventy-two", 0.0),
        ("", 0.0),
        ("#### " + "(" * 5000, 1.0),
        ("#### " + "9" * 5000, 1.0),
    ],
)
def test_numeric_refuses_what_is_not_the_number(response: str, answered: float) -> None:
    assert load("numeric", {})(response, "72") == Grade(0.0, {"answered": answered})


def test_an_answer_that_takes_too_long_to_parse_is_wrong() -> None:
    assert load("numeric", {"parse_limit_s": 1})("#### 9**9**9**9**9", "72").reward == 0.0


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("markr", {}, "choose one of marker, numeric, or name your own"),
        ("nowhere.at_all:grade", {}, "cannot be imported"),
        ("json:grade", {}, "module json has no grade"),
        ("json:__doc__", {}, "not a function or class"),
        ("marker", {"mark": "#"}, "mark: Extra inputs are not permitted"),
        ("marker", {"marker": ""}, "marker: String should have at least 1 character"),
        ("operator:eq", {"strict": True}, "options of 'operator:eq' do not fit it"),
    ],
)
def test_a_grader_that_cannot_be_used_is_refused_with_a_sentence(
    name: str, options: dict[str, object], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        load(name, options)


def test_a_module_that_raises_while_it_is_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unparsable_grader.py").write_text("def grade(:")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="importing 'unparsable_grader:grade' raised SyntaxError"):
        load("unparsable_grader:grade", {})


def test_a_function_of_ones_own_may_return_a_number() -> None:
    assert load("operator:eq", {})("7", "7") == Grade(1.0)


@pytest.mark.parametrize("value", [float("nan"), Grade(float("inf")), Grade(1.0, {"part": float("nan")})])
def test_a_reward_that_is_not_finite_is_no_grade(value: object) -> None:
    with pytest.raises(ValueError, match="finite number"):
        as_grade(value)


def test_what_is_no_grade_is_refused() -> None:
    with pytest.raises(TypeError, match="not str"):
        as_grade("1.0")


def test_graders_import_neither_vllm_nor_torch() -> None:
    code = (
        "import sys; from services.generator.graders import load; load('numeric', {}); load('marker', {});"
        "print({'vllm', 'torch', 'transformers'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    output = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True, timeout=60)
    assert output == "set()\n"
