"""Preparing GSM8K: what is written, that it is repeatable, and how a wrong command line is answered."""

import hashlib
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from examples.gsm8k.prepare import main

WORDS = ("apples", "clips", "eggs", "miles")


def source_line(number: int) -> str:
    more, total = number + 1, 2 * number + 1
    question = f"Ann has {number} {WORDS[number % 4]} and finds {more} more. How many has she?"
    answer = f"She has {number}+{more}=<<{number}+{more}={total}>>{total}.\n#### {total}"
    return json.dumps({"question": question, "answer": answer}) + "\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(source_line(number) for number in range(40)))
    (folder / "test.jsonl").write_text("".join(source_line(number) for number in range(30, 60)))
    return folder


def arguments(source: Path, out: Path, *more: str) -> list[str]:
    return ["--train", str(source / "train.jsonl"), "--test", str(source / "test.jsonl"), "--out", str(out), *more]


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_held_out_problems_come_from_the_test_file_and_are_never_trained_on(source: Path, tmp_path: Path) -> None:
    main(arguments(source, tmp_path / "out", "--heldout", "12"))
    trained = {row["prompt"] for row in rows(tmp_path / "out" / "train.jsonl")}
    heldout = {row["prompt"] for row in rows(tmp_path / "out" / "heldout.jsonl")}
    assert len(trained) == 40
    assert len(heldout) == 12
    assert not trained & heldout


def test_preparing_twice_writes_the_same_bytes(source: Path, tmp_path: Path) -> None:
    main(arguments(source, tmp_path / "out"))
    once = digests(tmp_path / "out")
    main(arguments(source, tmp_path / "out"))
    assert digests(tmp_path / "out") == once
    assert "model/model.safetensors" in once


def test_the_small_model_has_the_shape_that_the_cpu_engine_needs(source: Path, tmp_path: Path) -> None:
    main(arguments(source, tmp_path / "out"))
    model = LlamaForCausalLM.from_pretrained(tmp_path / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert model.config.tie_word_embeddings is False
    assert model.config.head_dim == 64
    assert model.config.max_position_embeddings == 512
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id == 1


def test_the_tokenizer_gives_back_any_text_and_reads_numbers_digit_by_digit(source: Path, tmp_path: Path) -> None:
    main(arguments(source, tmp_path / "out"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    text = "Zoë pays £1080 – ½ of it.\n#### 540"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("1080")) == 4


def test_problems_that_are_too_long_are_left_out_and_counted(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(source, tmp_path / "out", "--max-tokens", "8"))
    assert rows(tmp_path / "out" / "train.jsonl") == []
    assert "0 problems; left out 40 longer than 8 tokens" in capsys.readouterr().out


def test_no_model_is_made_when_one_is_named(source: Path, tmp_path: Path) -> None:
    main(arguments(source, tmp_path / "first"))
    main(arguments(source, tmp_path / "second", "--model", str(tmp_path / "first" / "model")))
    assert not (tmp_path / "second" / "model").exists()
    assert rows(tmp_path / "second" / "train.jsonl") == rows(tmp_path / "first" / "train.jsonl")


def test_the_sources_are_looked_for_where_the_environment_says(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSM8K_DIR", str(source))
    main(["--out", str(tmp_path / "out")])
    assert len(rows(tmp_path / "out" / "train.jsonl")) == 40


def test_a_missing_file_and_a_missing_option_are_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GSM8K_DIR", raising=False)
    with pytest.raises(SystemExit, match="2"):
        main(["--train", str(source / "nothing.jsonl"), "--out", str(tmp_path)])
    assert "nothing.jsonl; it should be GSM8K's train.jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path)])
    assert "--train is needed" in capsys.readouterr().err


def test_a_source_that_is_not_gsm8k_ends_with_a_sentence(source: Path, tmp_path: Path) -> None:
    (source / "train.jsonl").write_text('{"text": "hello"}\n')
    with pytest.raises(SystemExit, match=r"not prepared: .*train\.jsonl, line 1: .*missing question, answer"):
        main(arguments(source, tmp_path / "out"))


def test_a_model_without_a_tokenizer_ends_with_a_sentence(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--model .* has no tokenizer that can be loaded"):
        main(arguments(source, tmp_path / "out", "--model", str(tmp_path)))
