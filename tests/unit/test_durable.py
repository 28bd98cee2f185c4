"""A directory is replaced without a moment at which neither the old nor the new one is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.storage.durable import NotWritten, appearing, sweep


def write(target: Path, text: str) -> None:
    with appearing(target) as directory:
        (directory / "file").write_text(text)


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_replaced_directory_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path / "d", "old")
    write(tmp_path / "d", "new")
    assert (tmp_path / "d" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_writer_killed_between_the_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d", "old")
    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda path, to: killed() if to.name == "d" else rename(path, to))
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "d", "new")
    assert not (tmp_path / "d").exists()
    sweep(tmp_path)
    assert (tmp_path / "d" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_writer_killed_before_the_old_one_was_removed_keeps_the_new_one(tmp_path: Path) -> None:
    write(tmp_path / "d", "new")
    write(tmp_path / ".d.replaced", "old")
    sweep(tmp_path)
    assert (tmp_path / "d" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d", "old")
    rename = Path.rename

    def refuse(path: Path, to: Path) -> Path:
        if path.name.endswith(".unfinished"):
            raise OSError("no")
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(NotWritten, match="cannot write"):
            write(tmp_path / "d", "new")
    assert (tmp_path / "d" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
