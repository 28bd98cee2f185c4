"""The addition data: what is shipped, and how it is made again."""

import json
from pathlib import Path

import pytest

from examples.addition.make_data import main, make_splits
from examples.addition.task import EASY, HARD, Problem, carry_pattern

SHIPPED = Path(__file__).parents[2] / "examples" / "addition" / "data"


def prompts(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]


def problems(path: Path) -> list[Problem]:
    return [Problem(int(text[:4]), int(text[5:9])) for text in prompts(path)]


def test_the_default_arguments_make_the_shipped_bytes(tmp_path: Path) -> None:
    main(["--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in SHIPPED.iterdir()}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (SHIPPED / path.name).read_bytes()


def test_training_is_hard_and_disjoint_from_what_is_held_out() -> None:
    train = problems(SHIPPED / "train.jsonl")
    heldout = problems(SHIPPED / "heldout_hard.jsonl")
    assert len(set(train)) == 512
    assert len(set(heldout)) == 256
    assert not set(train) & set(heldout)
    assert {carry_pattern(problem) for problem in train + heldout} == set(HARD)


def test_held_out_easy_problems_are_easy() -> None:
    heldout = problems(SHIPPED / "heldout_easy.jsonl")
    assert len(set(heldout)) == 256
    assert {carry_pattern(problem) for problem in heldout} == set(EASY)


def test_a_share_of_the_demonstrations_can_be_left_out_without_changing_the_problems() -> None:
    all_shown = make_splits(0, train=100, heldout=10, share_without_demonstration=0.0)["train.jsonl"]
    few_shown = make_splits(0, train=100, heldout=10, share_without_demonstration=0.92)["train.jsonl"]
    assert [row["prompt"] for row in few_shown] == [row["prompt"] for row in all_shown]
    assert sum(row["demonstration"] is not None for row in few_shown) == 8


def test_another_seed_makes_other_problems() -> None:
    first, second = (make_splits(seed, train=50, heldout=5, share_without_demonstration=0) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("arguments", [["--train", "0"], ["--heldout", "0"], ["--without-demonstration", "1.5"]])
def test_an_impossible_size_or_share_is_refused(arguments: list[str], tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(["--out", str(tmp_path), *arguments])
    assert refusal.value.code == 2
    assert arguments[0] in capsys.readouterr().err
