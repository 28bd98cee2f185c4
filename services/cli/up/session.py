"""One session of `up`: from the check of the settings to the summary, with everything stopped at its end."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

from redis.asyncio import Redis

from common import connection
from common.errors import SettingsError
from common.keys import Keys
from common.settings import MAX_STEPS_VARIABLE, RunFile
from services.cli import location
from services.cli.exit_codes import FAILED, INTERRUPTED, OK, UNUSABLE
from services.cli.progress import Progress
from services.cli.up import closing, logs, redis_server
from services.cli.up.interruption import Interruption
from services.cli.up.ledger import Ledger
from services.cli.up.narrator import Narrator
from services.cli.up.phases import SESSION
from services.cli.up.preparation import Options, Prepared, prepare, set_aside
from services.cli.up.programs import LEARNER, PARENT, programs
from services.cli.up.redis_server import find_executable, named_url, own_server, wait_until_ready
from services.cli.up.summary import Measured, Summary, summarise
from services.cli.up.supervisor import Change, GaveUp, State, Supervisor
from services.cli.up.timetable import Timetable
from services.cli.up.vigil import Vigil
from services.cli.voice import Voice

_LOG_LINES = 8
_FAREWELL_S = 1.0
_INSIST_S = 0.2


async def conduct(options: Options, voice: Voice, resume_command: str) -> int:
    """Run a session until it ends or we are asked to stop, and return the exit code."""
    interruption = Interruption()
    with interruption.listening():
        session = Session(options, voice, interruption)
        work = asyncio.create_task(session.run())
        asked = asyncio.create_task(interruption.asked.wait())
        try:
            await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            voice.say("stopping everything (once more to hurry)", "stopping")
            while not work.done():
                # Until Python 3.12 wait_for, which redis-py uses, can swallow a cancellation: see that it arrives.
                if not session.stopping:
                    work.cancel()
                await asyncio.wait((work,), timeout=_INSIST_S)
            with suppress(asyncio.CancelledError):
                work.result()
        finally:
            asked.cancel()
            voice.close()
    if session.summary is not None:
        return OK
    voice.say(f"stopped; the run can be resumed with: {resume_command}", "stopped")
    return INTERRUPTED


class Session:
    """Everything between the start of `up` and its end.

    stopping: the programs are being stopped, or were. summary: set once the run is done.
    """

    def __init__(self, options: Options, voice: Voice, interruption: Interruption) -> None:
        self._options = options
        self._voice = voice
        self._interruption = interruption
        self._started_s = time.time()
        self._supervisor = Supervisor(self._on_change, time.monotonic, (PARENT, str(os.getpid())))
        self._progress = Progress()
        self._ledger: Ledger | None = None
        self.stopping = False
        self.summary: Summary | None = None

    async def run(self) -> int:
        """Check, start, follow to the end, summarise. Whatever happens, nothing is left running."""
        self._voice.say(f"checking {self._options.run_file}", "checking")
        prepared = await prepare(self._options)
        settings = prepared.settings
        for note in prepared.report.notes:
            self._voice.say(note, "warning")
        if self._options.fresh:
            for place in set_aside(settings):
                self._voice.say(f"the old run lies in {place} now")
        is_new = not settings.run.directory.exists()
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(location.hold(settings.run.directory))
                stack.push_async_callback(self._stop)
                redis, url = await self._open_redis(settings, stack)
                # Once more, so that the programs are stopped while our connection is still there.
                stack.push_async_callback(self._stop)
                self._ledger = Ledger(redis, Keys(settings.run.name))
                await self._take_up(settings, self._ledger, url, is_new)
                await self._work(prepared, self._ledger, url)
        except GaveUp as error:
            return self._tell_failure(error)
        return OK

    async def _open_redis(self, settings: RunFile, stack: AsyncExitStack) -> tuple[Redis, str]:
        """A connection to the Redis that is named, or to one of our own that is started now."""
        url = named_url(settings)
        if url is None:
            server = own_server(find_executable(), settings)
            url = server.url
            self._supervisor.add(server.program)
        redis = connection.connect(url)
        stack.push_async_callback(redis.aclose)
        if named_url(settings) is None:
            await wait_until_ready(redis, url, self._supervisor.tick)
            self._supervisor.confirm(redis_server.NAME)
        version = await connection.check(redis, url)
        self._voice.say(f"Redis {version} at {connection.without_password(url)}", "redis")
        return redis, url

    async def _take_up(self, settings: RunFile, ledger: Ledger, url: str, is_new: bool) -> None:
        """Begin afresh or where an earlier session left off, and see that Redis and the run directory agree."""
        if self._options.fresh:
            await ledger.erase()
        elif await ledger.holds_a_run():
            if is_new:
                where, directory = connection.without_password(url), settings.run.directory
                raise SettingsError(
                    f"Redis at {where} holds a run named {settings.run.name!r}, but its directory {directory} "
                    "is missing: start over with --fresh, restore the directory, or change [run] name"
                )
            self._voice.say(f"resuming the run in {settings.run.directory}", "resumed")
        await ledger.begin()
        ledger.note(SESSION, SESSION, "started", self._started_s)

    async def _work(self, prepared: Prepared, ledger: Ledger, url: str) -> None:
        """Start every program and watch over them until the run is done."""
        settings = prepared.settings
        self._progress.run, self._progress.max_steps = settings.run.name, settings.learner.max_steps

        def on_address(address: str) -> None:
            self._state(settings, url, address).write()
            self._voice.say(f"dashboard: {address}", "dashboard", url=address)

        self._state(settings, url, "").write()
        for program in programs(settings, self._options.run_file.resolve(), url):
            self._supervisor.add(program)
        narrator = Narrator(self._progress, self._voice, self._started_s)
        timetable = Timetable(prepared.scenario, self._progress, self._voice)
        vigil = Vigil(self._supervisor, ledger, self._progress, self._voice, on_address)
        others = (asyncio.create_task(narrator.follow()), asyncio.create_task(timetable.keep()))
        try:
            await vigil.until_done(*others)
            await self._sum_up(settings, ledger, vigil, narrator)
            if self._options.keep:
                await self._train_on(settings, ledger, url)
                await vigil.for_ever(*others)
        finally:
            for task in others:
                task.cancel()

    async def _train_on(self, settings: RunFile, ledger: Ledger, url: str) -> None:
        """Start the learner again, without a last step this time: without it there would be nothing to steer."""
        await ledger.forget_end()
        started = programs(settings, self._options.run_file.resolve(), url)
        learner = next(program for program in started if program.name == LEARNER)
        self._supervisor.add(replace(learner, environment={**learner.environment, MAX_STEPS_VARIABLE: "none"}))
        self._progress.max_steps = None
        where = self._progress.dashboard
        self._voice.say(f"left running, and training goes on without a last step: {where} (Ctrl-C stops all)", "kept")

    async def _sum_up(self, settings: RunFile, ledger: Ledger, vigil: Vigil, narrator: Narrator) -> None:
        """Stop everything unless it is to be kept, and show what became of the run."""
        events = await ledger.events()
        seconds = time.time() - self._started_s
        measured = Measured(
            seconds,
            narrator.first_step_s,
            vigil.peak_memory_bytes,
            self._supervisor.restarts,
            await ledger.sampled_tokens(),
        )
        directory = settings.run.directory
        places = {
            "plot": directory / closing.PLOT_FILE,
            "figures": directory / closing.JSON_FILE,
            "logs": directory / "logs",
            "checkpoints": settings.checkpoints_directory,
            "weights": settings.weights_directory,
        }
        self.summary = summarise(settings.run.name, events, measured, places)
        if not self._options.keep:
            await self._stop()
        closing.write(self.summary, events, directory)
        self._voice.table(closing.render(self.summary), self.summary.as_json())

    async def _stop(self) -> None:
        """Stop every program, Redis last. Nothing happens the second time."""
        self.stopping = True
        if self._ledger is not None:
            self._ledger.note(SESSION, SESSION, "stopped", time.time())
            with suppress(TimeoutError):  # a frozen Redis must not hold everything up
                await asyncio.wait_for(self._ledger.write(), _FAREWELL_S)
            self._ledger = None
        await self._supervisor.stop(self._interruption.hurry)

    def _state(self, settings: RunFile, url: str, address: str) -> location.RunState:
        return location.RunState(
            run=settings.run.name,
            run_file=str(self._options.run_file.resolve()),
            directory=str(settings.run.directory),
            pid=os.getpid(),
            url=address,
            redis_url=connection.without_password(url),
            started_s=self._started_s,
        )

    def _on_change(self, change: Change) -> None:
        """Tell and note what happened to a program."""
        program = change.program
        if self._ledger is not None:
            self._ledger.note(program.name, program.role, change.state.value, time.time())
        self._progress.processes[program.name] = change.state.value
        kind = "error" if change.state is State.DIED else "process"
        self._voice.say(f"{program.name} {change.state} ({change.detail})", kind, name=program.name)

    def _tell_failure(self, error: GaveUp) -> int:
        """Say why a program was given up, with the end of its log; the exit code."""
        self._voice.say(str(error), "error")
        log, start = error.program.log, error.log_start
        told = [logs.reason(log, start)] if error.unusable else logs.last_lines(log, _LOG_LINES, start)
        for line in told:
            self._voice.say(f"  {line}", "log", name=error.program.name)
        self._voice.say(f"its log: {error.program.log}", "note")
        return UNUSABLE if error.unusable else FAILED
