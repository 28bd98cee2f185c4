"""`python -m services.generator.scoring RUN_FILE --name scorer-1`: run the scorer of a run."""

from __future__ import annotations

import os
import sys
from functools import partial

if __name__ == "__main__":  # imported again by the engine core, which needs none of this
    from common.process import run
    from services.generator.engine import Engine
    from services.generator.scoring.service import serve

    code = run("scorer", partial(serve, start_engine=Engine.start))
    sys.stderr.flush()
    # All is closed and told. An interpreter that has loaded vLLM would take ten seconds more to end by itself.
    os._exit(code)
