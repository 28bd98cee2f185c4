"""Launching: torchrun, with an end that can be read. Whoever starts several ranks can give them to torchrun itself too.

    python -m learner.ranks.launching --nproc-per-node 2 -m learner RUN_FILE

torchrun's exit code is 1 whatever happened, and its last words are a report of its own. Here the code is 2 where a rank
cannot use its settings, as it is for a learner alone, and the last words are those of the ranks.
"""

from __future__ import annotations

import os
import sys
from typing import Any, cast

UNUSABLE_SETTINGS = 2


def main(arguments: list[str]) -> int:
    """Run torchrun with these arguments; the exit code."""
    os.environ.setdefault("LOGLEVEL", "CRITICAL")  # torchrun's own records; it reads that when it is imported
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    torchrun = cast(Any, run)
    try:
        torchrun.run(torchrun.parse_args(arguments))
    except SignalException as signalled:
        return 128 + int(signalled.sigval)
    except ChildFailedError as failed:
        if any(failure.exitcode == UNUSABLE_SETTINGS for failure in failed.failures.values()):
            return UNUSABLE_SETTINGS
        first, failure = failed.get_first_failure()
        told = f"rank {first} of the learner ended first, {_told(failure.exitcode)}: so all of them end"
        print(told, file=sys.stderr)
        return 1
    return 0


def _told(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"with exit code {code}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
