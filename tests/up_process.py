"""A real `tributary up` for tests: a run of the addition example in a directory of its own, watched line by line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from services.cli.up import process_table

ROOT = Path(__file__).resolve().parents[1]
ADDITION = ROOT / "examples" / "addition"
RUN = """
[run]
name = "up"
directory = "run"
[model]
path = "{addition}/base"
dtype = "float32"
[data]
path = "{addition}/data/train.jsonl"
step_separator = ";"
limit = 64
[evaluation]
every_versions = 5
[[evaluation.sets]]
name = "easy"
path = "{addition}/data/heldout_easy.jsonl"
limit = 16
[control]
port = {port}
[generator]
count = {generators}
[learner]
device = "cpu"
max_steps = {max_steps}
[checkpoints]
every_steps = 4
[live]
groups_per_step = 4
max_staleness = 3
[live.sampling]
max_response_tokens = 64
[live.optimizer]
learning_rate = 2e-4
"""


def write_run(directory: Path, *, generators: int = 0, max_steps: int = 1000, port: int = 0) -> Path:
    """A run file in `directory`; its run directory is `directory`/run. Without generators no step is ever made."""
    path = directory / "run.toml"
    path.write_text(RUN.format(addition=ADDITION, generators=generators, max_steps=max_steps, port=port))
    return path


class UpProcess:
    """`tributary up RUN_FILE --plain`, with what it said so far."""

    def __init__(self, run_file: Path, *options: str, **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "TRIBUTARY_URL")}
        self.lines: list[str] = []
        self._spoken = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", str(run_file), "--plain", *options],
            cwd=ROOT,
            env=clean | {"PYTHONUNBUFFERED": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._spoken:
                self.lines.append(line.rstrip())
                self._spoken.notify_all()
        with self._spoken:
            self._spoken.notify_all()

    @property
    def output(self) -> str:
        """Everything that it said."""
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, limit_s: float = 90) -> re.Match[str]:
        """The first match of `pattern` in a line; waits until it is said."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        deadline_s = time.monotonic() + limit_s
        with self._spoken:
            while (match := found()) is None:
                left_s = deadline_s - time.monotonic()
                assert left_s > 0, f"{pattern!r} was not said within {limit_s} s:\n{self.output}"
                assert self._reader.is_alive(), f"it ended without saying {pattern!r}:\n{self.output}"
                self._spoken.wait(min(left_s, 1.0))
        return match

    def pid_of(self, name: str) -> int:
        """The process id of a program, as it was started last."""
        pattern = re.compile(rf" {re.escape(name)} (?:started|restarted) \(process (\d+)\)")
        return int([match for line in self.lines if (match := pattern.search(line))][-1][1])

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, limit_s: float) -> int:
        """Its exit code; waits until it has ended and said its last word."""
        code = self.process.wait(limit_s)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def left(self) -> list[int]:
        """Processes that it started, directly or not, and that still live."""
        return process_table.marked("TRIBUTARY_PARENT", str(self.process.pid))

    def wait_until_nothing_is_left(self, limit_s: float) -> float:
        """How long it took until the last process that it started was gone."""
        began_s = time.monotonic()
        while left := self.left():
            assert time.monotonic() - began_s < limit_s, f"still alive after {limit_s} s: {left}"
            time.sleep(0.05)
        return time.monotonic() - began_s

    def clean_up(self) -> None:
        """End whatever a failed test left."""
        if self.process.poll() is None:
            self.process.kill()
            self.wait(10)
        process_table.kill(self.left())


def command(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Another `tributary` command, run to its end."""
    clean = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "TRIBUTARY_URL")}
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *words],
        cwd=cwd,
        env=clean | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
