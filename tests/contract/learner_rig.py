"""A learner to try things on: a tiny real model, a run file, groups as a generator would emit them, the service."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from common.config.live import LiveConfig, merge_patch, parse_live
from common.config.store import Author
from common.events import EventKind
from common.process import Process
from common.settings import load_run
from common.trajectory import (
    Finish,
    Group,
    GroupPlan,
    Outcome,
    Purpose,
    Request,
    Sampling,
    Source,
    Trajectory,
    VersionSpan,
)
from common.wire import encode_group, encode_outcome, encode_request
from learner.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 32
LIVE: dict[str, Any] = {
    "algorithm": {"kind": "grpo", "rollouts": 4},
    "sampling": {"max_response_tokens": 8},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 3},
    "groups_per_step": 2,
    "max_staleness": 100,
}
RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "{model}"
[data]
path = "unused.jsonl"
[learner]
device = "cpu"
micro_batch_tokens = 64
{learner}
[checkpoints]
every_steps = {every_steps}
keep = 2
"""


def save_tiny_model(directory: Path, *, tied: bool = False) -> Path:
    """A Llama of a few thousand parameters, always the same."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def write_run(directory: Path, *, learner: str = "", every_steps: int = 1000) -> Path:
    """A run file with its model beside it, everything in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "model").exists():
        save_tiny_model(directory / "model")
    path = directory / "run.toml"
    path.write_text(RUN.format(model=directory / "model", learner=learner, every_steps=every_steps))
    return path


def make_group(number: int, *, version: int = 0, rewards: Iterable[float] = ()) -> Group:
    """Group number `number`: random tokens, always the same ones; rewards that differ unless they are given."""
    random = np.random.default_rng(number)
    given = tuple(rewards) or (1.0, 0.0, float(random.integers(2)), float(random.integers(2)))
    prompt = random.integers(1, VOCABULARY, 4)
    members: list[Trajectory] = []
    for reward in given:
        length = int(random.integers(2, 8))
        tokens = np.concatenate([prompt, random.integers(1, VOCABULARY, length)]).astype(np.int32)
        sources = np.array([Source.PROMPT] * 4 + [Source.POLICY] * length, dtype=np.uint8)
        logprobs = np.concatenate([np.zeros(4), -3.4 + random.random(length) / 10]).astype(np.float32)
        spans = (VersionSpan(version, 4, 4 + length),)
        members.append(Trajectory(tokens, sources, logprobs, reward, Finish.STOP, spans))
    return Group(group_id(number), f"prompt-{number}", 1, "generator-1", tuple(members))


def make_unsolved_group(number: int, *, version: int = 0) -> Group:
    """Group number `number`, whose every rollout failed, with a right demonstration."""
    group = make_group(number, version=version, rewards=(0.0,) * 4)
    random = np.random.default_rng(number + 1_000_000)
    length = int(random.integers(2, 8))
    tokens = np.concatenate([group.trajectories[0].tokens[:4], random.integers(1, VOCABULARY, length)])
    expert = Trajectory(
        tokens=tokens.astype(np.int32),
        sources=np.array([Source.PROMPT] * 4 + [Source.DEMONSTRATION] * length, dtype=np.uint8),
        behaviour_logprobs=np.zeros(4 + length, dtype=np.float32),
        reward=1.0,
        finish=Finish.DEMONSTRATION,
    )
    return replace(group, trajectories=(*group.trajectories, expert))


def group_id(number: int) -> str:
    return f"group-{number:04d}"


