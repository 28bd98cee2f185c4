"""`python -m services.generator RUN_FILE [--check]`: run a generator, or only check its model and its grader."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # imported again by every grader process, which needs none of this
    from services.generator.start import check, main

    if "--check" in sys.argv[1:]:
        raise SystemExit(check(sys.argv[1:]))
    main()
