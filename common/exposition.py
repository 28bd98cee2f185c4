"""The small HTTP server beside every process: /metrics for Prometheus, /healthz for whoever restarts things."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Trouble = Callable[[], str]


class Exposition:
    """Serves a registry and a verdict. `trouble` returns why the process is unhealthy, or "" when it is well."""

    def __init__(self, registry: CollectorRegistry, trouble: Trouble, host: str, port: int) -> None:
        self._server = ThreadingHTTPServer((host, port), _handler(registry, trouble))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="exposition", daemon=True)

    @property
    def address(self) -> str:
        """host:port, the port being the one that was really given."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def start(self) -> None:
        """Serve from a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def _handler(registry: CollectorRegistry, trouble: Trouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif self.path == "/healthz":
                reason = trouble()
                body = json.dumps({"status": "unhealthy" if reason else "ok", "reason": reason}).encode()
                self._answer(503 if reason else 200, "application/json", body)
            else:
                self._answer(404, "text/plain", b"only /metrics and /healthz are here\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name for it
            """Scrapes are not worth a log line."""

    return Handler
