"""The programs of a run: which there are, how each is started, and the environment that it gets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import common
from common.settings import DatasetSettings, RunFile
from services.cli.up import caches
from services.cli.up.program import Program

PARENT = "TRIBUTARY_PARENT"
LEARNER = "learner"
SCORER = "scorer"
_MODULES = {LEARNER: LEARNER, SCORER: "services.generator.scoring"}
# Whoever computes without pause stands back for whoever answers an operator, on the same few processors. The learner
# stands back for the generators: an engine never rests, and what they may be ahead of it is bounded.
_NICE = {"generator": 5, LEARNER: 10, SCORER: 10}
# Long enough for a last checkpoint: how long it may really take, the supervisor decides.
_SHUTDOWN_S = 600
_ROOT = Path(common.__file__).resolve().parent.parent


def programs(settings: RunFile, run_file: Path, redis_url: str) -> list[Program]:
    """Everything of a run but Redis, in the order in which it is started (what takes longest first)."""
    generators = [f"generator-{number}" for number in range(1, settings.generator.count + 1)]
    named = [(name, "generator") for name in generators]
    named += [(f"{SCORER}-1", SCORER)] if settings.expert.policy == "scored" else []
    named += [(LEARNER, LEARNER), ("curriculum", "curriculum"), ("control", "control")]
    return [_program(settings, run_file, redis_url, name, role) for name, role in named]


def _program(settings: RunFile, run_file: Path, redis_url: str, name: str, role: str) -> Program:
    module = _MODULES.get(role, f"services.{role}")
    processes = settings.learner.processes if role == LEARNER else 1
    return Program(
        name=name,
        role=role,
        command=(*_launcher(processes), "-m", module, str(run_file), "--name", name),
        environment=environment(settings, role) | {"REDIS_URL": redis_url},
        log=log_path(settings, name),
        may_end=role == LEARNER,
        nice=_NICE.get(role, 0),
    )


def _launcher(processes: int) -> tuple[str, ...]:
    """What `-m MODULE` follows: Python, or torchrun, which starts several and stops all of them when one ends."""
    if processes == 1:
        return (sys.executable,)
    tether = (sys.executable, "-m", "services.cli.up.tether", str(os.getpid()))
    torchrun = (sys.executable, "-m", "learner.ranks.launching", "--standalone", "--nproc-per-node", str(processes))
    return (*tether, *torchrun, "--shutdown-timeout", str(_SHUTDOWN_S))


def log_path(settings: RunFile, name: str) -> Path:
    """Where a program's output goes."""
    return settings.run.directory / "logs" / f"{name}.log"


def environment(settings: RunFile, role: str) -> dict[str, str]:
    """Our own environment, with what a program of this role needs."""
    asked = {"generator": settings.generator, LEARNER: settings.learner, SCORER: settings.expert}.get(role)
    threads = asked.threads if asked is not None and asked.threads else 1
    added = {
        PARENT: str(os.getpid()),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if _is_offline(settings, role):
        added["HF_HUB_OFFLINE"] = "1"
    return os.environ | caches.beside_home() | added


def _is_offline(settings: RunFile, role: str) -> bool:
    """Whether everything that a role reads lies on this machine, so that the hub need not be asked."""
    local = Path(settings.model.path).is_dir()
    if role == "curriculum":
        sets: tuple[DatasetSettings, ...] = (settings.data, *settings.evaluation.sets)
        local = local and all(is_local(source.path) for source in sets)
    if role in (SCORER, "generator") and settings.expert.model is not None:  # a generator's check looks at it too
        local = local and Path(settings.expert.model).is_dir()
    return local


def is_local(path: str) -> bool:
    """Whether a data set's path is a file or glob on this machine, not a hub name."""
    return Path(path).is_absolute() or "*" in path
