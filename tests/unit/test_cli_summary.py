"""Progress, phases and summary are told from events alone, whatever happened in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.events import Event, EventKind
from services.cli.panel import panel, plain_line
from services.cli.progress import Progress
from services.cli.up import closing
from services.cli.up.curve import curve_of
from services.cli.up.phases import Held, phases_of, steps_of
from services.cli.up.summary import Measured, summarise

GRPO = {"algorithm": {"kind": "grpo"}, "hints": {"kind": "none"}}
LUFFY = {"algorithm": {"kind": "luffy", "gamma": 0.1}, "hints": {"kind": "demonstration"}}
MEASURED = Measured(seconds=60, first_step_s=12.5, peak_memory_bytes=3 * 2**30, restarts=1)


class Tale:
    """Events of a run, one after the other; time passes between them only when `wait` says so."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.at_s = 1000.0

    def wait(self, seconds: float) -> Tale:
        self.at_s += seconds
        return self

    def tell(self, kind: EventKind, **data: Any) -> Tale:
        self.events.append(Event(f"{len(self.events) + 1}-0", kind, self.at_s, data))
        return self

    def session(self) -> Tale:
        return self.tell(EventKind.PROCESS, name="up", role="up", state="started")

    def revision(self, number: int, config: dict[str, Any], *changes: tuple[str, Any, Any]) -> Tale:
        told = [{"path": path, "before": before, "after": after} for path, before, after in changes]
        return self.tell(
            EventKind.REVISION, revision=number, config=config, author="me", reason="", changes=told, origin="", at_s=0
        )

    def step(self, number: int, revision: int, *, version: int, **more: Any) -> Tale:
        kinds = (
            {"algorithm": "grpo", "hints": "none"}
            if revision == 1
            else {"algorithm": "luffy", "hints": "demonstration"}
        )
        data = kinds | {
            "reward": 0.5,
            "entropy": 0.1,
            "staleness": 1.0,
            "tokens_per_s": 100.0,
            "step_s": 2.0,
            "wait_s": 0.5,
        }
        return self.tell(EventKind.STEP, step=number, revision=revision, version=version, **(data | more))

    def evaluation(self, version: int, step: int, accuracy: float | None) -> Tale:
        return self.tell(
            EventKind.EVALUATION,
            dataset="hard",
            version=version,
            step=step,
            accuracy=accuracy,
            prompts=8,
            pass_at_k=None,
            k=0,
            nll=None,
            seconds=1,
        )


@pytest.fixture
def steered() -> Tale:
    """Two flat steps of GRPO, a switch to LUFFY while the second is under way, three steps of LUFFY."""
    tale = Tale().session().revision(1, GRPO).wait(10)
    tale.evaluation(0, 0, 0.0).step(1, 1, version=0, reward=0.0)
    tale.revision(
        2, LUFFY, ("algorithm.gamma", None, 0.1), ("algorithm.kind", "grpo", "luffy"), ("hints.kind", "none", "d")
    )
    tale.wait(2).step(2, 1, version=0, reward=0.0)
    for number in (3, 4, 5):
        tale.wait(4).step(number, 2, version=number - 2, reward=0.3)
        tale.tell(EventKind.PUBLICATION, version=number - 2, step=number, bytes=9, seconds=0.1)
        tale.tell(EventKind.UPDATE, generator="generator-1", version=number - 2, pause_s=0.04, apply_s=0.1, fetch_s=0)
    return tale.evaluation(3, 5, 0.75)


def test_a_phase_is_the_steps_of_one_revision(steered: Tale) -> None:
    first, second = phases_of(steered.events)
    assert (first.first, first.last, first.steps) == (1, 2, 2)
    assert (second.first, second.last, second.steps) == (3, 5, 3)
    assert (first.what, second.what) == ("as in the run file", "algorithm grpo → luffy, hints none → d")
    assert second.asked_after == 1


def test_a_phase_takes_the_time_of_its_steps_without_the_wait_for_the_first(steered: Tale) -> None:
    first, second = phases_of(steered.events)
    assert first.seconds == pytest.approx(1.5 + 2)
    assert second.seconds == pytest.approx(12)


def test_a_phase_that_made_no_weights_ends_with_the_accuracy_it_began_with(steered: Tale) -> None:
    first, second = phases_of(steered.events)
    assert first.held == {"hard": Held(0.0, 0.0)}
    assert second.held == {"hard": Held(0.0, 0.75)}


def test_a_phase_whose_weights_were_never_evaluated_has_no_accuracy_at_its_end(steered: Tale) -> None:
    events = [event for event in steered.events if event.data.get("version") != 3 or event.kind is EventKind.STEP]
    assert phases_of(events)[1].held == {"hard": Held(0.0, None)}


def test_the_mean_reward_of_a_phase_leaves_out_steps_without_one() -> None:
    tale = Tale().step(1, 1, version=1, reward=0.2).step(2, 1, version=2, reward=None).step(3, 1, version=3, reward=0.4)
    assert phases_of(tale.events)[0].reward == pytest.approx(0.3)


