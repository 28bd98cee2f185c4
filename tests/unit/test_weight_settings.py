"""Where a run's weights lie and who reads them how, as its run file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import SettingsError
from common.settings import RunFile, load_run
from common.stores.access import is_served, weights_token
from common.stores.directory import DirectoryStorage
from common.stores.http import HttpStorage
from common.stores.object_store import ObjectStorage
from common.stores.opening import storage_to_read, storage_to_write

RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "model"
[data]
path = "data.jsonl"
[weights]
{weights}
"""


def run_with(directory: Path, weights: str) -> RunFile:
    (directory / "run.toml").write_text(RUN.format(weights=weights))
    return load_run(directory / "run.toml")


@pytest.mark.parametrize(
    ("weights", "write", "read"),
    [
        ("", DirectoryStorage, DirectoryStorage),
        ('url = "http://learner:8710"', DirectoryStorage, HttpStorage),
        ('url = "https://learner/weights/"', DirectoryStorage, HttpStorage),
        ('url = "memory://bucket/run"', ObjectStorage, ObjectStorage),
    ],
)
def test_the_url_says_which_store_each_side_opens(tmp_path: Path, weights: str, write: Any, read: Any) -> None:
    settings = run_with(tmp_path, weights)
    assert type(storage_to_write(settings)) is write
    assert type(storage_to_read(settings)) is read


@pytest.mark.parametrize(
    ("weights", "served"),
    [
        ("", False),
        ("serve_port = 0", True),
        ('serve_port = 0\nurl = "https://learner/weights"', True),
        ('url = "http://learner:8710"', False),
        ('serve_port = 0\nurl = "memory://bucket/run"', False),
    ],
)
def test_the_learner_serves_the_directory_that_it_writes_if_a_port_is_set(
    tmp_path: Path, weights: str, served: bool
) -> None:
    assert is_served(run_with(tmp_path, weights).weights) is served


@pytest.mark.parametrize(
    ("own", "operator", "token"),
    [("w", "o", "w"), ("w", None, "w"), (None, "o", "o"), ("", "o", "o"), (None, None, None), ("", "", None)],
)
def test_the_token_for_weights_alone_goes_before_that_of_the_operator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str | None, operator: str | None, token: str | None
) -> None:
    for name, value in (("TRIBUTARY_WEIGHTS_TOKEN", own), ("TRIBUTARY_TOKEN", operator)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert weights_token() == token
    storage = storage_to_read(run_with(tmp_path, 'url = "http://learner:8710"'))
    assert isinstance(storage, HttpStorage)
    assert storage._headers == ({"Authorization": f"Bearer {token}"} if token else {})


@pytest.mark.parametrize("token", ["secret\n", "secrét"])
def test_a_token_that_no_header_holds_is_refused_and_not_told(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("TRIBUTARY_WEIGHTS_TOKEN", token)
    with pytest.raises(SettingsError, match=r"\$TRIBUTARY_WEIGHTS_TOKEN holds a line end") as told:
        weights_token()
    assert token.strip() not in str(told.value)


def test_an_url_that_cannot_be_meant_is_refused_and_not_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"weights\.url") as told:
        run_with(tmp_path, 'url = "S3://ada:secret@bucket/run"')
    assert "secret" not in str(told.value)


def test_the_directories_are_those_of_the_run_unless_others_are_named(tmp_path: Path) -> None:
    settings = run_with(tmp_path, "")
    assert (settings.weights_directory, settings.weights_cache) == (
        tmp_path / "run" / "weights",
        tmp_path / "run" / "weights-cache",
    )
    settings = run_with(tmp_path, 'directory = "/shared/w"\ncache = "fetched"')
    assert (settings.weights_directory, settings.weights_cache) == (Path("/shared/w"), tmp_path / "fetched")
    storage = storage_to_write(settings)
    assert isinstance(storage, DirectoryStorage)
    assert storage.root == Path("/shared/w")


@pytest.mark.parametrize(
    ("weights", "key"),
    [
        ('url = "bucket/run"', "url"),
        ("keep = 0", "keep"),
        ("anchor_every = 0", "anchor_every"),
        ('transfer = "x"', "transfer"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, weights: str, key: str) -> None:
    with pytest.raises(SettingsError, match=f"weights.{key}"):
        run_with(tmp_path, weights)
