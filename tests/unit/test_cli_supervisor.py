"""The supervisor with small real programs: what dies is started again, what cannot work is given up."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.up import process_table, supervisor
from services.cli.up.program import Child, Program, describe_exit
from services.cli.up.supervisor import Change, Deaths, GaveUp, State, Supervisor

MARK = ("TRIBUTARY_TEST_MARK", f"{os.getpid()}")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Stage:
    """A supervisor with a clock in the test's hand, and everything that it told."""

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.changes: list[Change] = []
        self.supervisor = Supervisor(self.changes.append, self.clock, MARK)
        self._directory = directory

    def run(self, name: str, shell: str, *, may_end: bool = False, last: bool = False) -> None:
        log = self._directory / f"{name}.log"
        environment = os.environ | dict([MARK])
        self.supervisor.add(Program(name, name, ("/bin/sh", "-c", shell), environment, log, may_end, last))

    def wait_for_death(self, name: str) -> None:
        """Return when the program has ended; nobody has noticed yet."""
        os.waitid(os.P_PID, self.supervisor.pid(name), os.WEXITED | os.WNOWAIT)

    def tick_after_death(self, name: str) -> None:
        self.wait_for_death(name)
        self.supervisor.tick()

    def states(self, name: str) -> list[State]:
        return [change.state for change in self.changes if change.program.name == name]

    async def stop(self, *, hurry: bool = False) -> None:
        """Stop everything, with real time passing."""
        self.supervisor._clock = time.monotonic  # pyright: ignore[reportPrivateUsage]
        event = asyncio.Event()
        if hurry:
            event.set()
        await self.supervisor.stop(event)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    asyncio.run(made.stop(hurry=True))


def test_a_program_that_dies_is_started_again_after_a_wait(stage: Stage) -> None:
    stage.run("a", "exit 1")
    stage.tick_after_death("a")
    first = stage.supervisor.pid("a")
    stage.clock.now_s += 0.4
    stage.supervisor.tick()
    assert stage.supervisor.pid("a") == first
    stage.clock.now_s += 0.2
    stage.supervisor.tick()
    assert stage.supervisor.pid("a") != first
    assert stage.states("a") == [State.STARTED, State.DIED, State.RESTARTED]
    assert stage.supervisor.restarts == 1


def test_unusable_settings_end_everything_at_once(stage: Stage) -> None:
    stage.run("a", "echo the file is missing; exit 2")
    stage.wait_for_death("a")
    with pytest.raises(GaveUp, match="a cannot use its settings") as caught:
        stage.supervisor.tick()
    assert caught.value.unusable
    assert caught.value.program.log.read_text() == "the file is missing\n"


def test_a_program_that_never_works_is_given_up_at_the_third_death(stage: Stage) -> None:
    stage.run("a", "exit 1")
    for _ in range(2):
        stage.tick_after_death("a")
        stage.clock.now_s += 30
        stage.supervisor.tick()
    stage.wait_for_death("a")
    with pytest.raises(GaveUp, match="3 times in a row before it was ready"):
        stage.supervisor.tick()


def test_the_last_words_are_those_of_the_last_start(stage: Stage) -> None:
    stage.run("a", "echo word; exit 1")
    stage.tick_after_death("a")
    stage.clock.now_s += 1
    stage.supervisor.tick()
    stage.tick_after_death("a")
    stage.clock.now_s += 2
    stage.supervisor.tick()
    stage.wait_for_death("a")
    with pytest.raises(GaveUp) as caught:
        stage.supervisor.tick()
    assert caught.value.log_start == len("word\nword\n")


def test_the_sixth_death_within_a_minute_is_one_too_many() -> None:
    deaths = Deaths()
    for second in range(5):
        deaths.record(float(second), was_ready=True)
        assert deaths.verdict == ""
    deaths.record(5.0, was_ready=True)
    assert deaths.verdict == "it died 6 times within 60 s"


def test_deaths_more_than_a_minute_ago_are_forgiven() -> None:
    deaths = Deaths()
    for minute in range(20):
        deaths.record(61.0 * minute, was_ready=True)
        assert deaths.verdict == ""
        assert deaths.wait_s == 0.5


