"""`python -m services.curriculum RUN_FILE [--check]`: run the curriculum, or only check its data."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from common.config.live import LiveConfig
from common.errors import SettingsError, TributaryError
from common.process import Process, run
from common.settings import RunFile, load_run
from services.curriculum.hints import demonstrations_used
from services.curriculum.pacing import Curriculum
from services.curriculum.prompts import PromptSet, load_prompts
from services.curriculum.tokens import Tokeniser

log = logging.getLogger(__name__)

SURVEYED_CHARACTERS = 4_000_000


def load(settings: RunFile, *, sample: bool = False) -> tuple[PromptSet, list[PromptSet], Tokeniser]:
    """Training and held-out prompts; SettingsError if they cannot be used with the run's algorithm.

    Demonstrations are looked at if they are few; if they are many, as they are used, or now a `sample` of them.
    """
    tokeniser = Tokeniser(settings.model, settings.data)
    recorded = settings.expert.policy == "recorded"
    training = load_prompts("train", settings.data, tokeniser, _progress, recorded=recorded)
    heldout = [load_prompts(s.name, s, tokeniser) for s in settings.evaluation.sets]
    if sample or training.characters <= SURVEYED_CHARACTERS:
        training.survey(SURVEYED_CHARACTERS)
    algorithm = settings.live.algorithm
    if algorithm.requires and training.with_demonstrations == 0:  # hints are made of them, too
        raise SettingsError(f"algorithm {algorithm.kind!r} needs demonstrations, {_why_none(settings, training)}")
    return training, heldout, tokeniser


def _why_none(settings: RunFile, training: PromptSet) -> str:
    """Why no demonstration of the data set can be used, and what to do."""
    if training.set_aside.totals:
        return f"but {training.set_aside.sentence()}; correct the data, or choose another algorithm"
    return (
        f"and {settings.data.path} has none: name the column in [data.columns] demonstration, or choose another "
        "algorithm"
    )


def facts(training: PromptSet, heldout: list[PromptSet], tokeniser: Tokeniser) -> dict[str, Any]:
    """What others need to know about the data."""
    return {
        "train_prompts": len(training),
        "train_demonstrations": training.with_demonstrations,
        "model_context": tokeniser.context,
        **{f"heldout:{prompts.name}": len(prompts) for prompts in heldout},
    }


async def main(process: Process) -> int:
    """Load the data, tell its facts, and run until told to stop."""
    training, heldout, tokeniser = await asyncio.to_thread(load, process.settings)
    known = facts(training, heldout, tokeniser)
    await process.patiently("tell facts", lambda: process.redis.hset(process.keys.facts, mapping=known))
    log.info("data loaded", extra=known)
    await Curriculum(process, training, heldout).run()
    return 0


def check(run_file: Path) -> int:
    """Print as JSON what the data of a run file holds and what is wrong with it; 2 if it cannot be used.

    problems: why not. notes: what would be set aside while it runs.
    """
    report: dict[str, Any] = {"problems": [], "notes": []}
    try:
        settings = load_run(run_file)
        loaded = load(settings, sample=True)
        report |= facts(*loaded)
        report["notes"] += set_aside_notes(loaded[0], settings.live)
    except TributaryError as error:
        report["problems"].append(str(error))
    print(json.dumps(report))
    return 2 if report["problems"] else 0


def set_aside_notes(training: PromptSet, live: LiveConfig) -> list[str]:
    """What of the training demonstrations cannot be used under a configuration, and why, with an example."""
    if demonstrations_used(live.hints):
        training.judge(live.sampling.max_response_tokens)
    news = training.set_aside.news()
    if not news:
        return []
    share = "" if len(training.looked_at) == len(training) else f", looking at {len(training.looked_at)} prompts only"
    return [f"{training.set_aside.sentence()}{share}; for example, {news[0].why}"]


def _progress(done: int, whole: int) -> None:
    log.info("tokenising prompts", extra={"done": done, "of": whole})


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--check" in arguments:
        raise SystemExit(check(Path(next(a for a in arguments if a != "--check"))))
    code = run("curriculum", main)
    # Everything is closed. The interpreter would take seconds to tear the data libraries down, module by module.
    sys.stderr.flush()
    os._exit(code)
