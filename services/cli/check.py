"""The check before a run: everything that can be known to fail is said at once, before anything is started."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import ipaddress
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import connection
from common.config.live import LiveConfig
from common.errors import RedisUnavailable, SettingsError
from common.settings import ControlSettings, RunFile, WeightSettings, load_run
from common.stores.access import exposure, is_served, weights_token
from services.cli.client import TOKEN_VARIABLE
from services.cli.model_directory import expert_problems, model_problems
from services.cli.up.programs import environment, is_local
from services.cli.up.redis_server import find_executable, named_url

INSIDE_S = 600.0
_NVIDIA = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")


@dataclass(slots=True)
class Report:
    """What a check found. problems: why the run cannot start, each with its remedy. notes: what only loading shows."""

    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    prompts: int | None = None
    demonstrations: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return {"ok": not self.problems, **asdict(self)}


def load(run_file: Path) -> tuple[RunFile | None, Report]:
    """The settings of a run file, or a report that says why there are none."""
    try:
        return load_run(run_file), Report()
    except SettingsError as error:
        return None, Report(problems=[str(error)])


async def inspect(settings: RunFile, run_file: Path, report: Report) -> None:
    """Add to the report whatever is wrong with a run."""
    model = [*model_problems(settings), *expert_problems(settings)]
    report.problems += [
        *directory_problems(settings.run.directory),
        *model,
        *address_problems(settings.control),
        *token_problems(settings.control),
        *weight_problems(settings.weights),
        *device_problems(settings),
        *package_problems(settings),
    ]
    report.notes += [*_hub_notes(settings), *expert_notes(settings)]
    await inspect_redis(settings, report)
    if model:
        report.notes.append("data and grader were not checked, because that takes a usable model")
    else:
        await _inspect_inside(settings, run_file, report)
    if settings.control.tokens_file is not None:
        report.problems += (await _ask(settings, run_file, "control"))["problems"]


def directory_problems(directory: Path) -> Iterator[str]:
    """Whether the run directory can be written to."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir():
        yield f"[run] directory {directory} cannot be made, because {existing} is a file: choose another place"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"[run] directory {directory} cannot be written (no permission for {existing}): choose another place"


def token_problems(control: ControlSettings) -> Iterator[str]:
    """Whether `up` itself would be let in by the control plane that it starts."""
    if control.tokens_file is not None and not os.environ.get(TOKEN_VARIABLE):
        yield (
            f"[control] tokens_file guards the control plane, which `up` calls too: set {TOKEN_VARIABLE} in the "
            "environment to a secret of your own (openssl rand -hex 24)"
        )


def address_problems(control: ControlSettings) -> Iterator[str]:
    """Whether the control plane can listen where it is told to, and may."""
    host, port = control.host, control.port
    is_guarded = control.tokens_file is not None or os.environ.get(TOKEN_VARIABLE)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        yield f"[control] host {host!r} is not an address of this machine ({error}): correct it"
        return
    if not ipaddress.ip_address(address[0]).is_loopback and not is_guarded:
        yield (
            f"the control plane would listen on {host}, which other machines can reach: set {TOKEN_VARIABLE} in the "
            'environment or name a [control] tokens_file, or set [control] host = "127.0.0.1"'
        )
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                yield (
                    f"port {port} on {host} is busy: stop what listens there (another run? `tributary down`), "
                    "or set [control] port to another number (0 takes any free one)"
                )
            else:
                yield f"the control plane cannot listen on {host}:{port} ({error.strerror or error}): correct [control]"


def weight_problems(weights: WeightSettings) -> Iterator[str]:
    """Whether the learner may serve its weights where it is told to, if it is."""
    if is_served(weights):
        try:
            problem = None if weights_token() else exposure(weights.serve_host)
        except SettingsError as error:
            problem = str(error)
        if problem is not None:
            yield problem


def device_problems(settings: RunFile) -> Iterator[str]:
    """Whether there is a GPU if one is asked for."""
    if settings.learner.device == "cuda" and not any(Path(device).exists() for device in _NVIDIA):
        yield 'no NVIDIA GPU is visible here, but [learner] device is "cuda": set it to "auto" or "cpu"'


def package_problems(settings: RunFile) -> Iterator[str]:
    """Whether the packages are installed whose absence would only show when a program starts."""
    wanted = [("torch", "the learner"), ("fastapi", "the control plane")]
    wanted += [("vllm", "the generators")] if settings.generator.count else []
    for package, user in wanted:
        if importlib.util.find_spec(package) is None:
            yield f"the Python package {package} is not installed, which {user} needs: run `make env`"
    trackers = settings.trackers
    keys = [("tensorboard", "tensorboard = false")] if trackers.tensorboard else []
    keys += [("wandb", "no wandb_project")] if trackers.wandb_project is not None else []
    for package, instead in keys:
        if importlib.util.find_spec(package) is None:
            yield f"the Python package {package} is not installed: install it, or set {instead} in [trackers]"