def test_steps_that_were_done_again_after_a_restart_count_once() -> None:
    tale = Tale()
    for number in (1, 2, 3, 4, 2, 3):
        tale.wait(1).step(number, 1, version=len(tale.events), loss=len(tale.events))
    steps = steps_of(tale.events)
    assert [step.number for step in steps] == [1, 2, 3]
    assert [step.data["loss"] for step in steps] == [0, 4, 5]


def test_the_night_between_two_sessions_is_no_time_of_the_run() -> None:
    tale = Tale().step(1, 1, version=1).wait(36_000).session().wait(20).step(2, 1, version=2)
    assert [step.seconds for step in steps_of(tale.events)] == [1.5, 1.5]


def test_the_pause_is_set_against_the_time_between_two_updates(steered: Tale) -> None:
    summary = summarise("run", steered.events, MEASURED, {})
    assert (summary.publications, summary.updates, summary.steps) == (3, 3, 5)
    assert summary.mean_pause_s == pytest.approx(0.04)
    assert summary.pause_share == pytest.approx(0.01)
    assert summary.accuracy == {"hard": 0.75}


def test_a_run_without_a_single_step_can_be_summed_up(tmp_path: Path) -> None:
    summary = summarise("run", [], Measured(3, None, 0, 0), {})
    closing.write(summary, [], tmp_path)
    assert "0 steps" in _shown(closing.render(summary))
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_is_shown_written_and_drawn(steered: Tale, tmp_path: Path) -> None:
    summary = summarise("addition", steered.events, MEASURED, {"logs": tmp_path / "logs"})
    closing.write(summary, steered.events, tmp_path)
    shown = _shown(closing.render(summary))
    assert "algorithm grpo → luffy" in shown
    assert "0.0 % → 75.0 %" in shown
    assert "12.5 s after the start" in shown
    assert "40 ms on average, 1.0 % of the time between two" in shown
    assert "at most 1 steps later than asked for" in shown
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document["phases"][1]["held"] == {"hard": {"before": 0.0, "after": 0.75}}
    assert (tmp_path / "summary.png").stat().st_size > 10_000


def test_progress_tells_what_is_asked_apart_from_what_is_in_force() -> None:
    tale = Tale().revision(1, GRPO).step(1, 1, version=0).revision(2, LUFFY, ("algorithm.kind", "grpo", "luffy"))
    progress = Progress("run", 10)
    sentences = [progress.absorb(event) for event in tale.events]
    assert sentences[2] == "revision 2 asked for by me: algorithm grpo → luffy"
    assert (progress.asked, progress.in_force, progress.algorithm) == (2, 1, "grpo")
    tale.tell(EventKind.IN_FORCE, process="learner", role="learner", revision=2, step=2)
    assert progress.absorb(tale.events[-1]) == "revision 2 in force at the learner from step 2"
    assert (progress.in_force, progress.algorithm, progress.hints) == (2, "luffy", "demonstration")


def test_a_generator_that_is_silent_counts_as_idle() -> None:
    tale = Tale().tell(EventKind.GENERATION, generator="generator-1", tokens_per_s=500.0, running=1, requests=1)
    progress = Progress()
    progress.absorb(tale.events[0])
    assert progress.generated_tokens_per_s(tale.at_s + 5) == 500
    assert progress.generated_tokens_per_s(tale.at_s + 15) == 0


def test_every_kind_of_event_can_be_shown(steered: Tale) -> None:
    steered.tell(EventKind.QUARANTINE, stream="groups", reason="not a group", id="1")
    steered.tell(EventKind.NOTICE, text="training is complete")
    steered.tell(EventKind.PROCESS, name="generator-1", role="generator", state="lost")
    progress = Progress("addition", 10, "http://127.0.0.1:8700")
    sentences = [progress.absorb(event) for event in steered.events]
    assert "held-out hard after step 5: accuracy 75.0 % (8 prompts)" in sentences
    assert "quarantined a message of groups: not a group" in sentences
    assert "training is complete" in sentences
    shown = _shown(panel(progress, steered.at_s))
    for word in ("5 / 10", "75.0 % (from 0.0 %)", "generator-1 (lost)", "http://127.0.0.1:8700", "quarantined"):
        assert word in shown
    assert plain_line(progress, steered.at_s).startswith("step 5/10 | revision 2 luffy+demonstration | reward 0.180")


