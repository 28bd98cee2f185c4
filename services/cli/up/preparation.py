"""The preparation of a run: settings, scenario and everything that can be checked, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import connection
from common.errors import SettingsError
from common.keys import Keys
from common.settings import RunFile
from services.cli import check, location
from services.cli.up.ledger import Ledger
from services.cli.up.redis_server import named_url
from services.cli.up.scenario import Scenario, load_scenario, scenario_problems


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator asked `up` for."""

    run_file: Path
    scenario: Path | None = None
    keep: bool = False
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that can be started."""

    settings: RunFile
    scenario: Scenario
    report: check.Report


class Unprepared(SettingsError):
    """A run that cannot be started. problems: why, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\ntributary: ".join(problems))


async def prepare(options: Options) -> Prepared:
    """The run as it was asked for. Unprepared, with every problem found, if it cannot be started."""
    settings, report = check.load(options.run_file)
    if settings is None:
        raise Unprepared(report.problems)
    location.refuse_if_up(settings.run.directory)
    scenario = Scenario(())
    if options.scenario is not None:
        scenario = load_scenario(options.scenario)
        report.problems += scenario_problems(scenario, settings.live, settings.learner.max_steps)
    await check.inspect(settings, options.run_file, report)
    if report.problems:
        raise Unprepared(report.problems)
    if options.fresh and (url := named_url(settings)):
        await _refuse_if_alive(url, settings.run.name)
    return Prepared(settings, scenario, report)


async def _refuse_if_alive(url: str, name: str) -> None:
    """SettingsError if a run of this name is alive in the Redis that is named; nothing was moved aside by then."""
    redis = connection.connect(url)
    try:
        await Ledger(redis, Keys(name)).refuse_if_alive()
    finally:
        await redis.aclose()


def set_aside(settings: RunFile) -> list[Path]:
    """Move what an earlier run left out of the way; the new places of what was moved."""
    directory = settings.run.directory
    elsewhere = [
        p for p in (settings.checkpoints_directory, settings.weights_directory) if not p.is_relative_to(directory)
    ]
    with location.hold(directory):
        moved = [location.set_aside(path) for path in (*elsewhere, directory)]
    return [path for path in moved if path is not None]
