"""How commands find a run, and how two `up` keep out of each other's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli import location
from services.cli.location import AlreadyUp, NoRun, RunState


def state(directory: Path, url: str = "http://127.0.0.1:8700", started_s: float = 1.0) -> RunState:
    return RunState(directory.name, "run.toml", str(directory), os.getpid(), url, "redis://127.0.0.1:1/0", started_s)


def test_a_run_directory_is_held_by_one_up_at_a_time(tmp_path: Path) -> None:
    with location.hold(tmp_path / "run"):
        state(tmp_path / "run").write()
        with pytest.raises(AlreadyUp, match=f"up already \\(process {os.getpid()}\\): stop it with `tributary down"):
            location.refuse_if_up(tmp_path / "run")
        with pytest.raises(AlreadyUp), location.hold(tmp_path / "run"):
            pass
    location.refuse_if_up(tmp_path / "run")
    assert not (tmp_path / "run" / location.STATE_FILE).exists()


def test_the_state_file_of_an_up_that_was_killed_is_not_believed(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from services.cli import location\n"
        f"directory = Path({str(tmp_path / 'runs' / 'a')!r})\n"
        "with location.hold(directory):\n"
        "    location.RunState('a', 'f', str(directory), os.getpid(), 'u', 'r', 1.0).write()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert (tmp_path / "runs" / "a" / location.STATE_FILE).exists()
    with pytest.raises(NoRun, match="no run is up in"):
        location.find(tmp_path / "runs" / "a")


def test_the_newest_run_that_is_up_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    with location.hold(runs / "a"), location.hold(runs / "b"):
        state(runs / "a", started_s=1).write()
        state(runs / "b", started_s=2).write()
        assert location.find(None).run == "b"
        assert location.find(runs / "a").run == "a"
    with pytest.raises(NoRun, match="start one with `tributary up RUN_FILE`, or name one with --run"):
        location.find(None)


def test_a_run_is_found_by_its_run_file_too(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text('[run]\nname = "a"\ndirectory = "here"\n[model]\npath = "m"\n[data]\npath = "d"\n')
    with location.hold(tmp_path / "here"):
        state(tmp_path / "here").write()
        assert location.find(run_file).directory == str(tmp_path / "here")


def test_a_state_file_that_is_damaged_is_ignored(tmp_path: Path) -> None:
    with location.hold(tmp_path):
        (tmp_path / location.STATE_FILE).write_text(json.dumps({"pid": 1}))
        with pytest.raises(NoRun):
            location.find(tmp_path)


def test_an_address_that_is_given_comes_first_and_the_environment_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIBUTARY_URL", "http://environment:1/")
    with location.hold(tmp_path):
        state(tmp_path).write()
        assert location.control_url(None, "http://given:2/") == "http://given:2"
        assert location.control_url(tmp_path, None) == "http://127.0.0.1:8700"
        assert location.control_url(None, None) == "http://environment:1"


def test_a_run_that_is_still_starting_says_so(tmp_path: Path) -> None:
    with location.hold(tmp_path):
        state(tmp_path, url="").write()
        with pytest.raises(NoRun, match="is still starting"):
            location.control_url(tmp_path, None)


def test_old_run_directories_are_set_aside_under_growing_numbers(tmp_path: Path) -> None:
    run = tmp_path / "addition"
    assert location.set_aside(run) is None
    for number in (1, 2):
        with location.hold(run):
            assert location.set_aside(run) is None, "there is nothing in it yet"
        (run / "file").write_text(f"{number}")
        assert location.set_aside(run) == tmp_path / f"addition.{number}"
    assert (tmp_path / "addition.2" / "file").read_text() == "2"
    assert not run.exists()
