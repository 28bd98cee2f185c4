"""The recipe of the addition base, run again from nothing as a user would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from examples.addition.make_base import measure

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "addition" / "make_base.py"
LIMIT_S = 900  # 90 s of one core, left much room on a busy machine


def run_recipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(RECIPE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S, check=False)


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_the_recipe_makes_a_base_that_adds_easily_and_never_carries_on(tmp_path: Path) -> None:
    finished = run_recipe("--out", str(tmp_path / "base"), "--seed", "0")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()
    gate = measure(model, tokenizer, seed=11, problems=256)
    assert gate.easy >= 0.9
    assert gate.hard < 0.05


@pytest.mark.slow
def test_a_base_that_has_not_converged_is_not_saved(tmp_path: Path) -> None:
    finished = run_recipe("--out", str(tmp_path / "base"), "--steps", "2", "--gate-problems", "8")
    assert finished.returncode == 1
    assert "not saved: greedy accuracy on easy problems is 0.000, below 0.9" in finished.stderr
    assert not (tmp_path / "base").exists()
