"""Demonstrations that cannot be used are found, said, and counted once; recorded log-probs have to fit the tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizer import EOS, write_tokenizer

from common.errors import SettingsError
from common.settings import Columns, DataSettings, ModelSettings
from services.curriculum.expert_logprobs import UnfitLogprobs, fitting_logprobs
from services.curriculum.prompts import PromptSet, load_prompts, shown_text
from services.curriculum.set_aside import Reason, UnfitDemonstration
from services.curriculum.tokens import Tokeniser

RECORDED = Columns(expert_logprobs="logp", expert_tokens="ids")


def load(directory: Path, rows: list[dict[str, Any]], columns: Columns | None = None) -> PromptSet:
    """A data set of these rows; log-probs are recorded in it if columns say so."""
    path = directory / "d.jsonl"
    path.write_text("".join(json.dumps({"prompt": "1+1=", "answer": "2", **row}) + "\n" for row in rows))
    source = DataSettings(path=str(path), columns=columns or Columns())
    tokeniser = Tokeniser(ModelSettings(path=str(write_tokenizer(directory / "model"))), source)
    return load_prompts("train", source, tokeniser, recorded=columns is not None)


def demonstrations(*texts: Any) -> list[dict[str, Any]]:
    return [{"demonstration": text} for text in texts]


def test_each_bad_demonstration_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    prompts = load(tmp_path, demonstrations("a;b", "", " \n", "a<eos>b", ["ok", "x<pad>", ""], None))
    assert [len(prompts.prepared(p)) for p in prompts.prompts] == [1, 0, 0, 0, 1, 0]
    assert prompts.set_aside.totals == {Reason.EMPTY: 3, Reason.SPECIAL_TOKENS: 2}
    news = prompts.set_aside.news()
    assert [(u.identity, u.why) for u in news][2:4] == [
        ("train:3#0: special_tokens", "demonstration 1 of train:3: special tokens stand inside it: '<eos>'"),
        ("train:4#1: special_tokens", "demonstration 2 of train:4: special tokens stand inside it: '<pad>'"),
    ]
    assert prompts.set_aside.sentence() == (
        "of the 7 demonstrations in 'train', 5 cannot be used and were set aside: 3 empty, 2 with special tokens inside"
    )
    assert prompts.with_demonstrations == 2


def test_a_fault_is_counted_once_however_often_its_prompt_comes_up(tmp_path: Path) -> None:
    prompts = load(tmp_path, demonstrations("", "abc"))
    for _ in range(3):
        assert [len(prompts.fitting(p, 3)) for p in prompts.prompts] == [0, 0]
    assert prompts.set_aside.totals == {Reason.EMPTY: 1, Reason.TOO_LONG: 1}
    assert len(prompts.set_aside.news()) == 2
    assert prompts.set_aside.news() == []


def test_too_long_is_judged_for_each_limit_and_is_not_for_good(tmp_path: Path) -> None:
    prompts = load(tmp_path, demonstrations("abcdef"))
    [prompt] = prompts.prompts
    assert [len(prompts.fitting(prompt, longest)) for longest in (4, 7, 6, 4)] == [0, 1, 0, 0]
    assert [u.identity for u in prompts.set_aside.news()] == ["train:0#0: too_long for 4", "train:0#0: too_long for 6"]
    assert prompts.with_demonstrations == 1


def test_the_context_is_a_limit_too(tmp_path: Path) -> None:
    prompts = load(tmp_path, demonstrations("a" * 70))
    assert prompts.fitting(prompts.prompts[0], 1000) == ()
    [unusable] = prompts.set_aside.news()
    assert unusable.why == (
        "demonstration 1 of train:0: it has 71 tokens with its end token, and the context leaves 60"
    )


def test_after_a_survey_a_limit_is_judged_at_once(tmp_path: Path) -> None:
    prompts = load(tmp_path, demonstrations("ab", "abcdef", "abcdef", ""))
    prompts.survey(1000)
    assert prompts.with_demonstrations == 3
    assert prompts.set_aside.totals == {Reason.EMPTY: 1}
    prompts.judge(4)
    prompts.judge(4)
    assert prompts.set_aside.totals == {Reason.EMPTY: 1, Reason.TOO_LONG: 2}


def test_a_survey_of_a_large_set_takes_evenly_spread_samples(tmp_path: Path) -> None:
    prompts = load(tmp_path, demonstrations(*["abcdef"] * 10))
    prompts.survey(20)  # of 60 characters: every third prompt
    assert [p.number for p in prompts.looked_at] == [0, 3, 6, 9]
    prompts.judge(4)
    assert prompts.set_aside.totals == {Reason.TOO_LONG: 4}


def test_what_is_discarded_stays_out(tmp_path: Path) -> None:
    prompts = load(tmp_path, demonstrations(["ab", "cd"], "ef"))
    first, second = prompts.prompts
    prompts.discard(first, 0, Reason.UNSCORABLE, "no")
    prompts.discard(second, 0, Reason.UNSCORABLE, "no")
    assert [[d.number for d in prompts.fitting(p, 16)] for p in (first, second)] == [[1], []]
    assert (prompts.with_demonstrations, prompts.set_aside.totals) == (1, {Reason.UNSCORABLE: 2})


def test_what_was_added_last_comes_first_and_keeps_its_number(tmp_path: Path) -> None:
    prompts = load(tmp_path, demonstrations(["ab", "cd"], None))
    first, second = prompts.prompts
    assert (prompts.find("train:0"), prompts.find("train:1"), prompts.find("train:2")) == (first, second, None)
    assert (len(prompts.prepared(second)), prompts.with_demonstrations) == (0, 1)
    prompts.add(first, 2, "ef")
    prompts.add(first, 4, "gh")  # the one between was refused
    prompts.add(second, 0, "ij")
    assert [[d.number for d in prompts.fitting(p, 16)] for p in (first, second)] == [[4, 2, 0, 1], [0]]
    assert prompts.with_demonstrations == 2
    prompts.discard(first, 4, Reason.UNSCORABLE, "no")
    assert [d.number for d in prompts.fitting(first, 16)] == [2, 0, 1]
    [unusable] = prompts.set_aside.news()
    assert (unusable.why, unusable.text) == ("demonstration 5 of train:0: no", "gh")
    assert prompts.set_aside.sentence().startswith("of the 5 demonstrations in 'train', 1 cannot be used")


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        (" \n", Reason.EMPTY, "the demonstration is empty"),
        ("a<pad>b", Reason.SPECIAL_TOKENS, "special tokens stand inside it: '<pad>'"),
        ("abcdef", Reason.TOO_LONG, "it has 7 tokens with its end token, and sampling.max_response_tokens is 6"),
        ("a" * 70, Reason.TOO_LONG, "it has 71 tokens with its end token, and sampling.max_response_tokens is 6"),
    ],
)
def test_a_look_says_why_a_text_cannot_be_used_and_sets_nothing_aside(
    tmp_path: Path, text: str, reason: Reason, said: str
) -> None:
    prompts = load(tmp_path, demonstrations("ab"))
    with pytest.raises(UnfitDemonstration) as unfit:
        prompts.look_at(prompts.prompts[0], 1, text, 6)
    assert (unfit.value.reason, str(unfit.value)) == (reason, said)
    assert prompts.set_aside.news() == []
    assert prompts.look_at(prompts.prompts[0], 1, "abcde", 6).tokens[-1] == EOS


def test_a_prompt_is_shown_as_the_data_set_has_it_and_cut_if_it_is_long(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1"}]
    assert shown_text("1+1=", 2000) == "1+1="
    assert shown_text(tuple(chat), 2000) == "system: be brief\nuser: 1+1"
    assert len(shown_text("x" * 3000, 2000)) == 2000
    assert [p.text for p in load(tmp_path, demonstrations("a")).prompts] == ["1+1="]


def test_of_the_prompts_of_a_very_large_data_set_less_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.curriculum.prompts.SHOWN_IN_ALL", 9)
    assert [p.text for p in load(tmp_path, demonstrations("a", "b", "c")).prompts] == ["1+1"] * 3


# "ab" is ids 17, 18 under the tiny tokenizer, and the end token.
AB = [17, 18, EOS]


@pytest.mark.parametrize(
    ("demonstration", "logp", "ids", "expected"),
    [
        ("ab", [-1.0, -2.0, 0.0], AB, [[-1.0, -2.0, 0.0]]),
        (["ab"], [[-1.0, -2.0, 0.0]], [AB], [[-1.0, -2.0, 0.0]]),
        (["ab", "b"], [[-1, -2, -3], [-4, -5]], [AB, [18, EOS]], [[-1.0, -2.0, -3.0], [-4.0, -5.0]]),
        ([{"role": "assistant", "content": "ab"}], [-1.0, -2.0, 0.0], AB, [[-1.0, -2.0, 0.0]]),
    ],
)
def test_recorded_logprobs_belong_to_their_demonstration(
    tmp_path: Path, demonstration: Any, logp: Any, ids: Any, expected: list[list[float]]
) -> None:
    row = {"demonstration": demonstration, "logp": logp, "ids": ids}
    for columns in (RECORDED, Columns(expert_logprobs="logp")):
        prompts = load(tmp_path, [row], columns)
        found = [d.expert_logprobs for d in prompts.prepared(prompts.prompts[0])]
        assert [v.tolist() for v in found if v is not None] == expected
        assert all(v is not None and v.dtype == np.float32 for v in found)
        assert prompts.set_aside.totals == {}


@pytest.mark.parametrize(
    ("logp", "ids", "said"),
    [
        ([-1.0, -2.0], AB, "it has 2 log-probs for 3 tokens (its end token needs one, too)"),
        ([-1.0, 0.5, -1.0], AB, "the log-prob of its token 2 is 0.5: it has to be finite, and 0 or less"),
        ([-1.0, None, -1.0], AB, "the log-prob of its token 2 is nan"),
        ([-1e300, -1.0, -1.0], AB, "the log-prob of its token 1 is -inf"),
        (None, AB, "no log-probs were recorded for it"),
        ([-1.0, -1.0, -1.0], [17, 20, EOS], "its token 2 was recorded as id 20 and has id 18 here"),
        ([-1.0, -1.0, -1.0], [17, EOS], "it was recorded as 2 tokens and has 3 here"),
        ([], [], "it was recorded as 0 tokens"),
    ],
)
def test_recorded_logprobs_that_do_not_fit_are_set_aside(tmp_path: Path, logp: Any, ids: Any, said: str) -> None:
    good = {"demonstration": "ab", "logp": [-1.0, -2.0, 0.0], "ids": AB}
    prompts = load(tmp_path, [good, {"demonstration": "ab", "logp": logp, "ids": ids}], RECORDED)
    assert [len(prompts.prepared(p)) for p in prompts.prompts] == [1, 0]
    [unusable] = prompts.set_aside.news()
    assert unusable.reason is Reason.RECORDED_LOGPROBS
    assert said in unusable.why


def test_as_many_lists_of_logprobs_as_demonstrations_are_wanted(tmp_path: Path) -> None:
    prompts = load(tmp_path, [{"demonstration": ["a", "b"], "logp": [[-1.0, -1.0]], "ids": [[17, 1]]}], RECORDED)
    assert prompts.prepared(prompts.prompts[0]) == ()
    assert {u.why.partition(": ")[2] for u in prompts.set_aside.news()} == {
        "its row has 2 demonstrations, and 1 of 'logp'"
    }


def test_a_data_set_without_the_recorded_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no column 'logp' .* correct \[data.columns\]"):
        load(tmp_path, demonstrations("a"), RECORDED)


def test_logprobs_of_an_engine_are_checked_the_same_way() -> None:
    tokens = np.array([5, 6], np.int32)
    assert fitting_logprobs(np.array([-1.0, -0.0], np.float32), tokens).tolist() == [-1.0, 0.0]
    for wrong in ([-1.0], [-1.0, float("nan")], [-1.0, float("-inf")], [-1.0, 1e-3]):
        with pytest.raises(UnfitLogprobs):
            fitting_logprobs(np.array(wrong, np.float32), tokens)
