"""The learner that is told to serve its weights: not to other machines without a token, and not after minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import SettingsError
from common.process import Process
from common.settings import load_run
from learner.__main__ import main, serving_weights

RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "./no-such-model"
[data]
path = "train.jsonl"
[grader]
name = "numeric"
[weights]
serve_host = "0.0.0.0"
serve_port = 0
"""


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Process:
    """A learner's process, which needs no Redis as long as nothing is asked of it."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    for name in ("TRIBUTARY_TOKEN", "TRIBUTARY_WEIGHTS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "run.toml").write_text(RUN)
    return Process("learner", "learner", load_run(tmp_path / "run.toml"))


async def test_weights_that_others_could_fetch_without_a_token_end_it_before_the_model_is_loaded(
    process: Process,
) -> None:
    with pytest.raises(SettingsError, match=r"would serve its weights on 0\.0\.0\.0"):
        await main(process)
    assert "weights_url" not in process.details


async def test_with_a_token_for_weights_they_are_served(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIBUTARY_WEIGHTS_TOKEN", "secret")
    with serving_weights(process):
        assert str(process.details["weights_url"]).startswith("http://")
