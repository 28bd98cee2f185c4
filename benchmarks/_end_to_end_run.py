"""Tributary's side of the end-to-end comparison: `tributary up` on one cell, watched through its Redis."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks._end_to_end_box import Failed, Server, cpu_seconds, environment, module, program, used_between
from benchmarks._end_to_end_cell import (
    CLIP,
    GROUPS,
    MAX_GRAD_NORM,
    ROLLOUTS,
    TEMPERATURE,
    WARMUP_STEPS,
    Cell,
    Json,
    Lengths,
    Step,
    Training,
    trained_tokens,
)
from benchmarks._methods_trial import as_toml, last_error
from common.keys import Keys
from common.trajectory import Group
from common.weights import ANCHOR_FILE, location_of
from common.wire import decode_group
from examples.addition.task import ANSWER_MARK

SPARE_STEPS = 4
"""Steps after the last one that counts, so that its groups are still there to be looked at."""
_LOOK_S = 0.25
_FINE_S = 0.02

Event = tuple[str, float, Json]
"""What a run told: its kind, when, and its data."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Settings of Tributary that TRL has no counterpart of.

    clear_cache_on_update: off, so that running sequences go on with their cache (TRL has none that run then).
    drop_flat_groups: the learner leaves out groups whose rewards are all equal, which have no gradient.
    """

    max_num_seqs: int = 192
    requests_in_flight: int = 28
    max_staleness: int = 4
    publish_every: int = 1
    kv_cache_mb: int = 256
    clear_cache_on_update: bool = False
    drop_flat_groups: bool = True
    micro_batch_tokens: int = 2048
    learner_threads: int = 1


def run_document(cell: Cell, tuning: Tuning, directory: Path, name: str) -> Json:
    """The run file of a cell, every path absolute."""
    return {
        "run": {"name": name, "directory": str(directory), "seed": cell.seed},
        "model": {"path": str(cell.base), "dtype": "float32", "max_model_len": cell.task.context},
        "data": {"path": str(cell.data / "train.jsonl")},
        "grader": {"name": "marker", "options": {"marker": ANSWER_MARK}},
        "control": {"port": 0},
        "generator": {
            "count": 1,
            "max_num_seqs": tuning.max_num_seqs,
            "kv_cache_mb": tuning.kv_cache_mb,
            "requests_in_flight": tuning.requests_in_flight,
            "clear_cache_on_update": tuning.clear_cache_on_update,
        },
        "learner": {
            "max_steps": cell.steps + SPARE_STEPS,
            "micro_batch_tokens": tuning.micro_batch_tokens,
            "threads": tuning.learner_threads,
        },
        # No saving on the way, as on the other side; the weights of every so many versions are whole, and kept.
        "checkpoints": {"every_steps": 1_000_000, "unacknowledged_mb": 100_000},
        "weights": {"anchor_every": cell.save_every, "keep": 100_000},
        "trackers": {"tensorboard": False},
        "live": live(cell, tuning),
    }


def live(cell: Cell, tuning: Tuning) -> Json:
    """The live configuration: what the other side's configuration says, and our own settings."""
    return {
        "algorithm": {
            "kind": "grpo",
            "rollouts": ROLLOUTS,
            "clip_low": CLIP,
            "clip_high": CLIP,
            "drop_flat_groups": tuning.drop_flat_groups,
        },
        "sampling": {"temperature": TEMPERATURE, "max_response_tokens": cell.task.longest},
        "optimizer": {
            "learning_rate": cell.rate,
            "warmup_steps": WARMUP_STEPS,
            "max_grad_norm": MAX_GRAD_NORM,
        },
        "groups_per_step": GROUPS,
        "max_staleness": tuning.max_staleness,
        "publish_every": tuning.publish_every,
    }


@dataclass(frozen=True, slots=True)
class Watched:
    """What was seen of a run. groups: payloads of the stream of groups, in its order. cpu_s: of its training."""

    started_s: float
    events: list[Event]
    groups: list[bytes]
    cpu_s: dict[str, float]

    def told(self, kind: str) -> list[Json]:
        """The data of the events of a kind."""
        return _data(self.events, kind)


