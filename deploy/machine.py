"""What a machine must have before the environment is made: a GPU or not, a Python, a few system packages.

Standard library only, and nothing that Python 3.8 cannot read: an old Python has to be able to say that it is old.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 13)
# On a CPU 2.6 GB, and 4 GB more where only a CUDA build of torch is to be had.
NEEDED_GB = {"cpu": 8, "gpu": 20}


class SetupError(Exception):
    """Something that the person at the terminal has to put right; the message says how."""


def choose_device() -> str:
    """`cpu` or `gpu`: what TRIBUTARY_DEVICE says, else whether an NVIDIA GPU answers."""
    asked = os.environ.get("TRIBUTARY_DEVICE", "").strip().lower()
    if asked in ("cpu", "gpu"):
        return asked
    if asked:
        raise SetupError(f"TRIBUTARY_DEVICE is {asked!r}; set it to cpu or gpu, or leave it unset.")
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    try:
        answer = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if answer.returncode == 0 and b"GPU" in answer.stdout else "cpu"


def require_python() -> None:
    """Go on with a Python that the pinned packages have wheels for: this one, else another one on PATH."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        other = shutil.which(f"python3.{minor}")
        if other and subprocess.run([other, "-c", ""], capture_output=True, check=False).returncode == 0:
            os.execv(other, [other, "-m", "deploy.environment"])
    raise SetupError(
        "Python {}.{} runs here, and 3.{}-3.{} is needed: {} python3.11 python3.11-venv".format(
            *sys.version_info[:2], OLDEST[1], NEWEST[1], apt_install()
        )
    )


def require_system(root: Path, device: str) -> None:
    """Name every missing system package in one sentence, before anything is written."""
    missing = {}
    if not can_make_venv():
        missing["python{}.{}-venv".format(*sys.version_info[:2])] = "Python's venv module"
    # The engine's kernels and torch are linked against these two; everything else comes inside the wheels.
    libraries = {"libstdc++.so.6": "libstdc++6"}
    if device == "cpu":
        libraries["libnuma.so.1"] = "libnuma1"
    missing |= {package: library for library, package in libraries.items() if not can_load(library)}
    if device == "gpu":
        # Triton compiles a small launcher for each kernel when it is first used.
        if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
            missing["gcc"] = "a C compiler"
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            missing["python{}.{}-dev".format(*sys.version_info[:2])] = "Python.h"
    if sys.version_info[:2] >= (3, 13) and not shutil.which("redis-server") and not os.environ.get("REDIS_URL"):
        missing["redis-server"] = "a Redis server (the bundled one has no build for this Python)"
    if device == "cpu" and lacks_avx2():
        raise SetupError("this processor has no AVX2, which vLLM's CPU build needs; use another machine or a GPU.")
    if missing:
        raise SetupError(f"this machine lacks {' and '.join(missing.values())}: {apt_install()} {' '.join(missing)}")
    free_gb = shutil.disk_usage(root).free / 1e9
    if free_gb < NEEDED_GB[device]:
        raise SetupError(f"{free_gb:.1f} GB free in {root}, and .venv needs up to {NEEDED_GB[device]}: make room.")


def can_make_venv() -> bool:
    """Whether this Python can make an environment with pip in it (Debian ships that part separately)."""
    try:
        import ensurepip
        import venv
    except ImportError:
        return False
    return bool(ensurepip.version() and venv)


def can_load(library: str) -> bool:
    """Whether the dynamic loader finds a shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def lacks_avx2() -> bool:
    """Whether this is an x86 processor older than the engine's kernels."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return platform.machine() == "x86_64" and " avx2" not in flags


def apt_install() -> str:
    """The command that installs system packages on Debian and Ubuntu, for this user."""
    return "apt-get install -y" if os.geteuid() == 0 else "sudo apt-get install -y"
