"""The curriculum's pure parts: rows, order, state, solve rates and evaluation arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.settings import Columns, DatasetSettings
from common.trajectory import Outcome, Purpose
from services.curriculum.clocks import Clock, Clocks
from services.curriculum.evaluation import pass_at_k, summarise
from services.curriculum.order import Cursor, Order
from services.curriculum.outcomes import Ledger
from services.curriculum.rows import Row, Table
from services.curriculum.state import Evaluation, State, decode_state


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
    clocks = Clocks({"uniform_decay:0": Clock(0.25, 7, 500)}, "uniform_decay:0", 32)
    state = State("life", Cursor(2, 5), 77, 10, Evaluation(10, 40, 1.5, {"hard": 3}, asked=2), clocks)
    assert decode_state(state.encode(), life="another") == state
    assert decode_state(None, life="first") == State(life="first")


def test_a_state_from_before_there_were_schedules_is_read() -> None:
    old = (
        b'{"life": "x", "cursor": {"epoch": 1, "position": 2}, "issued": 3, "evaluated_version": 0, "evaluation": null}'
    )
    assert decode_state(old, life="another") == State("x", Cursor(1, 2), 3, 0)


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


def rows_of(source: DatasetSettings) -> list[Row]:
    return Table(source).rows()


def test_only_rollouts_from_the_bare_prompt_count_as_solving_it() -> None:
    ledger = Ledger({})
    ledger.updated([outcome((0.0, 0.0), hinted_rewards=(1.0, 1.0, 0.0), probes=2, anchor=12)])
    changed = ledger.updated([outcome((1.0, 0.0)), outcome((), hinted_rewards=(1.0,))])
    assert json.loads(changed["p"]) == {
        "attempts": 4,
        "solved": 1,
        "last": 0.5,
        "hinted": {"attempts": 4, "solved": 3},
        "anchor": 12,
    }


def test_an_anchor_stays_until_another_is_found_and_survives_its_record() -> None:
    ledger = Ledger({})
    assert ledger.anchor("p") is None
    ledger.updated([outcome((0.0,), anchor=12)])
    changed = ledger.updated([outcome((0.0,), probes=4)])
    assert Ledger({b"p": changed["p"].encode()}).anchor("p") == 12
    ledger.updated([outcome((0.0,), anchor=3)])
    assert ledger.anchor("p") == 3


def write_jsonl(path: Path, *rows: object) -> DatasetSettings:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSettings(path=str(path))


def test_a_demonstration_may_be_missing_one_or_several(tmp_path: Path) -> None:
    rows = rows_of(
        write_jsonl(
            tmp_path / "d.jsonl",
            {"prompt": "a", "answer": 1, "demonstration": ["x", "y"]},
            {"prompt": "b", "answer": 2, "demonstration": None},
            {"prompt": "c", "answer": 3, "demonstration": ["", None, "z"]},
        )
    )
    assert [(r.prompt, r.answer, r.demonstrations) for r in rows] == [
        ("a", "1", ("x", "y")),
        ("b", "2", ()),
        ("c", "3", ("", "", "z")),
    ]


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
    row = rows_of(source.model_copy(update={"columns": columns}))[0]
    assert row.prompt == ({"role": "user", "content": "1+1?"},)
    assert (row.answer, row.demonstrations) == ("2", ("2",))


def test_a_missing_file_column_or_row_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no data file"):
        rows_of(DatasetSettings(path=str(tmp_path / "absent.jsonl")))
    with pytest.raises(SettingsError, match="no column 'answer'"):
        rows_of(write_jsonl(tmp_path / "d.jsonl", {"prompt": "a", "demonstration": "x"}))
    with pytest.raises(SettingsError, match=r"empty|cannot be loaded"):
        rows_of(write_jsonl(tmp_path / "e.jsonl"))
    with pytest.raises(SettingsError, match=r"row 1 .* cannot be used"):
        rows_of(write_jsonl(tmp_path / "f.jsonl", {"prompt": "", "answer": "1", "demonstration": "x"}))