def train(cell: Cell, tuning: Tuning, out: Path, server: Server, limit_s: float) -> tuple[Training, list[bytes]]:
    """Train one cell with `tributary up`; what it left, and the payloads of the groups that were sampled."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    name = f"end-to-end-{cell.name}".lower()
    run_file, told, directory = out / "run.toml", out / "up.jsonl", out / "run"
    run_file.write_text(as_toml(run_document(cell, tuning, directory, name)), encoding="utf-8")
    began_s = time.time()
    command = module("services.cli", "up", str(run_file), "--fresh", "--json")
    # The comparison's own: what another run left is not taken for this one's.
    redis.Redis.from_url(server.url).flushall()
    with program(command, told, environment(REDIS_URL=server.url)) as up:
        watched = watch(up, server, Keys(name), cell.steps, limit_s, told)
    steps, lengths = account(cell, tuning, watched)
    anchors = [
        (told["step"], directory / "weights" / location_of(told["version"]) / ANCHOR_FILE)
        for told in watched.told("publication")
    ]
    notes = {"tuning": {name: getattr(tuning, name) for name in tuning.__slots__}} | timeline(cell, watched)
    saved = thinned({step: path for step, path in anchors if path.exists()}, cell)
    start_up_s = watched.started_s - began_s
    return Training("tributary", start_up_s, steps, lengths, saved, watched.cpu_s, notes), watched.groups


def thinned(saved: Mapping[int, Path], cell: Cell) -> dict[int, Path]:
    """Of every `save_every` steps that count the last one whose weights are there, whatever its number.

    A step without an update publishes nothing: from then on whole weights may lie after other steps than those that
    `save_every` divides.
    """
    counted = sorted(step for step in saved if step <= cell.steps)
    kept = {-(-step // cell.save_every): step for step in counted}
    return {step: saved[step] for step in kept.values()}


def watch(up: subprocess.Popen[bytes], server: Server, keys: Keys, steps: int, limit_s: float, told: Path) -> Watched:
    """Follow a run from its first request to the end of the last step that counts. Failed if it ends before."""
    client = redis.Redis.from_url(server.url, socket_timeout=10.0)
    deadline_s, events, groups = time.monotonic() + limit_s, list[Event](), list[bytes]()
    while not _has_begun(client, keys):
        _require(up, deadline_s, told)
        time.sleep(_FINE_S)
    started_s, cpu_s = time.time(), cpu_seconds(up.pid, server.pid)
    readers, used = (_entries(client, keys.events), _entries(client, keys.groups)), dict[str, float]()
    while True:
        has_ended = up.poll() is not None  # looked at first: what it told last is there by then
        events += [(f[b"kind"].decode(), float(f[b"at"]), json.loads(f[b"data"])) for _, f in next(readers[0])]
        groups += [fields[b"payload"] for _, fields in next(readers[1])]
        if not used and len(_data(events, "step")) >= steps:
            used = used_between(cpu_s, cpu_seconds(up.pid, server.pid))
        if is_over(events, steps):
            break
        if has_ended or time.monotonic() > deadline_s:
            _require(up, deadline_s, told)
        time.sleep(_LOOK_S)
    return Watched(started_s, events, groups, used)


def is_over(events: Sequence[Event], steps: int) -> bool:
    """Whether all steps that count are told, and the weights after the last update among them published.

    Also once all spare steps are told: the run does not go on then, and more may never be published.
    """
    told = _data(events, "step")
    if len(told) < steps:
        return False
    updated = max((step["step"] for step in told[:steps] if step["updated"]), default=0)
    published = max((publication["step"] for publication in _data(events, "publication")), default=0)
    return published >= updated or len(told) >= steps + SPARE_STEPS


def _data(events: Sequence[Event], kind: str) -> list[Json]:
    return [data for known, _, data in events if known == kind]


def _has_begun(client: Any, keys: Keys) -> bool:
    """Whether a generator has taken a request: before that, programs start and models are loaded."""
    try:
        return any(group["pending"] for group in client.xinfo_groups(keys.requests))
    except redis.ResponseError:  # there is no such stream yet
        return False


def _entries(client: Any, key: str) -> Iterator[list[Any]]:
    """What came to a stream since the last look, without taking anything from it."""
    last = "-"
    while True:
        entries = client.xrange(key, min=last)
        if entries:
            last = f"({entries[-1][0].decode()}"
        yield entries


def _require(up: subprocess.Popen[bytes], deadline_s: float, told: Path) -> None:
    if up.poll() is not None:
        raise Failed(f"tributary up ended with {up.returncode}: {last_error(told)}")
    if time.monotonic() > deadline_s:
        raise Failed(f"the run took too long: see {told.parent}")


def account(cell: Cell, tuning: Tuning, watched: Watched) -> tuple[list[Step], Lengths]:
    """Which groups each step was made of: the learner takes them in the stream's order and leaves out stale ones."""
    waiting = iter([decode_group(payload) for payload in watched.groups])
    steps, lengths, published = list[Step](), list[int](), list[int]()
    for kind, at_s, told in watched.events:
        if kind != "step" or len(steps) == cell.steps:
            continue
        taken = list[Group]()
        while len(taken) < GROUPS:
            group = next(waiting)
            if len(published) - (group.oldest_version or 0) <= tuning.max_staleness:
                taken.append(group)
        steps.append(_step(told, taken, at_s - watched.started_s, lengths))
        if told["version"] > len(published):
            published.append(told["version"])
    return steps, Lengths.of(lengths)


def _step(told: Json, taken: list[Group], at_s: float, lengths: list[int]) -> Step:
    """A step on these groups; the lengths of its responses are added to `lengths`."""
    members = [member for group in taken for member in group.trajectories]
    rewards, sizes = [m.reward for m in members], [m.response_length for m in members]
    trained, flat = trained_tokens(rewards, sizes)
    lengths += sizes
    reward = sum(rewards) / len(rewards)
    if abs(reward - told["reward"]) > 1e-6:
        raise Failed(f"step {told['step']} was not made of the groups that we think: {reward} is not {told['reward']}")
    return Step(told["step"], at_s, sum(sizes), trained if told["updated"] else 0, len(taken), flat, reward)


def timeline(cell: Cell, watched: Watched) -> Json:
    """Where the time of the learner and of the engine went: means per step, and pauses per version."""
    steps, updates = watched.told("step")[: cell.steps], watched.told("update")
    names = [name for name in steps[0] if name.endswith("_s") and name != "tokens_per_s"]
    means = {name: round(sum(step[name] or 0.0 for step in steps) / len(steps), 4) for name in names}
    return {
        "learner_step_means": means,
        "staleness_mean": round(sum(step["staleness"] or 0.0 for step in steps) / len(steps), 2),
        "stale_groups_dropped": sum(step["stale_dropped"] for step in steps),
        "versions_applied": len(updates),
        "engine_pause_ms_mean": round(1e3 * sum(u["pause_s"] for u in updates) / max(1, len(updates)), 1),
    }