def test_the_wait_doubles_with_every_recent_death_up_to_a_limit() -> None:
    deaths, waits = Deaths(), list[float]()
    for _ in range(6):
        deaths.record(0.0, was_ready=True)
        waits.append(deaths.wait_s)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]


def test_a_clean_exit_is_the_end_of_a_program_that_may_end_and_the_death_of_any_other(stage: Stage) -> None:
    stage.run("learner", "exit 0", may_end=True)
    stage.run("generator", "exit 0")
    stage.wait_for_death("learner")
    stage.tick_after_death("generator")
    assert stage.states("learner") == [State.STARTED, State.ENDED]
    assert stage.states("generator") == [State.STARTED, State.DIED]
    assert stage.supervisor.ended("learner")


def test_a_program_that_ended_too_early_can_be_revived(stage: Stage) -> None:
    stage.run("learner", "exit 0", may_end=True)
    stage.tick_after_death("learner")
    stage.supervisor.revive("learner")
    stage.supervisor.tick()
    assert not stage.supervisor.ended("learner")
    assert stage.states("learner")[-1] is State.RESTARTED


def test_only_the_process_that_runs_now_is_believed_to_be_ready(stage: Stage) -> None:
    stage.run("a", _FOR_EVER)
    pid = stage.supervisor.pid("a")
    assert not stage.supervisor.mark_ready("a", os.getpid())
    assert not stage.supervisor.mark_ready("unknown", pid)
    assert stage.supervisor.waiting_for() == ["a"]
    assert stage.supervisor.mark_ready("a", pid)
    assert not stage.supervisor.mark_ready("a", pid)
    assert stage.supervisor.waiting_for() == []


def test_a_program_that_nobody_speaks_for_is_confirmed_after_every_start(stage: Stage) -> None:
    stage.run("redis", "exec sleep 60")
    for _ in range(4):  # one more than the false starts that would be allowed
        stage.supervisor.confirm("redis")
        assert stage.supervisor.waiting_for() == []
        os.kill(stage.supervisor.pid("redis"), signal.SIGKILL)
        stage.tick_after_death("redis")
        stage.clock.now_s += 100
        stage.supervisor.tick()
    stage.supervisor.confirm("a Redis that is not ours")


def test_a_program_that_has_ended_can_be_added_anew(stage: Stage) -> None:
    stage.run("learner", "exit 0", may_end=True)
    stage.tick_after_death("learner")
    assert stage.supervisor.ended("learner")
    stage.run("learner", "exec sleep 60", may_end=True)
    assert not stage.supervisor.ended("learner")
    assert stage.supervisor.waiting_for() == ["learner"]


async def test_what_a_dead_program_left_running_is_killed_before_it_is_started_again(
    stage: Stage, tmp_path: Path
) -> None:
    stage.run("a", f"sleep 600 & echo $! > {tmp_path}/stray; exit 1")
    session = stage.supervisor.pid("a")
    stage.wait_for_death("a")
    stray = int((tmp_path / "stray").read_text())
    assert stray in process_table.members([session])
    stage.supervisor.tick()
    deadline_s = time.monotonic() + 60
    while _lives(stray):  # killed, it may still be on its way
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)


async def test_stopping_ends_everything_and_the_last_ones_last(stage: Stage, tmp_path: Path) -> None:
    order = tmp_path / "order"
    for name, last in (("redis", True), ("worker", False)):
        stage.run(
            name, f"trap 'echo {name} >> {order}; exit 0' TERM; touch {tmp_path}/{name}.up; {_FOR_EVER}", last=last
        )
    await _appear(tmp_path / "redis.up", tmp_path / "worker.up")
    sessions = stage.supervisor.sessions()
    await stage.stop()
    assert order.read_text().split() == ["worker", "redis"]
    assert process_table.members(sessions) == []


