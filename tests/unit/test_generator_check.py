"""The generator's check: what is wrong with a model is said before an engine is started."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

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
