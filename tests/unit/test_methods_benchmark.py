"""The comparison of methods: what it runs, what it keeps, and what it makes of recorded runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _methods_record as record
from benchmarks import _methods_report as report
from benchmarks import _methods_trial as trials
from benchmarks import methods
from benchmarks._methods_trial import Trial, TrialFailed, Workshop
from benchmarks._methods_variants import EXTRAS, SHARED_REASONS, VARIANTS, Variant, choose
from common.config.algorithm import ALGORITHMS
from common.config.live import dump_live, parse_live
from common.config.store import difference
from common.settings import load_run

EVERY = (*VARIANTS, *EXTRAS)
KINDS = [str(a.model_fields["kind"].default) for a in ALGORITHMS]
FINAL = {"pass_at_k": 0.75, "k": 8, "pass_at_1": 0.4, "entropy": 0.2, "greedy": 0.5}


def trial(method: str = "grpo", *, setting: str = "plentiful", seed: int = 0, steps: int = 20) -> Trial:
    return Trial(choose([method])[0], setting, seed, steps)


def summary(*accuracies: float) -> dict[str, Any]:
    """What `up` leaves behind of a run of 20 steps that was evaluated at steps 0, 10 and 20, with `accuracies`."""
    steps = [
        {"step": n, "seconds": 2.0 * n, "groups": 16, "entropy": None if n < 18 else 0.1 * n, "reward": 0.5}
        for n in range(1, 21)
    ]
    evaluations = [
        {"dataset": dataset, "step": 10 * i, "version": 10 * i, "seconds": 20.0 * i, "accuracy": accuracy}
        for i, accuracy in enumerate(accuracies)
        for dataset in ("hard", "easy")
    ]
    return {
        "steps": 20,
        "publications": 20,
        "trained_tokens": 1000,
        "staleness": 1.5,
        "quarantined": 0,
        "measured": {"sampled_tokens": 2000, "restarts": 0},
        "curve": {"steps": steps, "evaluations": evaluations},
    }


def finished(method: str, seed: int, *accuracies: float) -> dict[str, Any]:
    return record.finished(trial(method, seed=seed), summary(*accuracies), FINAL, 60.0, "python -m it")


def test_every_method_is_run_as_itself_with_the_hint_policy_of_its_authors() -> None:
    assert [variant.name for variant in VARIANTS][: len(KINDS)] == [
        *("sft", "reinforce", "grpo", "dr_grpo", "dapo", "naive_mix", "mix", "luffy", "luffy_paper"),
        *("relift", "uft", "bread", "prefix_rft", "srft", "hpt"),
    ]
    assert sorted(variant.name for variant in VARIANTS[: len(KINDS)]) == sorted(KINDS)
    for variant in VARIANTS[: len(KINDS)]:
        published = next(a for a in ALGORITHMS if a.model_fields["kind"].default == variant.name).published_hints
        live = variant.live(50)
        assert (live["algorithm"]["kind"], live["hints"]["kind"]) == (variant.name, published["kind"])


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.name)
def test_every_deviation_from_the_published_settings_has_its_reason_and_no_reason_is_left_over(
    variant: Variant,
) -> None:
    live = variant.live(50)
    kinds = {part: {"kind": live[part]["kind"]} for part in ("algorithm", "hints")}
    deviations = {change.path for change in difference(dump_live(parse_live(kinds)), live)}
    assert deviations <= {*variant.reasons, *SHARED_REASONS}
    assert {*variant.reasons, *SHARED_REASONS} <= deviations


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.name)
def test_a_run_file_says_exactly_what_the_variant_does(variant: Variant, tmp_path: Path) -> None:
    made = Trial(variant, "scarce", 3, 40)
    workshop = Workshop(tmp_path / 'with "quotes"', tmp_path / "base", 1.0)
    document = trials.run_document(made, workshop)
    (tmp_path / "run.toml").write_text(trials.as_toml(document), encoding="utf-8")
    settings = load_run(tmp_path / "run.toml")
    assert dump_live(settings.live) == variant.live(40)
    assert (settings.run.seed, settings.learner.max_steps, settings.control.port) == (3, 40, 0)
    assert [(held.name, held.limit) for held in settings.evaluation.sets] == [("hard", 128), ("easy", 64)]
    assert Path(settings.data.path) == tmp_path / 'with "quotes"' / "data-scarce" / "train.jsonl"


def test_hints_that_fade_do_so_over_nine_tenths_of_the_run() -> None:
    assert choose(["uft"])[0].live(50)["hints"]["steps"] == 45


def test_toml_leaves_out_what_is_null_and_writes_tables_in_tables() -> None:
    text = trials.as_toml({"a": {"b": {"c": None, "d": [1, {"e": "f"}]}, "g": 2e-05, "h": True}})
    assert tomllib.loads(text) == {"a": {"b": {"d": [1, {"e": "f"}]}, "g": 2e-05, "h": True}}


def test_a_record_holds_the_end_of_the_curves_and_when_half_was_reached() -> None:
    found = finished("luffy", 0, 0.0, 0.5, 0.75)
    assert found["final"] == {"hard": 0.75, "easy": 0.75}
    assert found["half"] == {"step": 10, "seconds": 20.0}
    assert found["rollouts"] == 20 * 16 * 7
    assert found["entropy_of_rollouts"] == pytest.approx(1.9)
    assert (found["training_s"], found["wall_s"], found["trained_tokens"]) == (40.0, 60.0, 1000)
    assert finished("sft", 0, 0.0, 0.4, 0.45)["half"] is None
    assert finished("sft", 0, 0.0, 0.4, 0.45)["rollouts"] == 0


def test_a_trial_is_known_once_it_has_finished_with_the_very_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "results" / "r.json"
    results = record.Results(path)
    results.add(record.failed(trial(), "it fell over", 3.0, "it"))
    assert not record.Results(path).knows(trial())
    results.add(finished("grpo", 0, 0.0, 0.0, 0.0))
    again = record.Results(path)
    assert again.knows(trial())
    assert len(again.trials) == 1
    assert not again.knows(trial(seed=1))
    assert not again.knows(trial(steps=21))
    assert not again.knows(trial(setting="scarce"))
    changed = Variant("grpo", {"kind": "grpo"}, learning_rate=1e-4)
    assert not again.knows(Trial(changed, "plentiful", 0, 20))


class Pretence:
    """A workshop in which nothing runs: what each trial leaves behind is told beforehand."""

    def __init__(self, left: dict[str, Any]) -> None:
        self.left = left
        self.ran: list[str] = []

    def carry_out(self, workshop: Workshop, made: Trial) -> tuple[dict[str, Any], float]:
        self.ran.append(made.name)
        found = self.left[made.variant.name]
        if isinstance(found, BaseException):
            raise found
        return found, 60.0


def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretence: Pretence, *more: str) -> int:
    """Run the program with what is pretended."""
    monkeypatch.setattr(Workshop, "prepare", lambda self, settings: None)
    monkeypatch.setattr(Workshop, "carry_out", lambda self, made: pretence.carry_out(self, made))
    monkeypatch.setattr(methods, "measure_final", lambda made, workshop, published: FINAL)
    words = [
        "--out",
        str(tmp_path / "out"),
        "--results",
        str(tmp_path / "r.json"),
        "--steps",
        "20",
        "--seeds",
        "0",
        "1",
    ]
    return methods.main([*words, "--methods", "grpo", "luffy", *more])


def test_a_trial_that_fails_is_kept_with_its_reason_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {"grpo": TrialFailed("the engine burst"), "luffy": summary(0.0, 0.25, 0.5)}
    pretence = Pretence(left)
    assert compare(tmp_path, monkeypatch, pretence) == 1
    kept = json.loads((tmp_path / "r.json").read_text())["trials"]
    assert [(t["method"], t["seed"], t["status"]) for t in kept] == [
        ("grpo", 0, "failed"),
        ("luffy", 0, "finished"),
        ("grpo", 1, "failed"),
        ("luffy", 1, "finished"),
    ]
    assert kept[0]["reason"] == "the engine burst"
    page = (tmp_path / "r.md").read_text()
    assert "| `luffy` | 2 | 50.0 |" in page
    assert "| `grpo` | 0 of 2 | – |" in page
    assert "`grpo`, seed 0, failed: the engine burst" in page
    assert (tmp_path / "r-plentiful.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_comparison_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: dict[str, Any] = {"grpo": KeyboardInterrupt(), "luffy": summary(0.0, 0.25, 0.5)}
    pretence = Pretence(left)
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, monkeypatch, pretence)
    left["grpo"] = summary(0.0, 0.0, 0.0)
    assert compare(tmp_path, monkeypatch, pretence) == 0
    pretence.ran.clear()
    assert compare(tmp_path, monkeypatch, pretence) == 0
    assert pretence.ran == []
    assert compare(tmp_path, monkeypatch, pretence, "--again") == 0
    assert len(pretence.ran) == 4


def test_a_run_that_stops_too_early_has_failed(tmp_path: Path) -> None:
    class Short(Workshop):
        def carry_out(self, trial: Trial) -> tuple[dict[str, Any], float]:
            return summary(0.0) | {"steps": 7}, 10.0

    found = methods.carry_out(trial(), Short(tmp_path, tmp_path, 1.0), "it")
    assert (found["status"], found["reason"]) == ("failed", "it ended after 7 of 20 steps")


def test_up_that_ends_badly_is_told_with_its_last_complaint(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "checking", "text": "checking"},
        {"kind": "error", "text": "learner died too often"},
        {"kind": "log", "text": "  ValueError: no"},
        {"kind": "note", "text": "its log: x"},
    ]
    told = tmp_path / "up.jsonl"
    told.write_text("\n".join(map(json.dumps, lines)))
    assert trials.last_error(told) == "learner died too often | ValueError: no"
    told.write_text('{"kind": "checking", "text": "checking"}\ntributary: there is no model\n')
    assert trials.last_error(told) == "tributary: there is no model"
    told.write_text("")
    assert trials.last_error(told) == "it said nothing"


def test_a_program_that_is_still_there_is_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    trials.end(process)
    assert process.poll() is not None
    trials.end(process)
    assert process.stdin is not None
    process.stdin.close()


def test_a_spread_tells_mean_least_and_most_and_what_is_missing() -> None:
    def show(value: float) -> str:
        return f"{value:.0f}"

    assert report.spread([1.0, 2.0, 3.0], show) == "2 (1 – 3)"
    assert report.spread([2.0, 2.0], show) == "2"
    assert report.spread([2.0, None], show) == "2, 1 of 2 seeds"
    assert report.spread([None], show) == "–"


def test_the_mean_of_curves_reads_each_off_its_own_line_up_to_where_the_shortest_ends() -> None:
    def points(*pairs: tuple[int, float]) -> list[dict[str, Any]]:
        return [{"step": step, "accuracy": accuracy} for step, accuracy in pairs]

    curves = [points((0, 0.0), (10, 1.0), (20, 1.0)), points((0, 0.0), (12, 0.6), (18, 0.6))]
    assert report.mean_curve(curves) == [
        (0, 0.0),
        (10, pytest.approx(0.75)),
        (12, pytest.approx(0.8)),
        (18, pytest.approx(0.8)),
    ]
    assert report.mean_curve([[]]) == []


def test_the_page_names_the_command_the_date_the_machine_and_every_deviation() -> None:
    kept = [finished("uft", 0, 0.0, 0.5, 0.9), finished("uft", 1, 0.0, 0.5, 0.7), finished("grpo", 0, 0.0, 0.0, 0.0)]
    page = report.as_markdown(kept)
    assert "| `uft` | 2 | 80.0 (70.0 – 90.0) |" in page
    assert page.index("`grpo` | 1") < page.index("`uft` | 2")
    assert "* `python -m it`, 20" in page
    assert record.machine() in page
    assert "| `uft` | `hints.steps` | hints fade" in page


def test_an_unknown_method_is_refused_with_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        methods.parse(["--methods", "ppo"])
    assert "there is no method ppo: choose from sft, reinforce" in capsys.readouterr().err
