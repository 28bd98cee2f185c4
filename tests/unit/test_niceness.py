"""A session's group is as nice as the process that leads it, whichever way it was started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import niceness
from learner import __main__ as learner

ROOT = Path(__file__).resolve().parents[2]
OWN = os.getpid()
TELL = "print(os.getpriority(os.PRIO_PROCESS, 0), open('/proc/self/autogroup').read().split()[-1])"
SHARE = f"import os; os.nice(3); from common.niceness import share_with_group as s; s(os.getpid()); {TELL}"
GROUPED = pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not group by session")


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of this process's group, which leads its session."""
    monkeypatch.setattr(niceness, "_GROUP", str(tmp_path / "{pid}"))
    monkeypatch.setattr(os, "getsid", lambda pid: pid)
    file = tmp_path / str(OWN)
    file.write_text("")
    return file


def _said(*, leads: bool) -> list[int]:
    """Its own niceness and its group's, of a process that stood back by 3 and shared that; it leads its session or not.

    Who leads none is started by a shell that does.
    """
    python = [sys.executable, "-c", SHARE]
    command = python if leads else ["/bin/sh", "-c", '"$@"; exit $?', "sh", *python]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, start_new_session=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@GROUPED
def test_the_group_of_a_session_becomes_as_nice_as_its_leader() -> None:
    own, shared = _said(leads=True)
    assert own == shared == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)


@GROUPED
def test_who_does_not_lead_a_session_leaves_its_group_as_it_is() -> None:
    assert _said(leads=False)[1] == 0


def test_where_there_are_no_groups_nothing_happens(group: Path) -> None:
    group.unlink()
    niceness.share_with_group(OWN)
    assert not group.exists()


def test_a_process_that_is_gone_is_no_trouble() -> None:
    niceness.share_with_group(2**22 + 1)


def test_a_kernel_that_is_busy_is_asked_again_but_not_for_ever(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = iter([True, True])
    wrote = niceness._wrote  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(niceness, "_wrote", lambda *told: not next(refusals, False) and wrote(*told))
    niceness.share_with_group(OWN)
    assert group.read_text() == str(os.getpriority(os.PRIO_PROCESS, 0))
    assert next(refusals, None) is None
    monkeypatch.setattr(niceness, "_wrote", lambda *told: False)
    monkeypatch.setattr(niceness, "_PATIENCE_S", 0.1)
    niceness.share_with_group(OWN)


def test_a_refusal_of_the_kernel_is_known_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr(Path, "open", refuse)
    assert not niceness._wrote(Path("group"), 5)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_of_the_learner_shares_its_niceness(group: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(learner, "run", lambda *_: int(group.read_text() or -1))
    monkeypatch.setattr(learner, "follow", lambda *_: int(group.read_text() or -1))
    assert learner.start() == os.getpriority(os.PRIO_PROCESS, 0)
