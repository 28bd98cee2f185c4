"""`tributary check`: says what would keep a run from starting."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from rich.console import Console

from services.cli import check
from services.cli.exit_codes import OK, UNUSABLE


def show_check(run_file: Path, *, as_json: bool) -> int:
    """Check a run file and print what was found; the exit code."""
    settings, report = check.load(run_file)
    if settings is not None:
        asyncio.run(check.inspect(settings, run_file, report))
    if as_json:
        print(json.dumps(report.as_json(), indent=2))
        return UNUSABLE if report.problems else OK
    console = Console(soft_wrap=True, highlight=False)
    for problem in report.problems:
        console.print(f"✗ {problem}", style="red", markup=False)
    for note in report.notes:
        console.print(f"· {note}", style="yellow", markup=False)
    if not report.problems:
        counts = f" ({report.prompts} prompts, {report.demonstrations} with demonstrations)" if report.prompts else ""
        console.print(f"✓ {run_file} can be started{counts}: tributary up {run_file}", style="green", markup=False)
    return UNUSABLE if report.problems else OK
