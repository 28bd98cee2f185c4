"""Tokens: who a caller is and what it may do, told by the bearer token that it presents.

$TRIBUTARY_TOKEN is the token of the operator. A tokens file ([control] tokens_file) names more callers, one a line:

    # name   role      token (16 characters or more: openssl rand -hex 24)
    ada      operate   0d5c1a...
    monitor  read      77b0fe...

It is read again whenever it has changed, so a line that is taken out shuts its caller out within a second. A file that
cannot be used any more shuts out everyone whom it named, until it is put right.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from common.config.store import Author
from common.errors import SettingsError

OPERATOR = "operator"
FEWEST_CHARACTERS = 16
REREAD_S = 1.0
_LARGEST_FILE_BYTES = 256 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_TOKEN = re.compile(rf"[!-~]{{{FEWEST_CHARACTERS},256}}")

log = logging.getLogger(__name__)


class Role(StrEnum):
    """What a caller may do. read: look at everything. operate: change the run as well."""

    READ = "read"
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call. origin: the address it comes from. known: a token says the name; else anyone may have it.

    admitted: whether the caller would still be let in, for answers that go on for long.
    """

    name: str
    role: Role
    origin: str
    known: bool = False
    admitted: Callable[[], bool] = field(default=lambda: True, compare=False)

    @property
    def author(self) -> Author:
        """Whom the history names for what this caller changes."""
        return Author(self.name, self.origin)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a token. Only the token's digest is kept."""

    name: str
    role: Role
    digest: bytes


class Tokens:
    """The tokens of a run. operator: the value of $TRIBUTARY_TOKEN, if it is set. clock: seconds that only grow.

    SettingsError says at the start what is wrong with the file; later on it is logged.
    """

    def __init__(self, operator: str | None, file: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._operator = () if operator is None else (Holder(OPERATOR, Role.OPERATE, _digest(os.fsencode(operator))),)
        self._file = file
        self._clock = clock
        self._text: bytes | None = None
        self._read_s = clock()
        self._holders = self._operator
        if file is not None:
            self._take(file, read_tokens_file(file))

    @staticmethod
    def of(operator: str | None, file: Path | None) -> Tokens | None:
        """The tokens of a run; None if it has none, and everyone who reaches the control plane may do everything."""
        return None if operator is None and file is None else Tokens(operator, file)

    def holder(self, token: bytes) -> Holder | None:
        """Who holds this token; None if nobody does. Takes as long for a wrong one as for a right one."""
        self._refresh()
        digest, found = _digest(token), None
        for holder in self._holders:
            if secrets.compare_digest(holder.digest, digest):
                found = holder
        return found

    def knows(self, holder: Holder) -> bool:
        """Whether a holder is still one of them, with the same token and role."""
        self._refresh()
        return holder in self._holders

    def _refresh(self) -> None:
        if self._file is None or self._clock() - self._read_s < REREAD_S:
            return
        self._read_s = self._clock()
        try:
            text = read_tokens_file(self._file)
            if text != self._text:
                self._take(self._file, text)
                log.info("the tokens file was read again", extra={"tokens": len(self._holders)})
        except SettingsError as error:
            if self._text is not None:
                log.error("nobody of the tokens file is let in", extra={"error": str(error)})
            self._text, self._holders = None, self._operator

    def _take(self, file: Path, text: bytes) -> None:
        self._holders = (*self._operator, *parse_tokens(text, file))
        names = [holder.name for holder in self._holders]
        if OPERATOR in names[1:] and self._operator:
            raise SettingsError(f'{file}: the name "{OPERATOR}" is that of $TRIBUTARY_TOKEN: choose another one')
        digests = [holder.digest for holder in self._holders]
        if self._operator and digests[0] in digests[1:]:
            name = names[digests.index(digests[0], 1)]
            raise SettingsError(f'{file}: the token of "{name}" is $TRIBUTARY_TOKEN itself: make another one for it')
        self._text = text


def read_tokens_file(file: Path) -> bytes:
    """The bytes of a tokens file. SettingsError if it cannot be read, or if others than its owner can read it."""
    try:
        # A pipe without a writer must not hold up whoever opens it.
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
            status = os.fstat(opened.fileno())
            text = opened.read(_LARGEST_FILE_BYTES + 1) if stat.S_ISREG(status.st_mode) else None
    except OSError as error:
        raise SettingsError(
            f"cannot read the tokens file {file} ({error.strerror}): make it, or take [control] tokens_file out"
        ) from error
    if text is None:
        raise SettingsError(f"the tokens file {file} is no file: make one, or take [control] tokens_file out")
    if _is_open(status):
        raise SettingsError(f"the tokens file {file} is open to others than its owner: run chmod 600 {file}")
    if len(text) > _LARGEST_FILE_BYTES:
        raise SettingsError(f"the tokens file {file} is larger than {_LARGEST_FILE_BYTES} bytes: is it another file?")
    return text


def _is_open(status: os.stat_result) -> bool:
    """Whether others than its owner can read or write a file. A group may read what root gave it: a mounted secret."""
    given = stat.S_IRGRP if status.st_uid == 0 and os.geteuid() != 0 else 0
    return bool(status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~given)


def parse_tokens(text: bytes, file: Path) -> tuple[Holder, ...]:
    """The holders that a tokens file names. SettingsError says which line is wrong, and never what its token is."""
    holders: dict[str, Holder] = {}
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            holder = _holder(words)
            if holder.name in holders:
                raise SettingsError(f'the name "{holder.name}" comes twice: give every caller one of its own')
            if any(holder.digest == other.digest for other in holders.values()):
                raise SettingsError(f'"{holder.name}" has the token of another name: make a token for each')
        except SettingsError as error:
            raise SettingsError(f"{file}, line {number}: {error}") from error
        holders[holder.name] = holder
    if not holders:
        raise SettingsError(f"{file} names nobody: add a line `name role token`, or take [control] tokens_file out")
    return tuple(holders.values())


def _holder(words: list[str]) -> Holder:
    if len(words) != 3:
        raise SettingsError(f"it has {len(words)} words: write `name role token`")
    name, role, token = words
    if not _NAME.fullmatch(name):
        raise SettingsError("the name is made of other things than letters, digits and _ . @ -, or of more than 64")
    if role not in frozenset(Role):
        raise SettingsError(f'the role of "{name}" is unknown: write {" or ".join(Role)}')
    if not _TOKEN.fullmatch(token):
        raise SettingsError(
            f'the token of "{name}" is not of {FEWEST_CHARACTERS} to 256 printable ASCII characters: '
            "make one with openssl rand -hex 24"
        )
    return Holder(name, Role(role), _digest(token.encode()))


def _digest(token: bytes) -> bytes:
    """Of one length for every token, so that a comparison does not tell how long the right one is."""
    return hashlib.sha256(token).digest()
