"""The generator's check: what is wrong with a model is said before an engine is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_tokenizer import write_tokenizer

from services.generator.start import check

RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "./model"
[data]
path = "data.jsonl"
"""


@pytest.mark.parametrize("is_whole", [True, False])
def test_weights_that_are_cut_short_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_whole: bool
) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    weights = tmp_path / "model" / "model.safetensors"
    save_file({"a": np.zeros(1000, np.float32)}, weights)
    if not is_whole:
        weights.write_bytes(weights.read_bytes()[:2000])
    code = check([str(tmp_path / "run.toml"), "--check"])
    problems = json.loads(capsys.readouterr().out)["problems"]
    if is_whole:
        assert (code, problems) == (0, [])
    else:
        assert code == 2
        assert "model.safetensors is not a complete safetensors file" in problems[0]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda expert: expert.rename(expert.parent / "elsewhere"), "expert is not a directory: correct the path"),
        (lambda expert: (expert / "model.safetensors").write_bytes(b"cut short"), "not a complete safetensors file"),
        (lambda expert: _rename_a_token(expert / "tokenizer.json"), "differs from the policy's in 1 of 45 tokens"),
    ],
)
def test_what_is_wrong_with_an_expert_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], said: str
) -> None:
    (tmp_path / "run.toml").write_text(RUN + '[expert]\npolicy = "scored"\nmodel = "./expert"\n')
    for name in ("model", "expert"):
        write_tokenizer(tmp_path / name)
        save_file({"a": np.zeros(1000, np.float32)}, tmp_path / name / "model.safetensors")
    assert check([str(tmp_path / "run.toml"), "--check"]) == 0
    capsys.readouterr()
    spoil(tmp_path / "expert")
    assert check([str(tmp_path / "run.toml"), "--check"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert said in problems[0]
    assert problems[0].startswith("[expert] model: ")


def _rename_a_token(path: Path) -> None:
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["é"] = vocabulary.pop("z")
    path.write_text(json.dumps(tokenizer))
