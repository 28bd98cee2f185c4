"""Scenarios: read from a file, checked before the run, sent once each, also over a resume."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config.live import parse_live
from common.errors import SettingsError
from services.cli.client import ControlUnreachable, Refused
from services.cli.progress import Progress
from services.cli.up import timetable
from services.cli.up.scenario import Scenario, curl, load_scenario, scenario_problems
from services.cli.voice import JsonVoice

TEXT = """
[[change]]
at_step = 20
say = "later"
patch = { algorithm = { gamma = 0.3 } }
[[change]]
at_step = 10
say = "teach it"
patch = { algorithm = { kind = "luffy" }, hints = { kind = "demonstration" } }
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    path = tmp_path / "scenario.toml"
    path.write_text(TEXT)
    return load_scenario(path)


def test_changes_are_due_in_the_order_of_their_steps_whatever_the_order_of_the_file(scenario: Scenario) -> None:
    assert scenario.due(9) is None
    due = scenario.due(15)
    assert due is not None
    assert due[0] == "scenario 1: teach it"
    scenario.advance()
    assert scenario.due(15) is None
    due = scenario.due(20)
    assert due is not None
    assert due[1].patch == {"algorithm": {"gamma": 0.3}}
    scenario.advance()
    assert scenario.is_done


def test_what_an_earlier_session_sent_is_not_due_again(scenario: Scenario) -> None:
    scenario.skip_applied(["", "by hand", "scenario 1: teach it"])
    due = scenario.due(30)
    assert due is not None
    assert due[0] == "scenario 2: later"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("change = 1", "change: "),
        ("[[change]]\nat_step = 1\nsay = 'x'\npatches = {}", "change.0.patch"),
        ("[[change]]\nat_step = -1\nsay = 'x'\npatch = {a = 1}", "change.0.at_step"),
        ("", "change: Field required"),
        ("= 3", "is not TOML"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused_with_a_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=complaint.replace(".", r"\.")):
        load_scenario(path)


def test_a_scenario_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read the scenario"):
        load_scenario(tmp_path / "none.toml")


def test_a_scenario_that_fits_has_no_problems(scenario: Scenario) -> None:
    assert list(scenario_problems(scenario, parse_live({}), 30)) == []


def test_a_change_that_would_be_refused_is_found_before_the_run(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text('[[change]]\nat_step = 3\nsay = "x"\npatch = { algorithm = { kind = "luffy" } }')
    problems = list(scenario_problems(load_scenario(path), parse_live({}), None))
    assert len(problems) == 1
    assert problems[0].startswith("change 1 of the scenario (at step 3) would be refused: ")
    assert "needs demonstrations" in problems[0]


def test_a_change_that_would_never_come_is_found_before_the_run(scenario: Scenario) -> None:
    problems = list(scenario_problems(scenario, parse_live({}), 20))
    assert len(problems) == 1
    assert "due at step 20, but step 20 is the last" in problems[0]


def test_the_printed_command_makes_the_same_change() -> None:
    patch = {"algorithm": {"note": "it's γ"}}
    words = shlex.split(curl("http://127.0.0.1:8700", patch))
    assert words[:4] == ["curl", "-X", "PATCH", "http://127.0.0.1:8700/v1/config"]
    assert json.loads(words[-1]) == patch


class ControlStub:
    """Stands in for the client: remembers what was sent, and answers as it is told."""

    def __init__(self, *answers: Exception | None, history: tuple[str, ...] = ()) -> None:
        self.sent: list[str] = []
        self.url = "http://control"
        self._answers = list(answers)
        self._history = history
        self.away = 0

    def revisions(self) -> list[dict[str, Any]]:
        if self.away > 0:
            self.away -= 1
            raise Refused(503, "redis is away", {})
        return [{"reason": reason} for reason in self._history]

    def patch(self, patch: dict[str, Any], *, reason: str, author: str) -> None:
        answer = self._answers.pop(0) if self._answers else None
        if answer is not None:
            raise answer
        self.sent.append(f"{author}: {reason}")

    def __enter__(self) -> ControlStub:
        return self

    def __exit__(self, *raised: object) -> None:
        pass


@pytest.fixture
def keep(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> Callable[[ControlStub, int], None]:
    """Keeps to the scenario with a stand-in for the control plane, at a step."""

    def keep_to(stub: ControlStub, step: int) -> None:
        monkeypatch.setattr(timetable, "ControlClient", lambda url: stub)
        monkeypatch.setattr(timetable, "_LOOK_S", 0.0)
        monkeypatch.setattr(timetable, "_RETRY_S", 0.0)
        progress = Progress(step=step, dashboard="http://control")
        asyncio.run(asyncio.wait_for(timetable.Timetable(scenario, progress, JsonVoice()).keep(), 10))

    return keep_to


def test_every_change_is_sent_once_in_the_name_of_the_scenario(keep: Callable[[ControlStub, int], None]) -> None:
    stub = ControlStub()
    keep(stub, 50)
    assert stub.sent == ["scenario: scenario 1: teach it", "scenario: scenario 2: later"]


def test_a_resumed_run_is_sent_only_what_is_missing(keep: Callable[[ControlStub, int], None]) -> None:
    stub = ControlStub(history=("scenario 1: teach it", ""))
    keep(stub, 50)
    assert stub.sent == ["scenario: scenario 2: later"]


def test_a_control_plane_that_is_away_is_asked_again(keep: Callable[[ControlStub, int], None]) -> None:
    stub = ControlStub(ControlUnreachable("away"), Refused(503, "redis is away", {}))
    keep(stub, 50)
    assert stub.sent == ["scenario: scenario 1: teach it", "scenario: scenario 2: later"]


def test_a_history_that_cannot_be_read_just_now_is_asked_for_again(keep: Callable[[ControlStub, int], None]) -> None:
    stub = ControlStub(history=("scenario 1: teach it",))
    stub.away = 2
    keep(stub, 50)
    assert stub.sent == ["scenario: scenario 2: later"]


def test_a_change_that_is_refused_is_told_and_left_out(
    keep: Callable[[ControlStub, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stub = ControlStub(Refused(422, "gamma: too small", {}))
    keep(stub, 50)
    assert stub.sent == ["scenario: scenario 2: later"]
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[0]["kind"] == "error"
    assert "gamma: too small" in told[0]["text"]
