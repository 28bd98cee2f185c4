"""The programs of a run: a scorer belongs to it if, and only if, an expert model scores the demonstrations."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from common.settings import RunFile, load_run
from services.cli.up.programs import environment, programs

RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "./model"
[data]
path = "./data.jsonl"
[generator]
count = 2
threads = 2
"""
EXPERT = """
[expert]
policy = "scored"
model = "./expert"
threads = 3
"""


def settings(directory: Path, extra: str = "") -> RunFile:
    (directory / "run.toml").write_text(RUN + extra)
    for name in ("model", "expert"):
        (directory / name).mkdir(exist_ok=True)
    (directory / "data.jsonl").touch()
    return load_run(directory / "run.toml")


def test_without_a_scored_expert_there_is_no_scorer(tmp_path: Path) -> None:
    named = [program.name for program in programs(settings(tmp_path), tmp_path / "run.toml", "redis://here")]
    assert named == ["generator-1", "generator-2", "learner", "curriculum", "control"]


def test_a_scorer_is_started_beside_the_generators_and_kept_running(tmp_path: Path) -> None:
    started = {p.name: p for p in programs(settings(tmp_path, EXPERT), tmp_path / "run.toml", "redis://here")}
    assert list(started) == ["generator-1", "generator-2", "scorer-1", "learner", "curriculum", "control"]
    scorer = started["scorer-1"]
    assert scorer.command[1:] == ("-m", "services.generator.scoring", str(tmp_path / "run.toml"), "--name", "scorer-1")
    assert (scorer.role, scorer.may_end) == ("scorer", False)
    assert (scorer.environment["OMP_NUM_THREADS"], scorer.environment["REDIS_URL"]) == ("3", "redis://here")
    assert started["generator-1"].environment["OMP_NUM_THREADS"] == "2"


def test_the_hub_is_asked_only_for_models_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked = settings(tmp_path, EXPERT)
    assert all(environment(asked, role).get("HF_HUB_OFFLINE") == "1" for role in ("generator", "scorer", "learner"))
    (tmp_path / "expert").rmdir()
    hub = asked.model_copy(update={"expert": asked.expert.model_copy(update={"model": "someone/expert"})})
    offline = {role: environment(hub, role).get("HF_HUB_OFFLINE") for role in ("generator", "scorer", "learner")}
    assert offline == {"generator": None, "scorer": None, "learner": "1"}


def test_a_learner_of_several_processes_is_started_by_torchrun(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    asked = settings(tmp_path, "[learner]\nprocesses = 2\n")
    started = {p.name: p for p in programs(asked, run_file, "redis://here")}
    launcher = ("-m", "services.cli.up.tether", str(os.getpid()), sys.executable)
    torchrun = ("-m", "learner.ranks.launching", "--standalone", "--nproc-per-node", "2", "--shutdown-timeout", "600")
    learner = ("-m", "learner", str(run_file), "--name", "learner")
    assert started["learner"].command == (sys.executable, *launcher, *torchrun, *learner)
    assert started["curriculum"].command[:3] == (sys.executable, "-m", "services.curriculum")


def test_generators_come_before_who_computes_without_pause_and_all_of_them_after_who_answers(tmp_path: Path) -> None:
    nice = {p.role: p.nice for p in programs(settings(tmp_path, EXPERT), tmp_path / "run.toml", "redis://here")}
    assert 0 == nice["control"] == nice["curriculum"] < nice["generator"] < min(nice["learner"], nice["scorer"])