async def inspect_redis(settings: RunFile, report: Report) -> None:
    """Add what is wrong with the Redis that is named, or that there is none of our own to start."""
    try:
        if (url := named_url(settings)) is None:
            find_executable()
            return
        redis = connection.connect(url)
        try:
            await connection.check(redis, url)
            report.notes += await connection.policy_problems(redis)
        finally:
            await redis.aclose()
    except RedisUnavailable as error:
        report.problems.append(str(error))
    except ValueError:  # which may quote a part of the password
        source = "REDIS_URL" if os.environ.get("REDIS_URL") else "[redis] url"
        report.problems.append(
            f"{source} cannot be read: write it like redis://:password@host:6379/0, "
            "and percent-encode special characters of the password"
        )


def _hub_notes(settings: RunFile) -> Iterator[str]:
    """What can only be known when it is loaded."""
    if not Path(settings.model.path).is_absolute():
        yield f"there is no local directory {settings.model.path}, so it is taken for a model's name on the hub"
    for source in (settings.data, *settings.evaluation.sets):
        if not is_local(source.path):
            yield f"there is no local file {source.path}, so it is taken for a data set's name on the hub"


def expert_notes(settings: RunFile) -> Iterator[str]:
    """What the run file says of an expert and the run would not use, or can only know when it is loaded."""
    expert, columns = settings.expert, settings.data.columns
    if expert.model is not None and expert.policy != "scored":
        yield f'[expert] model is not used, because [expert] policy is "{expert.policy}": set it to "scored" to use it'
    elif expert.model is not None and not Path(expert.model).is_absolute():
        yield f"there is no local directory {expert.model}, so it is taken for an expert's name on the hub"
    if columns.expert_logprobs is not None and expert.policy != "recorded":
        yield (
            f'[data.columns] expert_logprobs is not used, because [expert] policy is "{expert.policy}": '
            'set it to "recorded" to use them'
        )


def demonstration_problems(live: LiveConfig, demonstrations: int | None) -> Iterator[str]:
    """Whether what the run begins with feeds on demonstrations that the data does not have."""
    if demonstrations != 0 or not (live.algorithm.requires or live.hints.provides):
        return
    kind, hints = live.algorithm.kind, live.hints.kind
    wants = f"algorithm {kind!r} learns" if live.algorithm.requires else f"hint policy {hints!r} makes its hints"
    yield (
        f"[live] {wants} from demonstrations, and the training data has none that can be used: name their column in "
        '[data.columns] demonstration, or choose an algorithm that does without and hints = { kind = "none" }'
    )


async def _inspect_inside(settings: RunFile, run_file: Path, report: Report) -> None:
    """Let curriculum and generator, programs of their own, tell what is wrong with data, tokenizer and grader."""
    curriculum, generator = await asyncio.gather(
        _ask(settings, run_file, "curriculum"), _ask(settings, run_file, "generator")
    )
    report.prompts, report.demonstrations = curriculum.get("train_prompts"), curriculum.get("train_demonstrations")
    for answer in (curriculum, generator):
        report.problems += [problem for problem in answer["problems"] if problem not in report.problems]
        report.notes += [str(note) for note in answer.get("notes", [])]
    report.problems += demonstration_problems(settings.live, report.demonstrations)


async def _ask(settings: RunFile, run_file: Path, role: str) -> dict[str, Any]:
    """What the check of a service answers: a JSON object with its "problems"."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"services.{role}", str(run_file), "--check"),
        env=environment(settings, role),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, complaints = await asyncio.wait_for(process.communicate(), INSIDE_S)
    except TimeoutError:
        return {
            "problems": [f"the check of the {role} took more than {INSIDE_S:.0f} s: try a smaller [data] limit first"]
        }
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return _answer(role, output.decode(errors="replace"), complaints.decode(errors="replace"))


def _answer(role: str, output: str, complaints: str) -> dict[str, Any]:
    """The JSON object in the last line that a check printed; if there is none, why."""
    try:
        found = json.loads(output.strip().splitlines()[-1])
        return found | {"problems": [str(problem) for problem in found["problems"]]}
    except (ValueError, IndexError, KeyError, TypeError):
        last = (complaints.strip().splitlines() or ["it printed nothing"])[-1]
        command = f"python -m services.{role} RUN_FILE --check"
        return {"problems": [f"the check of the {role} failed ({last}): run `{command}` to see why"]}
