"""Errors that a person is meant to read: what was wrong, with the values, and what to do about it."""

from __future__ import annotations


class TributaryError(Exception):
    """Base of every error that this project raises on purpose. Its text is one clear sentence with the remedy."""


class SettingsError(TributaryError):
    """The run file, the environment or a file they name cannot be used."""


class WireError(TributaryError):
    """A message cannot be decoded."""


class NewerSchemaError(WireError):
    """A message was written by a newer version of this project."""


class ConfigRejected(TributaryError):
    """A live configuration is invalid, or its parts do not fit each other.

    problems: (path in the configuration, sentence) pairs.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{path}: {sentence}" if path else sentence for path, sentence in problems))


class LostRace(TributaryError):
    """Somebody else changed the live configuration first."""

    def __init__(self, expected: int, current: int) -> None:
        self.expected = expected
        self.current = current
        super().__init__(f"revision {expected} was expected but revision {current} is current: read it again and retry")


class WeightsError(TributaryError):
    """A published weight version is incomplete, damaged or missing."""


class RedisUnavailable(TributaryError):
    """Redis cannot be reached, or is not one that we can use."""
