"""Starting a generator with the real engine, and the check that needs neither engine nor Redis."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from common.errors import SettingsError, TributaryError, WeightsError
from common.process import run
from common.settings import load_run
from services.generator import graders
from services.generator.checkpoint_layout import read_layout
from services.generator.engine import Engine
from services.generator.scoring.expert import NAMED, open_expert
from services.generator.service import serve
from services.generator.tokenizer import require_model


def main() -> NoReturn:
    """Run a generator, and end with its exit code."""
    code = run("generator", partial(serve, start_engine=Engine.start))
    sys.stderr.flush()
    # All is closed and told. An interpreter that has loaded vLLM would take ten seconds more to end by itself.
    os._exit(code)


def _require_whole_weights(path: str, named: str) -> None:
    """SettingsError if a *.safetensors file of a local model is not whole. named: where the run file names it."""
    directory = Path(path)
    if not directory.is_absolute() or not any(directory.glob("*.safetensors")):
        return
    try:
        read_layout(directory)
    except WeightsError as error:
        raise SettingsError(f"{named}: {error}: copy or make the model again") from error


def check(arguments: Sequence[str]) -> int:
    """Print as JSON what is wrong with a run file's models and grader; 2 if they cannot be used."""
    problems: list[str] = []
    try:
        settings = load_run(Path(next(a for a in arguments if not a.startswith("--"))))
    except TributaryError as error:
        problems.append(str(error))
    else:
        checks: list[Callable[[], object]] = [
            lambda: require_model(settings.model),
            lambda: _require_whole_weights(settings.model.path, "[model] path"),
            lambda: graders.load(settings.grader.name, settings.grader.options),
        ]
        if settings.expert.policy == "scored" and (expert := settings.expert.model):
            checks += [lambda: open_expert(settings), lambda: _require_whole_weights(expert, NAMED)]
        for looked_at in checks:
            try:
                looked_at()
            except TributaryError as error:
                problems.append(str(error))
    print(json.dumps({"problems": problems}))
    return 2 if problems else 0
