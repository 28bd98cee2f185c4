"""One `pip install` into an environment, with progress on the terminal and every word in a log."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from deploy.machine import SetupError

LOOK_EVERY_S = 0.3
REWRITE = "\r\033[K"


class PipError(SetupError):
    """pip gave up; `said` is everything that it said."""

    def __init__(self, what: str, log: Path, said: str) -> None:
        """Show pip's last words, keep all of them for whoever can act on them."""
        last = "\n".join(f"    {line}" for line in said.splitlines()[-12:])
        super().__init__(f"pip could not install {what}; it said\n{last}\n(all of it: {log}). Run make again.")
        self.said = said


def pip(venv: Path, what: str, arguments: list[str], total: int = 0) -> None:
    """Run one `pip install`, show how far it is, keep everything it says in the log."""
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-input", "--progress-bar", "off", *arguments]
    # What the user set for other projects (a target folder, --user) must not lead packages elsewhere.
    strays = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")
    environment = {key: value for key, value in os.environ.items() if key not in strays}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    log = venv / "setup.log"
    with log.open("a+", encoding="utf-8", errors="replace") as record:
        record.write(f"$ {' '.join(command)}\n")
        record.flush()
        began = record.tell()
        # close_fds=False hands the lock down: should this process be killed, the lock lasts until pip has ended too.
        process = subprocess.Popen(command, env=environment, stdout=record, stderr=record, close_fds=False)
        progress = Progress(venv, what, total)
        try:
            while process.poll() is None:
                time.sleep(LOOK_EVERY_S)
                record.seek(began)
                progress.show(record.read())
        except BaseException:
            process.terminate()
            process.wait()
            raise
        record.seek(began)
        said = record.read()
    progress.ended("done" if process.returncode == 0 else "not to be had")
    if process.returncode != 0:
        raise PipError(what, log, said)


class Progress:
    """One line of the terminal that says how far a step is; in a file, one line at its start and one at its end."""

    def __init__(self, venv: Path, what: str, total: int) -> None:
        """Start the clock of the step called `what`, which handles `total` packages (0: unknown)."""
        self.venv, self.what, self.total = venv, what, total
        self.live = sys.stdout.isatty()
        self.began_s = time.monotonic()
        if not self.live:
            print(f"  {what}: begun", flush=True)

    def show(self, said: str) -> None:
        """Rewrite the line from all that pip has said in this step."""
        if not self.live:
            return
        if "\nInstalling collected packages" in said:
            done = len(list(self.venv.glob("lib/python*/site-packages/*.dist-info")))
            state = f"unpacking, {done} packages are in place"
        else:
            seen = said.count("Collecting ") + said.count("Requirement already satisfied")
            state = f"fetching {seen} of {self.total}" if self.total else "fetching"
        self.write(f"{state} ({time.monotonic() - self.began_s:.0f} s)")

    def ended(self, outcome: str) -> None:
        """Leave the line standing with its outcome."""
        self.write(f"{outcome} ({time.monotonic() - self.began_s:.0f} s)\n")

    def write(self, state: str) -> None:
        """Put the line onto the terminal, over the one before."""
        print(f"{REWRITE if self.live else ''}  {self.what}: {state}", end="", flush=True)
