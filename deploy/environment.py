"""The environment maker: builds, repairs or confirms `.venv` for this machine, with pinned versions only.

Called by `make`; needs nothing but the standard library. A stamp in the environment says what it was built from, so a
second call returns at once. Variables: TRIBUTARY_DEVICE=cpu|gpu overrides the look for an NVIDIA GPU; TORCH_CPU_INDEX
is an index that has torch's CPU build, asked for torch only and only where pip finds no such build by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 13)
# A CUDA build of torch brings its libraries along; the CPU environment without them takes 2.4 GB.
NEEDED_GB = {"cpu": 5, "gpu": 20}
EXIT_INTERRUPTED = 130


class SetupError(Exception):
    """Something that the person at the terminal has to put right; the message says how."""


def main() -> int:
    """Make `.venv` ready, or say in one sentence why that is not possible."""
    try:
        require_python()
        make_ready(ROOT / ".venv", choose_device())
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; the next make starts it afresh.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def make_ready(venv: Path, device: str) -> None:
    """Return once `venv` holds exactly what the constraints of `device` and pyproject.toml ask for."""
    wanted = describe(device)
    stamp = venv / "tributary-stamp.json"
    if read_stamp(stamp) == wanted:
        return
    require_system(device)
    with only_one_at_a_time(ROOT / ".venv.lock"):
        found = read_stamp(stamp)
        if found == wanted:  # whoever held the lock has just done it
            return
        began_s = time.monotonic()
        print(f"set-up: making .venv for {device} (once; log in .venv/setup.log)", flush=True)
        base = {"python", "device", "root"}
        fresh = found is None or any(found.get(key) != wanted[key] for key in base)
        if fresh:
            # Without a stamp an earlier set-up broke off somewhere inside pip: only a new start is known to be whole.
            build_venv(venv)
        stamp.unlink(missing_ok=True)
        install(venv, device)
        stamp.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        print(f"set-up: ready after {time.monotonic() - began_s:.0f} s", flush=True)


# --- what is wanted ---------------------------------------------------------------------------------------------------


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


def constraints(device: str) -> Path:
    """The file that pins every package for `device`."""
    return ROOT / "deploy" / f"constraints-{device}.txt"


def describe(device: str) -> dict[str, str]:
    """All that the environment depends on; two equal descriptions mean the same environment."""
    return {
        "python": "{}.{}.{} {}".format(*sys.version_info[:3], sys.base_prefix),
        "device": device,
        "root": str(ROOT),  # scripts in a virtual environment carry its absolute path
        "packages": digest(constraints(device)),
        "project": digest(ROOT / "pyproject.toml"),
    }


def digest(path: Path) -> str:
    """The SHA-256 of a file that has to be there."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise SetupError(f"{path} is missing; restore it from the repository.") from None


def read_stamp(stamp: Path) -> dict[str, str] | None:
    """What a finished set-up left behind, or None where none has finished."""
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


# --- what the machine must have ---------------------------------------------------------------------------------------