class Rig:
    """One run with its Redis, and at most one learner in this process at a time."""

    def __init__(self, run_file: Path) -> None:
        self.run_file = run_file
        self._opened: list[Process] = []
        self.process = self._open()
        self._task: asyncio.Task[int] | None = None

    def _open(self) -> Process:
        self._opened.append(Process("learner", "learner", load_run(self.run_file)))
        return self._opened[-1]

    async def prepare(self, **changes: Any) -> None:
        """Create streams and the first revision."""
        await self.process.delivery.prepare()
        if await self.process.config.number() == 0:
            await self._replace(parse_live(merge_patch(LIVE, changes)), 0)

    async def switch(self, **changes: Any) -> int:
        """A new revision; its number."""
        current = await self.process.config.current()
        assert current is not None
        live = parse_live(merge_patch(current.live.model_dump(mode="json"), changes))
        return await self._replace(live, current.number)

    async def _replace(self, live: LiveConfig, expected: int) -> int:
        revision = await self.process.config.replace(live, expected, Author("tester", "here"), at_s=0.0)
        return revision.number

    async def emit(self, groups: Iterable[Group]) -> None:
        """Put groups on the stream as a generator does, each for a request of its own."""
        for group in groups:
            await self.emit_bytes(group.group_id, encode_group(group))

    async def emit_bytes(self, request_id: str, group: bytes) -> None:
        delivery = self.process.delivery
        request = Request(
            request_id=request_id,
            prompt_id="p",
            purpose=Purpose.TRAIN,
            revision=1,
            prompt_tokens=np.array([1], dtype=np.int32),
            answer="",
            plan=GroupPlan(4),
            sampling=Sampling(1.0, 8),
        )
        await delivery.issue([(request_id, encode_request(request))], os.urandom(8))  # a state that was never there
        entry = (await delivery.requests.take("generator-1", 1, 100))[0]
        outcome = Outcome(request_id, "p", Purpose.TRAIN, 1, "train", (), 0)
        assert await delivery.emit(entry.entry_id, group, encode_outcome(outcome))

    def start(self) -> None:
        """Run the learner in this process."""
        self.process = self._open()
        self._task = asyncio.create_task(main(self.process))  # type: ignore[arg-type]

    async def stop(self) -> int:
        """Tell the learner to stop, as SIGTERM does; its exit code."""
        assert self._task is not None
        self.process.stop.set()
        return await asyncio.wait_for(self._task, 10)

    async def crash(self) -> None:
        """Break the learner off where it is; it saves nothing."""
        assert self._task is not None
        while not self._task.done():  # one cancellation may get lost in asyncio.wait_for
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.2)

    async def ended(self) -> int:
        """The exit code of a learner that ends by itself."""
        assert self._task is not None
        return await asyncio.wait_for(self._task, 30)

    async def events(self, kind: EventKind) -> list[dict[str, Any]]:
        return [event.data for event in await self.process.events.read(count=10_000) if event.kind is kind]

    async def steps(self, count: int, *, by: LearnerProcess | None = None) -> list[dict[str, Any]]:
        """The STEP events, once there are `count`. by: a process that makes them; it may take its time to start."""
        found: list[dict[str, Any]] = []

        async def enough() -> bool:
            found[:] = await self.events(EventKind.STEP)
            assert by is None or by.popen.poll() is None, f"the learner ended: {by.log.read_text()[-2000:]}"
            return len(found) >= count

        await self.until(enough, limit_s=30.0 if by is None else 150.0)
        return found

    async def published(self, version: int) -> list[dict[str, Any]]:
        """The PUBLICATION events, once one is of `version` or a later one."""
        found: list[dict[str, Any]] = []

        async def enough() -> bool:
            found[:] = await self.events(EventKind.PUBLICATION)
            return any(told["version"] >= version for told in found)

        await self.until(enough)
        return found

    async def until(self, true: Callable[[], Awaitable[bool]], limit_s: float = 30.0) -> None:
        """Wait until a condition holds; the learner's own end, or the limit, is an error."""
        deadline_s = asyncio.get_running_loop().time() + limit_s
        while not await true():
            if self._task is not None and self._task.done():
                self._task.result()
            assert asyncio.get_running_loop().time() < deadline_s, "it did not come to pass"
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        if self._task is not None and not self._task.done():
            await self.crash()
        for process in self._opened:
            await process.redis.aclose()


class LearnerProcess:
    """A learner in an operating-system process of its own."""

    def __init__(self, run_file: Path, redis_url: str) -> None:
        self.log = run_file.parent / "learner.log"
        environment = {"REDIS_URL": redis_url, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "learner", str(run_file), "--name", "learner"],
                cwd=ROOT,
                stderr=log,
                env=os.environ | environment,
            )

    def kill(self) -> None:
        """kill -9."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)


class Nursery:
    """Starts learners without importing torch each time: a process that has it forks one after another."""

    def __init__(self, run_file: Path, redis_url: str) -> None:
        environment = {"REDIS_URL": redis_url, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (run_file.parent / "learners.log").open("ab") as log:
            self._mother = subprocess.Popen(
                [sys.executable, "-c", _MOTHER, str(run_file)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | environment,
            )

    def start(self, stage: str = "") -> int:
        """A learner's process id. stage: where it kills itself, see publication_deaths.py and checkpoint_deaths.py;
        with the latter's, a number after a colon says the how manieth time that it is reached is the last.
        """
        assert self._mother.stdin is not None
        self._mother.stdin.write(f"{stage}\n".encode())
        self._mother.stdin.flush()
        return self._answer()

    def code(self) -> int:
        """The exit code of the last learner; negative after a signal."""
        return self._answer()

    def _answer(self) -> int:
        assert self._mother.stdout is not None
        return int(self._mother.stdout.readline())

    def close(self) -> None:
        """Let the mother end when her last child has."""
        self._mother.communicate(timeout=60)


_MOTHER = """
import os, sys
from common.process import run
from learner.__main__ import main
from tests.contract import checkpoint_deaths, publication_deaths
def arm(stage):
    name, _, times = stage.partition(":")
    if name in checkpoint_deaths.STAGES:
        checkpoint_deaths.arm(name, int(times or 1))
    else:
        publication_deaths.arm(name)
for stage in sys.stdin:
    child = os.fork()
    if child == 0:
        arm(stage.strip())
        os._exit(run("learner", main, sys.argv[1:]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def checkpoint_of(run_directory: Path, step: int) -> Path:
    return run_directory / "checkpoints" / f"step-{step:06d}"


def progress_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "checkpoint.json").read_text())["progress"]


def saved_tensors(checkpoint: Path) -> dict[str, bytes]:
    """The files of a checkpoint that hold tensors, as bytes."""
    return {path.name: path.read_bytes() for path in sorted(checkpoint.glob("*.safetensors"))}
