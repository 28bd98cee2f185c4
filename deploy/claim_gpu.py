"""Gives each of several replicas on one machine GPUs of its own, then becomes the program.

    python -m deploy.claim_gpu PROGRAM ARGUMENT...

Compose gives every replica of a service the same devices. Of those, this takes the first ones that no other replica
holds: a lock file per GPU in TRIBUTARY_GPU_LOCKS, which replicas share. The kernel lets go of a lock with the process.
GENERATOR_GPUS_EACH (default 1) says how many one replica needs. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LOCKS_VARIABLE, EACH_VARIABLE = "TRIBUTARY_GPU_LOCKS", "GENERATOR_GPUS_EACH"
_GPU = re.compile(r"^GPU (\d+): .*\(UUID: ([\w-]+)\)", re.MULTILINE)
_ANSWER_S = 60


class NoGpu(Exception):
    """There are not enough GPUs; the message says what to do."""


def main(program: list[str]) -> None:
    """Claim, then become `program`."""
    try:
        locks = Path(os.environ[LOCKS_VARIABLE])
        claimed = claim(visible(os.environ), count(os.environ), locks)
    except KeyError:
        raise SystemExit(f"claim_gpu: name the directory of the locks in {LOCKS_VARIABLE}") from None
    except (NoGpu, OSError) as error:
        raise SystemExit(f"claim_gpu: {error}") from error
    print(f"claim_gpu: GPU {', '.join(claimed)}", file=sys.stderr, flush=True)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claimed)
    os.execvp(program[0], program)


def count(environment: Mapping[str, str]) -> int:
    """How many GPUs one replica needs."""
    asked = environment.get(EACH_VARIABLE) or "1"
    if not re.fullmatch("[1-9][0-9]?", asked):
        raise NoGpu(f"{EACH_VARIABLE} is {asked!r}: set it to a number of GPUs")
    return int(asked)


def visible(environment: Mapping[str, str]) -> dict[str, str]:
    """Index → UUID of every GPU that this container sees."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--list-gpus"],
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=False,
            env=environment,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise NoGpu(f"no NVIDIA GPU answers ({error}): is the NVIDIA container toolkit installed?") from error
    found = dict(_GPU.findall(answer.stdout))
    if not found:
        said = (answer.stdout + answer.stderr).strip()
        raise NoGpu(f"no NVIDIA GPU is visible here ({said or 'nvidia-smi lists none'}): reserve some for this service")
    return found


def claim(gpus: Mapping[str, str], needed: int, locks: Path) -> list[str]:
    """The indices of `needed` GPUs that nobody else holds, held from now on until this process ends, execs included."""
    locks.mkdir(parents=True, exist_ok=True)
    claimed: list[str] = []
    held: list[int] = []
    for index, uuid in gpus.items():
        lock = os.open(locks / f"{uuid}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        claimed.append(index)
        held.append(lock)
        if len(claimed) == needed:
            for kept in held:
                os.set_inheritable(kept, True)
            return claimed
    for lock in held:
        os.close(lock)
    raise NoGpu(
        f"{needed} GPUs are needed and {len(claimed)} of {len(gpus)} are free: run fewer generators, or give them more "
        "GPUs (GENERATOR_GPUS)"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
