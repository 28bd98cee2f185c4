"""The environment maker: builds, repairs or confirms `.venv` for this machine, with pinned versions only.

Called by `make` as `python3 -m deploy.environment`; needs nothing but the standard library. A stamp in the environment
says what it was made from, so a second call returns at once. Variables: TRIBUTARY_DEVICE=cpu|gpu overrides the look for
an NVIDIA GPU; TORCH_CPU_INDEX is an index that has torch's CPU build, asked for torch only and only where pip finds no
such build by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from deploy.machine import SetupError, choose_device, require_python, require_system
from deploy.pip_step import PipError, pip

ROOT = Path(__file__).resolve().parent.parent
EXIT_INTERRUPTED = 130


def main() -> int:
    """Make `.venv` ready, or say in one sentence why that is not possible."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        require_python()
        make_ready(ROOT / ".venv", choose_device())
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"set-up: {what}: correct that, then the next make goes on.", file=sys.stderr)
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
    require_system(ROOT, device)
    with only_one_at_a_time(ROOT / ".venv.lock"):
        found = read_stamp(stamp) or {}
        if found == wanted:  # whoever held the lock has just done it
            return
        began_s = time.monotonic()
        fresh = any(found.get(key) != wanted[key] for key in ("python", "device", "root"))
        doing = "making .venv (once)" if fresh else "bringing .venv up to date"
        print(f"set-up: {doing} for {device}; log in .venv/setup.log", flush=True)
        if fresh:
            # Without a stamp an earlier set-up broke off somewhere inside pip: only a new start is known to be whole.
            build_venv(venv)
        stamp.unlink(missing_ok=True)
        install(venv, device, packages=fresh or found.get("packages") != wanted["packages"])
        stamp.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        print(f"set-up: ready after {time.monotonic() - began_s:.0f} s", flush=True)


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


@contextlib.contextmanager
def only_one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two `make` at the same time do not write into one environment."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("set-up: another make is at it; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)
        yield


def build_venv(venv: Path) -> None:
    """An empty environment in place of whatever is there."""
    if venv.exists():
        print("set-up: .venv is unfinished or of another machine; starting afresh", flush=True)
        shutil.rmtree(venv)
    # Inside an activated environment, .venv itself perhaps, the interpreter meant is the one that made it.
    inside = sys.prefix != sys.base_prefix
    python = "{}/bin/python{}.{}".format(sys.base_prefix, *sys.version_info[:2]) if inside else sys.executable
    made = subprocess.run([python, "-m", "venv", str(venv)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise SetupError(f"{python} -m venv failed: {(made.stderr or made.stdout).strip()}")


def install(venv: Path, device: str, *, packages: bool) -> None:
    """torch first (its build decides how much is downloaded), then every other pin, then the project itself.

    Nothing is resolved: the constraints are complete, and the engine's CPU build declares packages that break it
    (torchvision exists for CUDA only), so dependencies are off. Without `packages` only the project is renewed.
    """
    pins = constraints(device)
    if packages:
        if device == "cpu":
            install_cpu_torch(venv)
        wheels_only = ["--no-deps", "--only-binary", ":all:"]
        pip(venv, "packages", [*wheels_only, "-r", str(pins)], total=len(list(pins_of(pins))))
    pip(venv, "tributary", ["--no-deps", "--no-build-isolation", "-e", str(ROOT)])


def install_cpu_torch(venv: Path) -> None:
    """torch without CUDA where one is to be had; else the default build, with a warning."""
    version = pinned_version(constraints("cpu"), "torch")
    try:
        # A `+cpu` version that pip's configured places know: no other place is asked.
        pip(venv, f"torch {version}, CPU build", ["--no-deps", f"torch=={version}+cpu"])
        return
    except PipError as error:
        if "No matching distribution" not in error.said:
            raise
        nowhere = error
    index = os.environ.get("TORCH_CPU_INDEX", "").strip()
    if index:
        source = ["--no-deps", "--index-url", index]
        pip(venv, f"torch {version} from TORCH_CPU_INDEX", [*source, f"torch=={version}"])
        return
    if "(from versions: none)" in nowhere.said:  # no torch of any kind: pip reaches no index at all
        raise nowhere
    print(
        "set-up: pip's index has torch only with CUDA (several GB more); to avoid that, press Ctrl-C and set "
        "TORCH_CPU_INDEX to PyTorch's own CPU index.",
        flush=True,
    )
    # The CUDA build cannot be imported without the libraries that it declares; the GPU list has their versions.
    pip(venv, f"torch {version} with CUDA", ["-c", str(constraints("gpu")), f"torch=={version}"])


def pins_of(path: Path) -> Iterator[str]:
    """The requirement lines of a constraints file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement:
            yield requirement


def pinned_version(path: Path, name: str) -> str:
    """The version that a constraints file demands of a package."""
    for requirement in pins_of(path):
        package, _, version = requirement.partition(";")[0].strip().partition("==")
        if package == name:
            return version
    raise SetupError(f"{path} does not pin {name}; restore the line.")


if __name__ == "__main__":
    sys.exit(main())
