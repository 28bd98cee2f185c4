"""`tributary export`: the learner's program does it; its words and its exit code are passed on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command_line import Run, runner

from services.cli.commands import exporting

RUN_FILE = """
[run]
name = "test"
directory = "run"
[model]
path = "m"
[data]
path = "d.jsonl"
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    (tmp_path / "run.toml").write_text(RUN_FILE)
    return runner("http://127.0.0.1:1", monkeypatch, capsys)


def pretend(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Have this program run in place of the learner's."""
    real = exporting._run

    def instead(command: list[str], run_file: Path, *, is_heard: bool) -> tuple[int, str, str]:
        return real([sys.executable, "-c", program, *command[2:]], run_file, is_heard=is_heard)

    monkeypatch.setattr(exporting, "_run", instead)


@pytest.mark.parametrize("code", [0, 2])
def test_the_exit_code_is_that_of_the_learners_program(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    pretend(monkeypatch, f"raise SystemExit({code})")
    assert run("export", str(tmp_path / "run.toml"), "--to", "model")[0] == code


def test_it_is_told_what_to_export_and_a_document_is_printed_only_when_asked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "import sys; print(*sys.argv[1:])")
    run_file, model = str(tmp_path / "run.toml"), str(tmp_path / "model")
    code, out, _ = run("export", run_file, "--to", model, "--step", "3", "--dtype", "float32", "--json")
    words = f"learner.export {run_file} --to {model} --step 3 --dtype float32"
    assert (code, json.loads(out)) == (0, {"directory": model, "text": words})


def test_its_complaint_is_a_problem_document_when_asked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "import sys; print('export: no checkpoint', file=sys.stderr); sys.exit(2)")
    code, out, err = run("export", str(tmp_path / "run.toml"), "--to", "model", "--json")
    assert (code, out) == (2, "")
    assert json.loads(err) == {"title": "SettingsError", "detail": "no checkpoint", "exit_code": 2}


def test_without_a_run_file_the_run_that_is_up_is_meant(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("export", "--to", "model")
    assert (code, "no run is up below" in err) == (1, True)
