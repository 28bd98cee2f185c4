"""The address that the control plane listens on: loopback, unless a token guards a wider one."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from common.errors import SettingsError

TOKEN_VARIABLE = "TRIBUTARY_TOKEN"
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Listener:
    """An open listening socket. url: where a program on this machine reaches it, without a trailing slash."""

    socket: socket.socket
    url: str


def listen(host: str, port: int, *, guarded: bool) -> Listener:
    """Listen on host:port (port 0: any free one). guarded: whether a token is asked of every caller.

    SettingsError if the address is wider than loopback and unguarded, unknown, or taken.
    """
    family, address = _resolve(host)
    if not guarded and not ipaddress.ip_address(address).is_loopback:
        raise SettingsError(
            f"the control plane would listen on {host}, which other machines can reach: set {TOKEN_VARIABLE} in the "
            'environment or name a [control] tokens_file, or set [control] host = "127.0.0.1"'
        )
    # asyncio turns Nagle's algorithm off only for sockets that say they are TCP; with it every answer takes 40 ms more.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, port))
        opened.listen(_BACKLOG)
    except OSError as error:
        opened.close()
        raise SettingsError(
            f"the control plane cannot listen on {host} port {port} ({error.strerror}): stop what uses it, or set "
            "[control] port in the run file (0 takes any free one)"
        ) from error
    return Listener(opened, _url(address, opened.getsockname()[1]))


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"[control] host {host!r} is not an address of this machine: {error}") from error
    return family, str(address[0])


def _url(address: str, port: int) -> str:
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:  # every interface: loopback is one of them
        ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return f"http://{ip}:{port}" if ip.version == 4 else f"http://[{ip}]:{port}"
