"""A scorer process on the fake engine (`python -m fake_scorer RUN_FILE --name NAME`), paced by $FAKE_SCORE_S."""

from __future__ import annotations

from functools import partial

from fake_engine import FakeEngine

if __name__ == "__main__":
    from common.process import run
    from services.generator.scoring.service import serve

    raise SystemExit(run("scorer", partial(serve, start_engine=FakeEngine.start)))