def _shown(renderable: Any) -> str:
    console = Console(width=160, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_curve_gives_every_step_and_evaluation_with_the_time_that_training_had_taken(steered: Tale) -> None:
    curve = curve_of(steered.events)
    assert [row["step"] for row in curve["steps"]] == [1, 2, 3, 4, 5]
    assert [row["seconds"] for row in curve["steps"]] == [1.5, 3.5, 7.5, 11.5, 15.5]
    assert curve["steps"][-1]["reward"] == 0.3
    first, last = curve["evaluations"]
    assert (first["accuracy"], first["step"], first["seconds"]) == (0.0, 0, 0.0)
    assert (last["accuracy"], last["step"], last["seconds"]) == (0.75, 5, 15.5)


def test_the_curve_is_written_with_the_summary(steered: Tale, tmp_path: Path) -> None:
    closing.write(summarise("addition", steered.events, MEASURED, {}), steered.events, tmp_path)
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document["curve"] == curve_of(steered.events)


def test_tokens_of_steps_that_changed_nothing_are_not_trained() -> None:
    tale = Tale().step(1, 1, version=0, tokens=100, updated=False).step(2, 1, version=1, tokens=70, updated=True)
    assert summarise("run", tale.events, MEASURED, {}).trained_tokens == 70


def test_schedule_and_rehearsal_buffer_are_shown_while_there_are_any() -> None:
    rehearsal = {"waiting": 17, "entries": 32, "loss": 0.5, "grad_norm": 1.0, "updated": True}
    tale = Tale().step(1, 1, version=1, hint_length=9.25, rehearsal=rehearsal)
    progress = Progress("run", 10)
    assert "hint" not in plain_line(progress, tale.at_s)
    progress.absorb(tale.events[0])
    shown = _shown(panel(progress, tale.at_s))
    for words in ("9.2 tokens", "17 demonstrations wait, 32 imitated after the newest step"):
        assert words in shown
    progress.schedule = {"kind": "uniform_decay", "phase": 0.5, "low": 0.31, "mean_hint_length": 12.5}
    assert "low 0.31, 50.0 % done, hints of 12.5 tokens" in _shown(panel(progress, tale.at_s))
    assert "hint schedule low 0.31" in plain_line(progress, tale.at_s)
    assert "rehearsal buffer 17" in plain_line(progress, tale.at_s)


def test_orders_that_stand_are_shown_until_they_are_taken_back() -> None:
    tale = Tale()
    tale.tell(EventKind.PROCESS, name="generator-1", role="generator", state="ready")
    tale.tell(EventKind.ORDER, order="pause", target="learner", by="ada")
    tale.tell(EventKind.ORDER, order="drain", target="generator-1", by="guard:collapse")
    tale.tell(EventKind.ORDER, order="checkpoint", target="learner", by="ada")
    progress = Progress("run", 10)
    sentences = [progress.absorb(event) for event in tale.events]
    assert sentences[1:] == [
        "ada orders learner: pause",
        "guard:collapse orders generator-1: drain",
        "ada orders learner: checkpoint",
    ]
    shown = _shown(panel(progress, tale.at_s))
    assert "paused by ada" in shown
    assert "generator-1 (drained)" in shown
    assert "paused by ada | drained: generator-1" in plain_line(progress, tale.at_s)
    status = {"hint_schedule": None, "learner": {"paused": None}, "drained": {}}
    progress.look(status)
    assert "paused" not in plain_line(progress, tale.at_s)
    assert "drained" not in _shown(panel(progress, tale.at_s))
    progress.look(status | {"learner": {"paused": {"by": "bo", "at_s": 1.0}}})
    assert progress.paused_by == "bo"
    tale.tell(EventKind.ORDER, order="resume", target="learner", by="ada")
    tale.tell(EventKind.ORDER, order="admit", target="generator-1", by="ada")
    assert next(map(progress.absorb, tale.events[-2:])) == "ada orders learner: resume"
    progress.absorb(tale.events[-1])
    assert (progress.paused_by, progress.drained) == ("", {})


def test_what_becomes_of_an_added_demonstration_is_told() -> None:
    tale = Tale().tell(EventKind.ADDITION, id="1-0", prompt_id="train:3", state="refused", reason="graded 0", by="ada")
    assert Progress().absorb(tale.events[0]) == "demonstration added to train:3 by ada: refused (graded 0)"


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (EventKind.ORDER, {"order": "dance", "target": "learner", "by": "ada"}),
        (EventKind.PUBLICATION, {"version": "x"}),
        (EventKind.GENERATION, {}),
        (EventKind.STEP, {"step": None}),
        (EventKind.REVISION, {"revision": 2, "config": {}, "changes": 3}),
        (EventKind.NOTICE, {}),
    ],
)
def test_an_event_of_another_form_ends_nobody_who_follows(kind: EventKind, data: dict[str, Any]) -> None:
    progress = Progress("addition", 10)
    assert progress.absorb(Event("1-0", kind, 1.0, data)) == f"a {kind.value} event that cannot be read"


def test_a_run_called_like_markup_or_with_control_characters_is_shown_as_it_is_called() -> None:
    progress = Progress("[/] a[bold]", 10, "http://127.0.0.1:8700")
    progress.algorithm = "evil\x1b[2J"
    progress.processes["gen\x1b[31m"] = "running"
    shown = _shown(panel(progress, 1.0))
    assert "[/] a[bold]" in shown
    assert "\x1b" not in shown
    assert "evil\\x1b[2J" in shown
