"""GSM8K's lines: what becomes of a question and its human solution, and which lines are refused."""

import json
from pathlib import Path

import pytest

from examples.gsm8k.solutions import UnusableSource, prompt, read_rows, split_solution, to_row

SOLUTION = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips in all.\n#### 72"


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_problem_becomes_a_prompt_a_demonstration_and_an_answer() -> None:
    assert to_row("How many clips?", SOLUTION) == {
        "prompt": "How many clips?\n",
        "answer": "72",
        "demonstration": "Natalia sold 48/2 = 24 clips in May.\nShe sold 48+24 = 72 clips in all.\n#### 72",
    }


def test_a_demonstration_has_one_step_on_each_line_and_ends_with_the_answer() -> None:
    lines = to_row("?", "a\n\n  b  \n#### 5")["demonstration"].split("\n")
    assert lines == ["a", "b", "#### 5"]


def test_thousands_separators_leave_the_answer_and_the_demonstration_alike() -> None:
    row = to_row("?", "It costs $1,080.\n#### 1,080")
    assert row["answer"] == "1080"
    assert row["demonstration"] == "It costs $1,080.\n#### 1080"


@pytest.mark.parametrize("number", ["-3", "0", "2.5"])
def test_any_number_is_an_answer(number: str) -> None:
    assert split_solution(f"step\n#### {number}") == (["step"], number)


def test_a_question_of_several_lines_becomes_one_line() -> None:
    assert prompt(" One.\nTwo? ") == "One. Two?\n"


@pytest.mark.parametrize(
    "solution", ["just text", "a step\n72", "####72", "#### seventy", "#### 72\nan afterthought", ""]
)
def test_a_solution_that_does_not_end_with_its_number_is_refused(solution: str) -> None:
    with pytest.raises(ValueError, match="must end with a line `#### <number>`"):
        split_solution(solution)


def test_rows_are_read_in_order_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *({"question": f"Q{i}", "answer": f"s\n#### {i}"} for i in range(3)))
    path.write_text(path.read_text() + "\n")
    assert [row["answer"] for row in read_rows(path)] == ["0", "1", "2"]


def test_a_line_separator_inside_a_text_does_not_cut_its_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"question": "Q", "answer": "one\u2028two\n#### 3"})
    assert [row["demonstration"] for row in read_rows(path)] == ["one two\n#### 3"]


def test_a_missing_column_is_named_with_its_file_and_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"question": "Q", "answer": SOLUTION}, {"question": "Q", "solution": "s"})
    with pytest.raises(UnusableSource, match=r"a\.jsonl, line 2: .*missing answer in \['question', 'solution'\]"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"[1]\n", "expected a JSON object, found list"), (b"{\n", "line 1"), (b"\xff\xfe\n", "line 1")],
)
def test_a_line_that_is_no_json_object_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UnusableSource, match=reason):
        list(read_rows(path))
