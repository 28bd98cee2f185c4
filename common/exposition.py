"""The small HTTP server beside every process: /metrics for Prometheus, /healthz and /readyz for whoever restarts it.

/healthz: whether the process should be restarted. /readyz: whether it does its work now. Both say why not.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from common.errors import SettingsError

Verdict = Callable[[], str]
"""Why all is not well; "" when it is."""


class Exposition:
    """Serves a registry, and verdicts by their paths. SettingsError if host and port cannot be listened on."""

    def __init__(self, registry: CollectorRegistry, verdicts: Mapping[str, Verdict], host: str, port: int) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(registry, verdicts))
        except OSError as error:
            raise SettingsError(
                f"metrics and health cannot be served on {host} port {port} ({error.strerror}): correct "
                "TRIBUTARY_METRICS_HOST and TRIBUTARY_METRICS_PORT (0 takes any free port)"
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="exposition", daemon=True)

    @property
    def address(self) -> str:
        """host:port as others reach it: the port that was really given, and this machine's name for every interface."""
        host, port = self._server.server_address[:2]
        is_wide = ipaddress.ip_address(str(host)).is_unspecified
        return f"{socket.gethostname() if is_wide else host!s}:{port}"

    def start(self) -> None:
        """Serve from a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def _handler(registry: CollectorRegistry, verdicts: Mapping[str, Verdict]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif self.path in verdicts:
                reason = verdicts[self.path]()
                body = json.dumps({"status": "unhealthy" if reason else "ok", "reason": reason}).encode()
                self._answer(503 if reason else 200, "application/json", body)
            else:
                known = ", ".join(["/metrics", *verdicts])
                self._answer(404, "text/plain", f"only {known} are here\n".encode())

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name for it
            """Scrapes are not worth a log line."""

    return Handler
