"""The environment maker: what it asks pip for, when it does nothing, and what it says when something is missing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from deploy import environment, machine
from deploy.machine import SetupError
from deploy.pip_step import PipError

ROOT = Path(__file__).resolve().parents[2]
NO_SUCH_TORCH = "(from versions: 2.12.0, 2.13.0)\nERROR: No matching distribution found for torch"


class Pip:
    """Stands in for pip: records what it is asked for, and knows only some builds of torch."""

    def __init__(self, fails_with: str | None = None) -> None:
        self.fails_with = fails_with
        self.asked: list[list[str]] = []

    def __call__(self, venv: Path, what: str, arguments: list[str], total: int = 0) -> None:
        self.asked.append(arguments)
        if self.fails_with and arguments[-1].endswith("+cpu"):
            raise PipError(what, venv / "setup.log", self.fails_with)

    @property
    def wanted(self) -> list[str]:
        """The last word of each call: the requirement, the list or the project."""
        return [Path(arguments[-1]).name for arguments in self.asked]


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    fake = Pip()
    monkeypatch.setattr(environment, "pip", fake)
    monkeypatch.setattr(environment, "require_system", lambda root, device: None)
    monkeypatch.delenv("TORCH_CPU_INDEX", raising=False)
    return fake


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with nothing in it but what the environment depends on."""
    (tmp_path / "deploy").mkdir()
    for device in ("cpu", "gpu"):
        (tmp_path / f"deploy/constraints-{device}.txt").write_text("redis==8.1.0\ntorch==2.13.0\n", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "build_venv", make_empty)
    return tmp_path


def make_empty(venv: Path) -> None:
    """An environment with nothing in it, without asking Python for one."""
    shutil.rmtree(venv, ignore_errors=True)
    venv.mkdir()


def test_the_second_call_asks_pip_for_nothing(project: Path, pip: Pip) -> None:
    environment.make_ready(project / ".venv", "cpu")
    assert pip.wanted == ["torch==2.13.0+cpu", "constraints-cpu.txt", project.name]
    environment.make_ready(project / ".venv", "cpu")
    assert len(pip.asked) == 3


def test_an_edited_pyproject_renews_the_project_only(project: Path, pip: Pip) -> None:
    environment.make_ready(project / ".venv", "cpu")
    pip.asked.clear()
    (project / "pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")
    environment.make_ready(project / ".venv", "cpu")
    assert pip.wanted == [project.name]


def test_an_edited_pin_renews_the_packages_in_place(project: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    environment.make_ready(project / ".venv", "cpu")
    pip.asked.clear()
    monkeypatch.setattr(environment, "build_venv", lambda venv: pytest.fail("started afresh"))
    (project / "deploy/constraints-cpu.txt").write_text("redis==8.1.1\ntorch==2.13.0\n", encoding="utf-8")
    environment.make_ready(project / ".venv", "cpu")
    assert pip.wanted == ["torch==2.13.0+cpu", "constraints-cpu.txt", project.name]


def test_an_interrupted_set_up_is_started_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half_made = tmp_path / ".venv" / "lib" / "half of torch"
    half_made.mkdir(parents=True)
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> CompletedProcess[str]:
        commands.append(command)
        return CompletedProcess(command, 0)

    monkeypatch.setattr(environment.subprocess, "run", run)
    environment.build_venv(tmp_path / ".venv")
    assert not half_made.exists()
    assert commands[0][1:] == ["-m", "venv", str(tmp_path / ".venv")]
    assert "starting afresh" in capsys.readouterr().out


def test_after_a_failing_pip_the_next_call_starts_afresh(project: Path, pip: Pip) -> None:
    pip.fails_with = "the disk is full"
    with pytest.raises(PipError, match="the disk is full"):
        environment.make_ready(project / ".venv", "cpu")
    assert not (project / ".venv/tributary-stamp.json").exists()
    (project / ".venv/half").touch()
    pip.fails_with = None
    environment.make_ready(project / ".venv", "cpu")
    assert pip.wanted[-1] == project.name
    assert not (project / ".venv/half").exists()


def test_a_cpu_build_at_hand_means_that_no_other_index_is_asked(
    project: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CPU_INDEX", "file:///elsewhere")
    environment.install_cpu_torch(project)
    assert pip.asked == [["--no-deps", "torch==2.13.0+cpu"]]


def test_the_named_index_is_asked_for_torch_alone(project: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    pip.fails_with = NO_SUCH_TORCH
    monkeypatch.setenv("TORCH_CPU_INDEX", "file:///elsewhere")
    environment.install_cpu_torch(project)
    assert pip.asked[1] == ["--no-deps", "--index-url", "file:///elsewhere", "torch==2.13.0"]
    assert len(pip.asked) == 2


def test_the_cuda_build_is_taken_with_a_warning_that_names_the_variable(
    project: Path, pip: Pip, capsys: pytest.CaptureFixture[str]
) -> None:
    pip.fails_with = NO_SUCH_TORCH
    environment.install_cpu_torch(project)
    assert pip.asked[1] == ["-c", str(project / "deploy/constraints-gpu.txt"), "torch==2.13.0"]
    assert "TORCH_CPU_INDEX" in capsys.readouterr().out


def test_an_unreachable_index_is_not_taken_for_one_without_cpu_builds(project: Path, pip: Pip) -> None:
    pip.fails_with = "(from versions: none)\nERROR: No matching distribution found for torch"
    with pytest.raises(PipError):
        environment.install_cpu_torch(project)


def test_the_device_follows_the_variable_then_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TRIBUTARY_DEVICE", raising=False)
    assert machine.choose_device() == "cpu"
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: one'\n", encoding="utf-8")
    tool.chmod(0o755)
    assert machine.choose_device() == "gpu"
    tool.write_text("#!/bin/sh\necho 'no devices were found'; exit 6\n", encoding="utf-8")
    assert machine.choose_device() == "cpu"
    monkeypatch.setenv("TRIBUTARY_DEVICE", "gpu")
    assert machine.choose_device() == "gpu"
    monkeypatch.setenv("TRIBUTARY_DEVICE", "tpu")
    with pytest.raises(SetupError, match="'tpu'; set it to cpu or gpu"):
        machine.choose_device()


def test_missing_system_packages_are_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "can_make_venv", lambda: False)
    monkeypatch.setattr(machine, "can_load", lambda library: library != "libnuma.so.1")
    with pytest.raises(SetupError) as caught:
        machine.require_system(ROOT, "cpu")
    assert re.search(r"apt-get install -y python3\.\d+-venv libnuma1", str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    monkeypatch.setitem(machine.NEEDED_GB, "cpu", 10**9)
    with pytest.raises(SetupError, match=r"GB free in .*: make room"):
        machine.require_system(ROOT, "cpu")


def test_a_place_that_cannot_be_written_is_one_sentence(
    project: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / ".venv.lock").mkdir()
    monkeypatch.setattr(environment, "require_python", lambda: None)
    monkeypatch.setattr(environment, "choose_device", lambda: "cpu")
    monkeypatch.setattr(environment.signal, "signal", lambda *_: None)
    assert environment.main() == 1
    assert capsys.readouterr().err.startswith(f"set-up: {project}/.venv.lock: Is a directory")
