"""Where a run's weights lie and who reads them how, as its run file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import SettingsError
from common.settings import RunFile, load_run
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