def require_python() -> None:
    """Go on with a Python that the pinned packages have wheels for: this one, else another one on PATH."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        other = shutil.which(f"python3.{minor}")
        if other and subprocess.run([other, "-c", ""], capture_output=True, check=False).returncode == 0:
            os.execv(other, [other, *sys.argv])
    raise SetupError(
        "Python {}.{} runs here, and 3.{}-3.{} is needed: {} python3.11 python3.11-venv".format(
            *sys.version_info[:2], OLDEST[1], NEWEST[1], apt_install()
        )
    )


def require_system(device: str) -> None:
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
    if missing:
        raise SetupError(f"{', '.join(missing.values())} missing: {apt_install()} {' '.join(missing)}")
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < NEEDED_GB[device]:
        raise SetupError(f"{free_gb:.1f} GB free in {ROOT}, and .venv needs up to {NEEDED_GB[device]}: make room.")


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


def apt_install() -> str:
    """The command that installs system packages on Debian and Ubuntu, for this user."""
    return "apt-get install -y" if os.geteuid() == 0 else "sudo apt-get install -y"


# --- how it is made ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two `make` at the same time do not write into one environment."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("set-up: another make is at it; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_venv(venv: Path) -> None:
    """An empty environment in place of whatever is there."""
    if venv.exists():
        print("set-up: .venv is unfinished or of another machine; starting afresh", flush=True)
        shutil.rmtree(venv)
    made = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise SetupError(f"{sys.executable} -m venv failed: {(made.stderr or made.stdout).strip()}")


def install(venv: Path, device: str) -> None:
    """torch first (its build decides how much is downloaded), then every other pin, then the project itself.

    Nothing is resolved: the constraints are complete, and the engine's CPU build declares packages that break it
    (torchvision exists for CUDA only), so dependencies are off.
    """
    pins = constraints(device)
    log = venv / "setup.log"
    if device == "cpu":
        install_cpu_torch(venv, log)
    wheels_only = ["--no-deps", "--only-binary", ":all:"]
    pip(venv, log, "packages", [*wheels_only, "-r", str(pins)], total=count_pins(pins))
    pip(venv, log, "tributary", ["--no-deps", "--no-build-isolation", "-e", str(ROOT)])


def install_cpu_torch(venv: Path, log: Path) -> None:
    """torch without CUDA where one is to be had; else the default build, with a warning."""
    version = pinned_version(constraints("cpu"), "torch")
    try:
        # A `+cpu` version that pip's configured places know: no other place is asked.
        pip(venv, log, f"torch {version}, CPU build", ["--no-deps", f"torch=={version}+cpu"])
        return
    except PipError as error:
        if "No matching distribution" not in error.tail:
            raise
    index = os.environ.get("TORCH_CPU_INDEX", "").strip()
    if index:
        pip(
            venv, log, f"torch {version} from TORCH_CPU_INDEX", ["--no-deps", "--index-url", index, f"torch=={version}"]
        )
        return
    print(
        "set-up: pip's index has torch only with CUDA (several GB); to avoid that, stop and set TORCH_CPU_INDEX to "
        "PyTorch's own CPU index.",
        flush=True,
    )
    # The CUDA build cannot be imported without the libraries that it declares; the GPU list has their versions.
    pip(venv, log, f"torch {version} with CUDA", ["-c", str(constraints("gpu")), f"torch=={version}"])


def pins_of(path: Path) -> Iterator[str]:
    """The requirement lines of a constraints file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement:
            yield requirement


def count_pins(path: Path) -> int:
    """How many packages a constraints file names."""
    return sum(1 for _ in pins_of(path))


def pinned_version(path: Path, name: str) -> str:
    """The version that a constraints file demands of a package."""
    for requirement in pins_of(path):
        package, _, version = requirement.partition(";")[0].strip().partition("==")
        if package == name:
            return version
    raise SetupError(f"{path} does not pin {name}; restore the line.")


class PipError(SetupError):
    """pip gave up; `tail` is what it said last."""

    def __init__(self, what: str, log: Path, tail: str) -> None:
        """Keep pip's last words for whoever can act on them."""
        super().__init__(f"pip could not install {what}; its last words:\n{tail}\nAll of them are in {log}.")
        self.tail = tail


def pip(venv: Path, log: Path, what: str, arguments: list[str], total: int = 0) -> None:
    """Run one `pip install`, show how far it is, keep everything it says in the log."""
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-input", "--progress-bar", "off", *arguments]
    # What the user set for other projects (a target folder, --user) must not lead packages elsewhere.
    strays = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")
    environment = {key: value for key, value in os.environ.items() if key not in strays}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    tail: deque[str] = deque(maxlen=12)
    progress = Progress(what, total)
    with log.open("a", encoding="utf-8") as record:
        record.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                record.write(line)
                tail.append(line.rstrip())
                progress.saw(line)
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    progress.ended(ok=status == 0)
    if status != 0:
        raise PipError(what, log, "\n".join(tail))


class Progress:
    """One line of the terminal that says how far pip is; in a log file, one line per step."""

    def __init__(self, what: str, total: int) -> None:
        """Start the clock of the step called `what`, which handles `total` packages (0: unknown)."""
        self.what, self.total, self.seen = what, total, 0
        self.live = sys.stdout.isatty()
        self.began_s = time.monotonic()
        self.show("looking")

    def saw(self, line: str) -> None:
        """Take note of one line of pip's output."""
        if line.startswith(("Collecting ", "Processing ", "Requirement already satisfied", "Ignoring ")):
            self.seen += 1
            name = line.split(":")[-1].split()[1] if line.startswith("Collecting") else ""
            self.show(f"{self.seen}/{self.total or '?'} {name}")
        elif line.startswith("Installing collected packages"):
            self.show("unpacking")

    def show(self, state: str) -> None:
        """Rewrite the line, where there is a terminal."""
        if self.live:
            print(f"\r\033[K  {self.what}: {state}"[:110], end="", flush=True)

    def ended(self, *, ok: bool) -> None:
        """Leave the line standing with its outcome."""
        took_s = time.monotonic() - self.began_s
        print(
            f"{chr(13) + chr(27) + '[K' if self.live else ''}  {self.what}: {'done' if ok else 'no'} ({took_s:.0f} s)",
            flush=True,
        )


def run() -> NoReturn:
    """Leave with the status of `main`."""
    sys.exit(main())


if __name__ == "__main__":
    run()