async def test_a_program_that_ignores_the_request_is_killed_with_its_children(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STOP_S", 0.2)
    stage.run("a", f"trap '' TERM; sleep 600 & touch {tmp_path}/up; {_FOR_EVER}")
    await _appear(tmp_path / "up")
    sessions = stage.supervisor.sessions()
    await stage.stop()
    assert process_table.members(sessions) == []
    assert stage.states("a") == [State.STARTED, State.KILLED]


async def test_a_child_that_left_for_a_session_of_its_own_is_found_by_its_mark(stage: Stage, tmp_path: Path) -> None:
    stage.run("a", f"setsid sleep 600 & touch {tmp_path}/up; {_FOR_EVER}")
    await _appear(tmp_path / "up")
    while len(process_table.marked(*MARK)) < 2:
        await asyncio.sleep(0.01)
    await stage.stop()
    assert process_table.marked(*MARK) == []


async def test_whoever_is_in_a_hurry_waits_for_nobody(stage: Stage, tmp_path: Path) -> None:
    stage.run("a", f"trap '' TERM; touch {tmp_path}/up; {_FOR_EVER}")
    await _appear(tmp_path / "up")
    began_s = time.monotonic()
    await stage.stop(hurry=True)
    assert time.monotonic() - began_s < supervisor.STOP_S / 2
    assert process_table.members(stage.supervisor.sessions()) == []


async def test_what_cannot_be_killed_is_left_after_a_while_and_named(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage.run("a", "exec sleep 600")
    with monkeypatch.context() as changed:
        changed.setattr(supervisor, "STOP_S", 0.0)
        changed.setattr(supervisor, "_KILLED_S", 0.2)
        changed.setattr(process_table, "kill", lambda pids: None)
        changed.setattr(Child, "terminate", lambda child: None)
        await stage.stop()
    assert f"left: process {stage.supervisor.pid('a')}" in caplog.text
    caplog.clear()
    await stage.stop()
    assert not caplog.records


def test_a_program_that_is_not_there_is_a_sentence(stage: Stage, tmp_path: Path) -> None:
    program = Program("a", "a", (str(tmp_path / "nothing"),), {}, tmp_path / "a.log")
    with pytest.raises(Exception, match=r"a cannot be started: .*nothing: No such file"):
        stage.supervisor.add(program)


def test_how_a_process_ended_is_said_in_words() -> None:
    assert describe_exit(1) == "exit code 1"
    assert describe_exit(-9) == "killed by SIGKILL"


def test_the_memory_of_a_process_is_more_than_nothing_and_that_of_a_dead_one_is_nothing() -> None:
    assert process_table.memory_bytes([os.getpid()]) > 1 << 20
    assert process_table.memory_bytes([2**22 + 1]) == 0


_FOR_EVER = "while :; do sleep 0.05; done"


def _lives(pid: int) -> bool:
    return bool(process_table.living([pid]))


async def _appear(*paths: Path) -> None:
    """Return once the files are there: their writers are up."""
    while not all(path.exists() for path in paths):
        await asyncio.sleep(0.01)


def test_a_program_that_stands_back_does_so_with_its_children(tmp_path: Path) -> None:
    shell = "sleep 0.2; nice; sh -c nice; cat /proc/self/autogroup"
    environment = {"PATH": os.environ["PATH"]}
    child = Child(Program("a", "a", ("/bin/sh", "-c", shell), environment, tmp_path / "log", nice=7), 0.0)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert child.exit_code(1.0) == 0
    own, of_its_child, *group = (tmp_path / "log").read_text().splitlines()
    asked = str(min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7))
    assert (own, of_its_child) == (asked, asked)
    if Path("/proc/self/autogroup").exists():
        assert group[0].endswith(f" nice {asked}")


async def test_a_program_speaks_and_is_stopped_through_processes_in_sessions_of_their_own(stage: Stage) -> None:
    """As torchrun, which passes on a signal and waits for its workers; this one does neither."""
    begin = "import subprocess, sys; subprocess.Popen([*sys.argv[1:]], start_new_session=True).wait()"
    stage.run("a", f"exec {sys.executable} -c '{begin}' sleep 60")
    shell = stage.supervisor.pid("a")
    deadline_s = time.monotonic() + 20
    while not (worker := [pid for pid in process_table.members([shell]) if pid != shell]):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)
    assert os.getsid(worker[0]) != shell
    assert stage.supervisor.mark_ready("a", worker[0])
    await stage.stop(hurry=True)
    assert not process_table.living(worker)
