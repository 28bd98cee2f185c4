"""Caches: left where they are if home can be written, else below the directory for temporary files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from common.errors import SettingsError
from services.cli.up import caches

NAMES = ("HF_HOME", "VLLM_CACHE_ROOT", "MPLCONFIGDIR")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, a directory for temporary files, and nothing set by the user."""
    for name in (*NAMES, "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "home"


def test_a_home_that_can_be_written_is_used() -> None:
    assert caches.beside_home() == {}


def test_where_home_cannot_be_written_the_caches_go_elsewhere_unless_the_user_says_where(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.touch()  # a file: nothing can be made below it, not even by root
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/chosen")
    found = caches.beside_home()
    assert sorted(found) == ["HF_HOME", "MPLCONFIGDIR"]
    for place in found.values():
        assert Path(place).is_relative_to(home.parent / "temporary")
        assert Path(place).is_dir()
        assert Path(place).parent.stat().st_mode & 0o077 == 0
    assert list(caches.beside_home("MPLCONFIGDIR")) == ["MPLCONFIGDIR"]


def test_a_place_that_somebody_else_prepared_is_not_trusted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.touch()
    monkeypatch.setattr(caches.os, "getuid", lambda: 12345)
    (home.parent / "temporary" / "tributary-12345").mkdir()
    with pytest.raises(SettingsError, match="is not a directory of this user"):
        caches.beside_home()
