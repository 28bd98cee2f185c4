"""The curriculum's pure parts: rows, order, hints, boundaries, solve rates and evaluation arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.config.hints import Cut, FixedHint
from common.config.live import LiveConfig, parse_live
from common.errors import SettingsError
from common.settings import Columns, DatasetSettings
from common.trajectory import Demonstration, GroupPlan, Outcome, Purpose
from services.curriculum.evaluation import pass_at_k, summarise
from services.curriculum.hints import hint_length, plan_group
from services.curriculum.outcomes import Ledger
from services.curriculum.prompts import Cursor, Order
from services.curriculum.rows import read_rows
from services.curriculum.state import Evaluation, State, decode_state
from services.curriculum.tokens import step_boundaries


def demonstration(length: int, boundaries: tuple[int, ...] = ()) -> Demonstration:
    return Demonstration(np.arange(length, dtype=np.int32), boundaries)


def live(**document: object) -> LiveConfig:
    return parse_live(document)


LUFFY = live(algorithm={"kind": "luffy"}, hints={"kind": "demonstration"})
SFT = live(algorithm={"kind": "sft"}, hints={"kind": "demonstration", "count": 2})
HALF = live(algorithm={"kind": "grpo"}, hints={"kind": "fixed", "ratio": 0.5, "branches": 3})


def test_luffy_adds_a_demonstration_where_the_prompt_has_one() -> None:
    assert plan_group(LUFFY, [demonstration(5)]) == GroupPlan(plain=7, demonstrations=1)
    assert plan_group(LUFFY, []) == GroupPlan(plain=7)


def test_sft_takes_as_many_demonstrations_as_there_are_and_passes_over_prompts_without() -> None:
    assert plan_group(SFT, [demonstration(5)]) == GroupPlan(plain=0, demonstrations=1)
    assert plan_group(SFT, [demonstration(5)] * 3) == GroupPlan(plain=0, demonstrations=2)
    assert plan_group(SFT, []) is None


def test_a_fixed_hint_branches_the_members_it_is_told_to() -> None:
    assert plan_group(HALF, [demonstration(9)]) == GroupPlan(plain=5, branched=3, hint_length=4)
    assert plan_group(HALF, []) == GroupPlan(plain=8)


def test_a_hint_is_never_the_whole_demonstration() -> None:
    assert hint_length(FixedHint(tokens=100), demonstration(9)) == 8


def test_a_hint_cut_at_steps_never_grows() -> None:
    steps = demonstration(20, boundaries=(4, 9, 15))
    assert [hint_length(FixedHint(tokens=n, cut=Cut.STEP), steps) for n in (3, 4, 14, 19)] == [0, 4, 9, 15]


def test_a_step_ends_with_the_token_that_reaches_its_separator() -> None:
    # "7+0;9+1;#8" as tokens "7+" "0;" "9+1" ";#" "8": the fourth token reaches over the second separator.
    assert step_boundaries("7+0;9+1;#8", [2, 4, 7, 9, 10], ";") == (2, 4)
    assert step_boundaries("a;", [1, 2], ";") == ()
    assert step_boundaries("no separator", [2, 12], ";") == ()


def test_every_epoch_visits_every_prompt_once_and_a_cursor_resumes_anywhere() -> None:
    def visited(order: Order, cursor: Cursor, count: int) -> list[int]:
        seen: list[int] = []
        for _ in range(count):
            index, cursor = order.at(cursor)
            seen.append(index)
        return seen

    whole = visited(Order(7, seed=3, shuffle=True), Cursor(), 21)
    assert [sorted(whole[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert whole[:7] != whole[7:14]
    assert visited(Order(7, seed=3, shuffle=True), Cursor(1, 4), 10) == whole[11:21]
    assert visited(Order(3, seed=3, shuffle=False), Cursor(), 4) == [0, 1, 2, 0]


def test_the_state_survives_its_encoding() -> None:
    state = State("life", Cursor(2, 5), 77, 10, Evaluation(10, 40, 1.5, {"hard": 3}, asked=2))
    assert decode_state(state.encode(), life="another") == state
    assert decode_state(None, life="first") == State(life="first")


def outcome(rewards: tuple[float, ...], **fields: object) -> Outcome:
    return Outcome("r", "p", Purpose.EVALUATE, 1, "hard", rewards, version=4, **fields)  # type: ignore[arg-type]


def test_pass_at_k_is_the_unbiased_estimate() -> None:
    assert pass_at_k([True, False, False, False], 2) == pytest.approx(0.5)  # 1 - C(3,2)/C(4,2)
    assert pass_at_k([False] * 4, 2) == 0.0
    assert pass_at_k([True, False], 2) == 1.0


def test_an_evaluation_counts_greedy_accuracy_pass_at_k_and_token_weighted_nll() -> None:
    found = summarise(
        [
            outcome((1.0, 0.0, 0.0), demonstration_logprob=-6.0, demonstration_tokens=3),
            outcome((0.0, 1.0, 0.0), demonstration_logprob=-1.0, demonstration_tokens=1),
            outcome((), failure="the grader hung"),
        ],
        samples=2,
        due=4,
    )
    assert (found["accuracy"], found["pass_at_k"], found["prompts"], found["failures"]) == (0.5, 0.5, 2, 2)
    assert found["nll"] == pytest.approx(7 / 4)


def test_solve_rates_add_up() -> None:
    ledger = Ledger({b"p": b'{"attempts": 8, "solved": 1}'})
    changed = ledger.updated([outcome((1.0, 1.0, 0.0, 0.0)), outcome(())])
    assert json.loads(changed["p"]) == {"attempts": 12, "solved": 3, "last": 0.5}


def write_jsonl(path: Path, *rows: object) -> DatasetSettings:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSettings(path=str(path))


def test_a_demonstration_may_be_missing_one_or_several(tmp_path: Path) -> None:
    rows = read_rows(
        write_jsonl(
            tmp_path / "d.jsonl",
            {"prompt": "a", "answer": 1, "demonstration": ["x", "y"]},
            {"prompt": "b", "answer": 2, "demonstration": None},
        )
    )
    assert [(r.prompt, r.answer, r.demonstrations) for r in rows] == [("a", "1", ("x", "y")), ("b", "2", ())]


def test_messages_and_nested_columns_are_understood(tmp_path: Path) -> None:
    source = write_jsonl(
        tmp_path / "d.jsonl",
        {
            "prompt": [{"role": "user", "content": "1+1?"}],
            "target": [{"role": "assistant", "content": "2"}],
            "reward_model": {"ground_truth": "2"},
        },
    )
    columns = Columns(prompt="prompt", answer="reward_model.ground_truth", demonstration="target")
    row = read_rows(source.model_copy(update={"columns": columns}))[0]
    assert row.prompt == ({"role": "user", "content": "1+1?"},)
    assert (row.answer, row.demonstrations) == ("2", ("2",))


def test_a_missing_file_column_or_row_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no data file"):
        read_rows(DatasetSettings(path=str(tmp_path / "absent.jsonl")))
    with pytest.raises(SettingsError, match="no column 'answer'"):
        read_rows(write_jsonl(tmp_path / "d.jsonl", {"prompt": "a", "demonstration": "x"}))
    with pytest.raises(SettingsError, match=r"empty|cannot be loaded"):
        read_rows(write_jsonl(tmp_path / "e.jsonl"))
    with pytest.raises(SettingsError, match=r"row 1 .* cannot be used"):
        read_rows(write_jsonl(tmp_path / "f.jsonl", {"prompt": "", "answer": "1", "demonstration": "x"}))
