"""Where a run is: the state file that `up` leaves in the run directory, its lock, and how other commands find it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import TributaryError
from common.settings import load_run

STATE_FILE = "up.json"
_LOCK_FILE = "up.lock"


@dataclass(frozen=True, slots=True)
class RunState:
    """What a running `up` says about itself. redis_url: without its password."""

    run: str
    run_file: str
    directory: str
    pid: int
    url: str
    redis_url: str
    started_s: float

    def write(self) -> None:
        """Write the state file, whole or not at all."""
        path = Path(self.directory) / STATE_FILE
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        beside.replace(path)


class NoRun(TributaryError):
    """No running run was found."""


class AlreadyUp(TributaryError):
    """The run directory is in use by another `up`."""


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Hold a run directory for oneself. AlreadyUp if another `up` has it. The kernel lets go of it when we die."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _already_up(directory) from None
        try:
            yield
        finally:
            (directory / STATE_FILE).unlink(missing_ok=True)


def _already_up(directory: Path) -> AlreadyUp:
    state = _read(directory)
    whose = f" (process {state.pid})" if state else ""
    return AlreadyUp(
        f"the run in {directory} is up already{whose}: stop it with `tributary down --run {directory}`, "
        "watch it with `tributary watch`, or give this run another [run] directory"
    )


def refuse_if_up(directory: Path) -> None:
    """AlreadyUp if another `up` has this run directory."""
    if is_up(directory):
        raise _already_up(directory)


def is_up(directory: Path) -> bool:
    """Whether an `up` holds this run directory now."""
    try:
        with (directory / _LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _read(directory: Path) -> RunState | None:
    try:
        return RunState(**json.loads((directory / STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def find(run: Path | None) -> RunState:
    """The run that is up in a directory (or of a run file), or the newest below ./runs. NoRun says what to do."""
    if run is not None:
        directory = load_run(run).run.directory if run.is_file() else run
        state = _read(directory) if is_up(directory) else None
        if state is None:
            raise NoRun(f"no run is up in {directory}: start it with `tributary up RUN_FILE`")
        return state
    folders = [path.parent for path in Path("runs").glob(f"*/{STATE_FILE}")]
    states = [state for folder in folders if is_up(folder) and (state := _read(folder)) is not None]
    if not states:
        raise NoRun(
            f"no run is up below {Path('runs').resolve()}: start one with `tributary up RUN_FILE`, "
            "or name one with --run DIRECTORY, --url URL or TRIBUTARY_URL"
        )
    return max(states, key=lambda state: state.started_s)


def control_url(run: Path | None, url: str | None) -> str:
    """The control plane's address: as given, from TRIBUTARY_URL, or of the run that is up."""
    given = url or (None if run is not None else os.environ.get("TRIBUTARY_URL"))
    if given:
        return given.rstrip("/")
    state = find(run)
    if not state.url:
        raise NoRun(f"the run {state.run} is still starting and has no address yet: try again in a moment")
    return state.url


def set_aside(directory: Path) -> Path | None:
    """Move an old run directory out of the way (runs/addition becomes runs/addition.1); None if there was nothing."""
    if not directory.exists() or not any(path.name != _LOCK_FILE for path in directory.iterdir()):
        return None
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(target)
    return target
