"""`tributary export`: a checkpoint becomes a Hugging Face model directory."""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from common.errors import SettingsError
from common.settings import load_run
from services.cli import location
from services.cli.commands.options import JsonOption, print_json
from services.cli.exit_codes import FAILED
from services.cli.up.programs import LEARNER, PARENT, environment

commands = typer.Typer()


class Dtype(StrEnum):
    """What the weights are written as."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@commands.command()
def export(
    to: Annotated[Path, typer.Option("--to", help="the new directory", show_default=False)],
    run_file: Annotated[
        Path | None, typer.Argument(help="the run file (TOML); default: of the run that is up", show_default=False)
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, help="the checkpoint of this step; default: the newest")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="of the weights; default: what the run publishes in")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint as a Hugging Face model directory: configuration, tokenizer and weights.

    It may be done while the run goes on. The directory must be new or empty, and appears whole or not at all.
    """
    run_file = run_file or Path(location.find(None).run_file)
    options = {"--to": to, "--step": step, "--dtype": dtype}
    command = [sys.executable, "-m", "learner.export", str(run_file)]
    command += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    code, told, complaints = _run(command, run_file, is_heard=not as_json)
    if as_json:
        if code:
            last = (complaints.strip().splitlines() or ["it printed nothing"])[-1]
            raise SettingsError(last.removeprefix("export: "))
        print_json({"directory": str(to.expanduser().resolve()), "text": told.strip()})
    raise typer.Exit(code if code >= 0 else FAILED)


def _run(command: list[str], run_file: Path, *, is_heard: bool) -> tuple[int, str, str]:
    """Exit code, output and complaints of the learner's program; what people hear at once is not kept."""
    surroundings = {k: v for k, v in environment(load_run(run_file), LEARNER).items() if k != PARENT}
    kept = None if is_heard else subprocess.PIPE
    with subprocess.Popen(command, env=surroundings, stdout=kept, stderr=kept, text=True) as program:
        try:
            told, complaints = program.communicate()
        except KeyboardInterrupt:  # the terminal has told it too: let it tidy up
            program.wait()
            raise
    return program.returncode, told or "", complaints or ""
