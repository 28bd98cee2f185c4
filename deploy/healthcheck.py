"""Asks the process of this container whether it does its work: 0 if so, else 1 and the reason. For HEALTHCHECK.

Standard library only, and little of it: it runs every few seconds. TRIBUTARY_HEALTH_URL overrides whom to ask.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

URL = "http://127.0.0.1:9464/readyz"
_ANSWER_S = 4


def main() -> int:
    """Ask once."""
    url = os.environ.get("TRIBUTARY_HEALTH_URL") or URL
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:
            print(answer.read(500).decode("utf-8", "replace"))
            return 0
    except urllib.error.HTTPError as refused:
        with refused:
            print(refused.read(500).decode("utf-8", "replace"))
    except OSError as error:
        print(f"{url} does not answer: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
