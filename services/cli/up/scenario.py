"""A scenario: an operator on a timetable, who sends changes to the control plane as the steps go by."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from common.config.base import Frozen
from common.config.live import LiveConfig, dump_live, merge_patch, parse_live
from common.errors import ConfigRejected, SettingsError

Json = dict[str, Any]


class ScheduledChange(Frozen):
    """One change: sent once the learner has done `at_step` steps. say: what it is for. patch: a JSON merge patch."""

    at_step: int = Field(ge=0)
    say: str = Field(min_length=1)
    patch: dict[str, Any] = Field(min_length=1)


class _Timetable(Frozen):
    change: tuple[ScheduledChange, ...] = Field(min_length=1)


class Scenario:
    """The changes of a timetable, each sent once in the life of a run."""

    def __init__(self, changes: Iterable[ScheduledChange]) -> None:
        self.changes = sorted(changes, key=lambda change: change.at_step)
        self._next = 0

    @property
    def is_done(self) -> bool:
        """Whether every change was sent."""
        return self._next >= len(self.changes)

    def skip_applied(self, reasons: Iterable[str]) -> None:
        """Leave out what an earlier session has sent already, as the reasons of the revisions tell."""
        applied = set(reasons)
        while self._next < len(self.changes) and self.reason(self._next) in applied:
            self._next += 1

    def due(self, step: int) -> tuple[str, ScheduledChange] | None:
        """The next change, with the reason to give, if the learner has come that far."""
        if self._next < len(self.changes) and step >= self.changes[self._next].at_step:
            return self.reason(self._next), self.changes[self._next]
        return None

    def advance(self) -> None:
        """Note that the next change was sent."""
        self._next += 1

    def reason(self, index: int) -> str:
        """What the history of revisions says about a change; it tells a resumed run which ones were sent."""
        return f"scenario {index + 1}: {self.changes[index].say}"


def load_scenario(path: Path) -> Scenario:
    """The scenario in a TOML file; SettingsError names what is wrong with it."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return Scenario(_Timetable.model_validate(document).change)
    except OSError as error:
        raise SettingsError(f"cannot read the scenario {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise SettingsError(
            f"{path} is not a scenario: {'; '.join(problems)} (give [[change]] tables with at_step, say and patch)"
        ) from error


def scenario_problems(scenario: Scenario, live: LiveConfig, max_steps: int | None) -> Iterator[str]:
    """Whether every change would be accepted, one after the other, and be reached at all."""
    document = dump_live(live)
    for number, change in enumerate(scenario.changes, 1):
        try:
            document = dump_live(parse_live(merge_patch(document, change.patch)))
        except ConfigRejected as error:
            yield f"change {number} of the scenario (at step {change.at_step}) would be refused: {error}"
            return
        if max_steps is not None and change.at_step >= max_steps:
            yield (
                f"change {number} of the scenario is due at step {change.at_step}, but step {max_steps} is the last: "
                "move it forward, or raise [learner] max_steps"
            )


def curl(url: str, patch: Json) -> str:
    """The shell command that makes the same change."""
    body = shlex.quote(json.dumps(patch, ensure_ascii=False))
    return f"curl -X PATCH {url}/v1/config -H 'Content-Type: application/merge-patch+json' -d {body}"
