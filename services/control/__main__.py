"""`python -m services.control RUN_FILE [--check]`: run the control plane, or only check its tokens."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from common.errors import TributaryError
from common.process import run
from common.settings import load_run
from services.control.listening import TOKEN_VARIABLE
from services.control.serving import main
from services.control.tokens import Tokens


def check(run_file: Path) -> int:
    """Print as JSON what is wrong with the tokens of a run; 2 if they cannot be used."""
    problems: list[str] = []
    try:
        Tokens.of(os.environ.get(TOKEN_VARIABLE) or None, load_run(run_file).control.tokens_file)
    except TributaryError as error:
        problems.append(str(error))
    print(json.dumps({"problems": problems}))
    return 2 if problems else 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--check" in arguments:
        raise SystemExit(check(Path(next(a for a in arguments if a != "--check"))))
    raise SystemExit(run("control", main))
