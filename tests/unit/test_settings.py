"""A run file that cannot be used is one clear sentence with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import SettingsError
from common.settings import load_run

GOOD = """
[run]
name = "small"
directory = "runs/small"
[model]
path = "base"
[data]
path = "data/train.jsonl"
[[evaluation.sets]]
name = "hard"
path = "data/hard.jsonl"
[live]
groups_per_step = 4
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_relative_paths_are_relative_to_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    settings = load_run(written(tmp_path, GOOD))
    assert settings.run.directory == tmp_path / "runs/small"
    assert settings.model.path == str(tmp_path / "base")
    assert settings.data.path == str(tmp_path / "data/train.jsonl")
    assert settings.evaluation.sets[0].path == str(tmp_path / "data/hard.jsonl")
    assert settings.weights_directory == tmp_path / "runs/small/weights"
    assert settings.live.groups_per_step == 4


def test_a_hub_name_stays_a_hub_name(tmp_path: Path) -> None:
    settings = load_run(written(tmp_path, GOOD.replace('"base"', '"Qwen/Qwen2.5-Math-1.5B"')))
    assert settings.model.path == "Qwen/Qwen2.5-Math-1.5B"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[model]", "[modle]", "modle: this key is not known"),
        ('path = "base"', "", "model.path: it is missing"),
        ("groups_per_step = 4", "groups_per_step = 0", r"\[live\] groups_per_step"),
        ("groups_per_step = 4", 'algorithm = {kind = "luffy"}', "needs demonstrations"),
        ('name = "small"', 'name = "Not A Name"', "run.name"),
        ('name = "small"', "name = ", "is not TOML"),
        ('"runs/small"', '"${NOWHERE_SET}/x"', "NOWHERE_SET"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(tmp_path: Path, before: str, after: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_run(written(tmp_path, GOOD.replace(before, after, 1)))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[expert]\npolicy = "recorded"', r"name the column of the log-probs in \[data.columns\] expert_logprobs"),
        ('[expert]\npolicy = "scored"', r"name the model that scores demonstrations in \[expert\] model"),
        ('[expert]\npolicy = "guessed"', "'unit', 'recorded' or 'scored'"),
        ('[expert]\npath = "x"', "expert.path: this key is not known"),
    ],
)
def test_an_expert_policy_that_lacks_its_source_is_refused(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_run(written(tmp_path, f"{GOOD}\n{more}\n"))


def test_the_expert_is_unit_unless_it_is_recorded_or_scored(tmp_path: Path) -> None:
    assert load_run(written(tmp_path, GOOD)).expert.policy == "unit"
    (tmp_path / "base").mkdir()
    scored = load_run(written(tmp_path, GOOD + '[expert]\npolicy = "scored"\nmodel = "base"\n'))
    assert (scored.expert.policy, scored.expert.model) == ("scored", str(tmp_path / "base"))
    columns = '[data.columns]\nexpert_logprobs = "logp"\nexpert_tokens = "ids"\n'
    recorded = load_run(written(tmp_path, GOOD + columns + '[expert]\npolicy = "recorded"\n'))
    assert (recorded.data.columns.expert_logprobs, recorded.data.columns.expert_tokens) == ("logp", "ids")


def test_a_missing_run_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        load_run(tmp_path / "absent.toml")


def test_the_environment_overrides_where_redis_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_run(written(tmp_path, GOOD))
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(SettingsError, match="set REDIS_URL"):
        _ = settings.redis_url
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:1")
    assert settings.redis_url == "redis://elsewhere:1"


@pytest.mark.parametrize(("asked", "limit"), [("none", None), ("7", 7), ("", 40)])
def test_the_environment_overrides_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, limit: int | None
) -> None:
    monkeypatch.setenv("TRIBUTARY_MAX_STEPS", asked)
    assert load_run(written(tmp_path, GOOD + "[learner]\nmax_steps = 40\n")).learner.max_steps == limit


@pytest.mark.parametrize("asked", ["0", "-1", "many", "1.5", "٣", "9" * 5000])
def test_a_last_step_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("TRIBUTARY_MAX_STEPS", asked)
    with pytest.raises(SettingsError, match=r"TRIBUTARY_MAX_STEPS is .* set it to"):
        load_run(written(tmp_path, GOOD))


@pytest.mark.parametrize("key", ["base", "runs/small"])
def test_a_home_directory_of_nobody_is_a_sentence(tmp_path: Path, key: str) -> None:
    with pytest.raises(SettingsError, match="home directory of nobody"):
        load_run(written(tmp_path, GOOD.replace(f'"{key}"', '"~nouser/x"')))


@pytest.mark.parametrize("deep", ["a = " + "[" * 3000 + "]" * 3000, ".".join(["a"] * 3000) + " = 1"])
def test_a_run_file_that_is_nested_too_deeply_is_a_sentence(tmp_path: Path, deep: str) -> None:
    with pytest.raises(SettingsError, match="nested too deeply"):
        load_run(written(tmp_path, deep + "\n" + GOOD))
