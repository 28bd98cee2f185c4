"""One session of `up`: from the check of the settings to the summary, with everything stopped at its end."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

from redis.asyncio import Redis

from common import connection
from common.errors import SettingsError
from common.keys import Keys
from common.settings import RunFile
from services.cli import location
from services.cli.progress import Progress
from services.cli.up import closing, logs, process_table
from services.cli.up.interruption import Interruption
from services.cli.up.ledger import Ledger
from services.cli.up.operator import Operator
from services.cli.up.phases import SESSION
from services.cli.up.preparation import Options, Prepared, prepare, set_aside
from services.cli.up.programs import LEARNER, PARENT, programs
from services.cli.up.redis_server import RedisServer, find_executable, named_url, own_server, wait_until_ready
from services.cli.up.summary import Measured, summarise
from services.cli.up.supervisor import Change, GaveUp, State, Supervisor
from services.cli.voice import Voice

INTERRUPTED = 130
EVALUATION_S = 60.0
_TICK_S = 0.2
_LOOK_S = 1.0
_MEASURE_S = 3.0
_LOG_LINES = 8


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
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
        finally:
            asked.cancel()
            voice.close()
    if session.summarised:
        return 0
    voice.say(f"stopped; the run can be resumed with: {resume_command}", "stopped")
    return INTERRUPTED


class Session:
    """Everything between the start of `up` and its end. Times are Unix times in seconds."""

    def __init__(self, options: Options, voice: Voice, interruption: Interruption) -> None:
        self._options = options
        self._voice = voice
        self._interruption = interruption
        self._started_s = time.time()
        self._first_step_s: float | None = None
        self._peak_memory_bytes = 0
        self._supervisor = Supervisor(self._on_change, time.monotonic, (PARENT, str(os.getpid())))
        self._progress = Progress()
        self.summarised = False

    async def run(self) -> int:
        """Check, start, follow to the end, summarise. Whatever happens, nothing is left running."""
        try:
            prepared = await prepare(self._options)
            settings = prepared.settings
            if self._options.fresh:
                for place in set_aside(settings):
                    self._voice.say(f"the old run lies in {place} now")
            is_new = not settings.run.directory.exists()
            with location.hold(settings.run.directory):
                return await self._run_in(prepared, is_new)
        except GaveUp as error:
            self._tell_failure(error)
            return 2 if error.unusable else 1
        finally:
            await self._supervisor.stop(self._interruption.hurry)

    async def _run_in(self, prepared: Prepared, is_new: bool) -> int:
        """The session in a run directory that is ours alone."""
        settings = prepared.settings
        for note in prepared.report.notes:
            self._voice.say(note, "warning")
        self._progress.run, self._progress.max_steps = settings.run.name, settings.learner.max_steps
        url, own = self._choose_redis(settings)
        redis = connection.connect(url)
        try:
            self._ledger = Ledger(redis, Keys(settings.run.name))
            await self._open_redis(redis, url, own)
            await self._take_up(settings, url, is_new)
            self._note_state(settings, url)
            for program in programs(settings, self._options.run_file.resolve(), url):
                self._supervisor.add(program)
            operator = Operator(self._progress, prepared.scenario, self._voice, self._started_s)
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(operator.follow())
                code = await self._follow(settings, url, operator)
                following.cancel()
            return code
        except* GaveUp as group:
            raise group.exceptions[0] from None
        finally:
            self._ledger.note(SESSION, SESSION, "stopped", time.time())
            await self._ledger.write()
            # Redis is stopped after everyone else, so our connection has to outlive the programs but not the server.
            await self._supervisor.stop(self._interruption.hurry)
            await redis.aclose()
