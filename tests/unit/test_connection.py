"""Which Redis errors pass, and what of a URL may be shown."""

from __future__ import annotations

import pytest
from redis.exceptions import AuthenticationError, ConnectionError, OutOfMemoryError, ReadOnlyError, ResponseError

from common.connection import is_passing, quotable, without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@h:1/0", "redis://:***@h:1/0"),
        ("redis://user:secret@h/0", "redis://:***@h/0"),
        ("redis://:12/secret@h/0", "redis://:***@h/0"),
        ("redis://:se@cret@h/0", "redis://:***@h/0"),
        ("redis://h/0?password=secret", "redis://h/0?***"),
        ("redis://h/0?password=se@cret", "redis://***"),
        ("redis://:se?cret@h/0", "redis://***"),
        ("redis://:secret@h/0?password=se@cret", "redis://***"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_what_a_client_says_is_told_unless_it_may_quote_a_secret() -> None:
    error = ValueError("no port: 'cret@h'")
    assert quotable(error, "s3://bucket/run [1]") is error
    for url in ("s3://ada:se/cret@h", "s3://token@h", "https://h/x?signature=cret@h"):
        assert quotable(error, url) is None


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("closed"),
        OSError("no route"),
        OutOfMemoryError("command not allowed"),
        ReadOnlyError("a replica"),
        ResponseError("MISCONF Redis is configured to save"),
        ResponseError("Error running script (call to f_1): @user_script:1: -MISCONF Redis is configured"),
        ResponseError("Command # 1 (XACK a b) of pipeline caused error: ('MISCONF Redis is configured',)"),
        ResponseError("NOGROUP No such key"),
    ],
)
def test_what_goes_away_by_itself_is_waited_for(error: Exception) -> None:
    assert is_passing(error)


@pytest.mark.parametrize(
    "error", [AuthenticationError("wrong"), ResponseError("WRONGTYPE Operation"), ResponseError("ERR unknown command")]
)
def test_what_does_not_go_away_is_raised(error: Exception) -> None:
    assert not is_passing(error)
