"""`tributary up` with real programs but no generator: it starts, restarts, resumes, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from up_process import UpProcess, command, write_run

from services.cli.up import process_table

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

Start = Callable[..., UpProcess]
INTERRUPTED = 130


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `up`, and ends it if the test did not."""
    started: list[UpProcess] = []

    def make(run_file: Path, *options: str, **environment: str) -> UpProcess:
        started.append(UpProcess(run_file, *options, **environment))
        return started[-1]

    yield make
    for up in started:
        up.clean_up()


@pytest.mark.parametrize(
    ("moment", "number"),
    [("checking", signal.SIGINT), ("redis started", signal.SIGTERM), ("control started", signal.SIGINT)],
)
def test_it_can_be_stopped_at_any_moment_of_its_start(
    start: Start, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    up = start(write_run(tmp_path))
    up.wait_for(moment)
    began_s = time.monotonic()
    up.signal(number)
    assert up.wait(15) == INTERRUPTED
    assert time.monotonic() - began_s < 10
    assert up.left() == []
    assert "stopped; the run can be resumed with: tributary up" in up.output
    assert "Traceback" not in up.output


def test_a_run_survives_the_death_of_its_programs_and_is_resumed_where_it_was(start: Start, tmp_path: Path) -> None:
    run_file = write_run(tmp_path)
    up = start(run_file)
    up.wait_for("learner is ready")
    up.wait_for("curriculum is ready")
    directory = str(tmp_path / "run")

    second = command("up", str(run_file))
    assert second.returncode == 1
    assert "is up already" in second.stderr

    changed = command("switch", "luffy", "--gamma", "0.3", "--hints", "demonstration", "--run", directory)
    assert changed.returncode == 0, changed.stderr
    up.wait_for("revision 2 asked for by .*: algorithm dr_grpo → luffy, hints none → demonstration")

    redis_pid = up.pid_of("redis")
    for name in ("control", "redis"):
        os.kill(up.pid_of(name), signal.SIGKILL)
        up.wait_for(rf"{name} died \(killed by SIGKILL\)")
        up.wait_for(rf"{name} restarted")
    assert up.pid_of("redis") != redis_pid
    _wait_for_revision(directory, 2)
    rolled = command("config", "rollback", "1", "--run", directory)
    assert rolled.returncode == 0, rolled.stderr
    up.wait_for("revision 3 asked for by")

    stopped = command("down", "--run", directory)
    assert stopped.returncode == 0, stopped.stderr
    assert up.wait(15) == INTERRUPTED
    assert up.left() == []

    again = start(run_file)
    again.wait_for("resuming the run in")
    _wait_for_revision(directory, 3)
    again.signal(signal.SIGTERM)
    assert again.wait(15) == INTERRUPTED
    assert "revision 1 asked" not in again.output, "what happened in an earlier session is not news"


def _wait_for_revision(directory: str, number: int) -> None:
    """Return once the control plane answers and says that this revision is current."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        answer = command("config", "get", "--json", "--run", directory)
        if answer.returncode == 0:
            assert json.loads(answer.stdout)["revision"] == number
            return
        time.sleep(0.5)
    raise AssertionError(f"no answer: {answer.stderr}")


def test_after_its_own_violent_death_no_process_is_left_and_the_run_can_be_started_again(
    start: Start, tmp_path: Path
) -> None:
    up = start(write_run(tmp_path))
    up.wait_for("learner is ready")
    up.signal(signal.SIGKILL)
    up.wait(10)
    up.wait_until_nothing_is_left(30)
    status = command("status", "--run", str(tmp_path / "run"))
    assert status.returncode == 1
    assert "no run is up" in status.stderr
    again = start(tmp_path / "run.toml")
    again.wait_for("resuming the run in")


def test_a_learner_of_several_processes_is_one_program_that_dies_restarts_and_stops_whole(
    start: Start, tmp_path: Path
) -> None:
    run_file = write_run(tmp_path)
    run_file.write_text(run_file.read_text().replace('device = "cpu"', 'device = "cpu"\nprocesses = 2'))
    up = start(run_file)
    up.wait_for("learner is ready", 180)
    ranks = process_table.marked("RANK", "1")
    os.kill(next(pid for pid in up.left() if pid in ranks), signal.SIGKILL)
    up.wait_for(r"learner died \(exit code 1\)")
    up.wait_for("learner restarted")
    assert not set(ranks) & set(up.left())
    up.signal(signal.SIGINT)
    assert up.wait(30) == INTERRUPTED
    assert up.left() == []


def test_fresh_moves_the_old_run_aside_and_begins_with_the_first_revision(start: Start, tmp_path: Path) -> None:
    run_file = write_run(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "keepsake").touch()
    up = start(run_file, "--fresh")
    up.wait_for(f"the old run lies in {tmp_path}/run.1 now")
    up.wait_for("revision 1 asked for by run file")
    assert (tmp_path / "run.1" / "keepsake").exists()
    assert not (tmp_path / "run" / "keepsake").exists()


def test_settings_that_cannot_be_used_end_it_before_anything_is_started(start: Start, tmp_path: Path) -> None:
    run_file = write_run(tmp_path)
    text = run_file.read_text()
    run_file.write_text(text.replace("train.jsonl", "missing.jsonl").replace("/base", "/data"))
    up = start(run_file)
    assert up.wait(60) == 2
    assert re.search(r"is not a model directory \(it has no config.json\)", up.output)
    assert "started" not in up.output
    assert not (tmp_path / "run").exists()


def test_a_missing_data_file_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    run_file = write_run(tmp_path)
    run_file.write_text(run_file.read_text().replace("train.jsonl", "missing.jsonl"))
    found = command("check", str(run_file), "--json")
    assert found.returncode == 2
    report = json.loads(found.stdout)
    assert [problem for problem in report["problems"] if "missing.jsonl" in problem]
    assert "Traceback" not in found.stderr
