"""No orphans and no silence: an engine's two processes never outlive each other unnoticed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from services.generator.engine import Engine, EngineDead, EngineSettings, WeightUpdateFailed
from tests.system.engine_rig import ENGINE_MARKS, LoopThread, PublishedLlama

pytestmark = ENGINE_MARKS

FRONT = """
import asyncio, sys
from services.generator.engine import Engine, EngineSettings

async def main():
    engine = await Engine.start(EngineSettings(model=sys.argv[1], dtype="float32", max_model_len=64))
    print("serving", flush=True)
    await engine.until_dead()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PublishedLlama:
    return PublishedLlama(tmp_path_factory.mktemp("death"), tied=False)


@pytest.fixture
def front(model: PublishedLlama, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    program = tmp_path / "front.py"
    program.write_text(FRONT)
    process = subprocess.Popen(
        [sys.executable, str(program), str(model.directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) and line != "serving\n":
        pass
    assert line, "the front ended before it served"
    yield process
    process.kill()
    process.wait(30)
    process.stdout.close()


def test_the_core_dies_with_a_killed_front(front: subprocess.Popen[str]) -> None:
    children = psutil.Process(front.pid).children(recursive=True)
    assert children
    front.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="module")
def engine(model: PublishedLlama, loop: LoopThread) -> Iterator[Engine]:
    settings = EngineSettings(model=str(model.directory), dtype="float32", max_model_len=1024)
    engine = loop.run(Engine.start(settings))
    yield engine
    loop.run(engine.close())


def test_an_update_of_a_frozen_core_fails_in_time_and_the_next_one_repairs(
    engine: Engine, model: PublishedLlama, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = replace(engine._settings, control_timeout_s=3.0)  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(engine, "_settings", hasty)
    core = _core()
    core.suspend()
    try:
        with pytest.raises(WeightUpdateFailed, match=r"loading version 1 took longer than 3.0 s"):
            loop.run(engine.apply(model.update(1, complete=True)))
    finally:
        core.resume()
    monkeypatch.undo()
    assert not engine.healthy
    loop.run(engine.apply(model.update(2, complete=True)))
    assert engine.healthy
    (completion,) = loop.run(engine.sample([5], n=1, temperature=1.0, max_tokens=40, request_id="repaired"))
    assert model.largest_error([5], completion, 1.0) < 1e-4
    assert {span.version for span in completion.versions} == {2}


def test_a_killed_core_is_noticed_by_every_caller(engine: Engine, model: PublishedLlama, loop: LoopThread) -> None:
    async def scenario() -> None:
        watch = asyncio.create_task(engine.until_dead())
        running = asyncio.create_task(
            engine.sample([5], n=4, temperature=1.0, max_tokens=900, request_id="interrupted")
        )
        while engine.statistics.running == 0:
            await asyncio.sleep(0.005)
        _core().kill()
        async with asyncio.timeout(30):
            for call in (watch, running):
                with pytest.raises(EngineDead):
                    await call
        with pytest.raises(EngineDead):
            await engine.sample([5], n=1, temperature=1.0, max_tokens=1, request_id="late")
        with pytest.raises(EngineDead):
            await engine.apply(model.update(1, complete=True))

    loop.run(scenario())


def _core() -> psutil.Process:
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    (core,) = [child for child in alive if "EngineCore" in "".join(child.cmdline())]
    return core
