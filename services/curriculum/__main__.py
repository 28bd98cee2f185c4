"""`python -m services.curriculum RUN_FILE [--check]`: run the curriculum, or only check its data."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

from common.config.base import Material
from common.errors import SettingsError, TributaryError
from common.process import Process, run
from common.settings import RunFile, load_run
from services.curriculum.pacing import Curriculum
from services.curriculum.prompts import PromptSet, load_prompts
from services.curriculum.tokens import Tokeniser

log = logging.getLogger(__name__)


def load(settings: RunFile) -> tuple[PromptSet, list[PromptSet], Tokeniser]:
    """Training and held-out prompts; SettingsError if they cannot be used with the run's algorithm."""
    tokeniser = Tokeniser(settings.model, settings.data)
    training = load_prompts("train", settings.data, tokeniser, _progress)
    heldout = [load_prompts(s.name, s, tokeniser) for s in settings.evaluation.sets]
    algorithm = settings.live.algorithm
    if Material.DEMONSTRATIONS in algorithm.requires and training.with_demonstrations == 0:
        raise SettingsError(
            f"algorithm {algorithm.kind!r} needs demonstrations and {settings.data.path} has none: "
            "name the column in [data.columns] demonstration, or choose another algorithm"
        )
    return training, heldout, tokeniser


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
    """Print as JSON what the data of a run file holds and what is wrong with it; 2 if it cannot be used."""
    report: dict[str, Any] = {"problems": []}
    try:
        report |= facts(*load(load_run(run_file)))
    except TributaryError as error:
        report["problems"].append(str(error))
    print(json.dumps(report))
    return 2 if report["problems"] else 0


def _progress(done: int, whole: int) -> None:
    log.info("tokenising prompts", extra={"done": done, "of": whole})


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--check" in arguments:
        raise SystemExit(check(Path(next(a for a in arguments if a != "--check"))))
    raise SystemExit(run("curriculum", main))
