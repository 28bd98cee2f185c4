"""Who may fetch weights from the learner: whoever has the token; without one, programs on its own machine only."""

from __future__ import annotations

import ipaddress
import os
import socket

from common.errors import SettingsError
from common.settings import WeightSettings

WEIGHTS_TOKEN_VARIABLE, TOKEN_VARIABLE = "TRIBUTARY_WEIGHTS_TOKEN", "TRIBUTARY_TOKEN"
HTTP = ("http://", "https://")


def weights_token() -> str | None:
    """The token of the weight server, from this process's environment: that for weights alone, else the operator's.

    None if neither is set. SettingsError if no header can hold it.
    """
    for name in (WEIGHTS_TOKEN_VARIABLE, TOKEN_VARIABLE):
        if token := os.environ.get(name):
            if not (token.isascii() and token.isprintable()):
                raise SettingsError(
                    f"${name} holds a line end or a character outside ASCII, which fetching weights cannot send: "
                    f"set {WEIGHTS_TOKEN_VARIABLE} to another token (openssl rand -hex 24)"
                )
            return token
    return None


def is_served(weights: WeightSettings) -> bool:
    """Whether the learner serves its weight directory by HTTP: a port is set, and versions lie in that directory."""
    return weights.serve_port is not None and (weights.url is None or weights.url.startswith(HTTP))


def exposure(host: str) -> str | None:
    """Why weights may not be served on `host` without a token, in one sentence with the way out; None on loopback."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return f"[weights] serve_host {host!r} is not an address of this machine ({error}): correct it"
    if all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found):
        return None
    return (
        f"the learner would serve its weights on {host}, which other machines can reach: set {WEIGHTS_TOKEN_VARIABLE} "
        f"(or {TOKEN_VARIABLE}) in the environment of learner and generators (openssl rand -hex 24), or set [weights] "
        'serve_host = "127.0.0.1"'
    )
