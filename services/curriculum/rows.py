"""Rows of a data set, in whatever columns they come: prompt, answer, and no, one or several demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from common.errors import SettingsError
from common.settings import Columns, DatasetSettings

Message = dict[str, str]
# An empty file ends the library's own reader with StopIteration.
_UNLOADABLE = (DatasetNotFoundError, DatasetGenerationError, OSError, ValueError, StopIteration)
_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class Row:
    """One problem. number: its row in the data set, from 0. prompt: text, or the messages of a chat.

    demonstrations: as many as the row names, empty ones included: none is dropped without a word.
    """

    number: int
    prompt: str | tuple[Message, ...]
    answer: str
    demonstrations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What a data set says about who wrote one demonstration, as it stands there: log-probs, and the ids they are of.

    ids: None if the data set has no column of them. logprobs: None if this row has none.
    """

    logprobs: Any
    ids: Any


class Table:
    """A data set, row by row. Recorded log-probs are large, so they are read when asked for and not kept.

    SettingsError if it is missing, empty, or lacks a column. recorded: whether it has to name expert log-probs.
    """

    def __init__(self, source: DatasetSettings, *, recorded: bool = False) -> None:
        self._source = source
        self._table = _load(source)
        if len(self._table) == 0:
            raise SettingsError(f"the data set {source.path} is empty: give one with at least one row")
        columns = source.columns
        experts = [columns.expert_logprobs, columns.expert_tokens] if recorded else []
        for column in filter(None, [columns.prompt, columns.answer, columns.demonstration, *experts]):
            if column.partition(".")[0] not in self._table.column_names:
                raise SettingsError(
                    f"the data set {source.path} has no column {column!r} (it has "
                    f"{', '.join(self._table.column_names)}): correct [data.columns]"
                )
        roots = [column.partition(".")[0] for column in filter(None, experts)]
        self._experts: Any = self._table.select_columns(list(dict.fromkeys(roots))) if roots else None

    def rows(self) -> list[Row]:
        """Every row; SettingsError if one cannot be used."""
        return list(_rows(self._table.remove_columns(self._unread()), self._source.columns, self._source))

    def records(self, number: int, demonstrations: int) -> list[Record]:
        """What row `number` says about each of its demonstrations. ValueError unless it says as much of each."""
        columns, row = self._source.columns, self._experts[number]
        logprobs = _of_each(row, columns.expert_logprobs, demonstrations)
        ids = _of_each(row, columns.expert_tokens, demonstrations)
        return [Record(*pair) for pair in zip(logprobs, ids, strict=True)]

    def _unread(self) -> list[str]:
        columns = self._source.columns
        read = {c.partition(".")[0] for c in filter(None, [columns.prompt, columns.answer, columns.demonstration])}
        return [name for name in self._table.column_names if name not in read]


def _of_each(row: Mapping[str, Any], column: str | None, demonstrations: int) -> list[Any]:
    """A column's value for each demonstration of a row. That of a single one may come without a list around it."""
    try:
        value = None if column is None else _value(row, column)
    except KeyError:  # a row may lack what stands below a column
        value = None
    if value is None:
        return [None] * demonstrations
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"its {column!r} is {type(value).__name__}, not a list")
    if demonstrations == 1 and not (len(value) == 1 and isinstance(value[0], Sequence)):
        return [value]
    if len(value) != demonstrations:
        raise ValueError(f"its row has {demonstrations} demonstrations, and {len(value)} of {column!r}")
    return list(value)


def _load(source: DatasetSettings) -> Any:
    suffix = Path(source.path).suffix
    limit = f"[:{source.limit}]" if source.limit else ""
    datasets.disable_progress_bars()
    try:
        if suffix in _FORMATS:
            if "*" not in source.path and not Path(source.path).is_file():
                raise SettingsError(f"there is no data file {source.path}: make it, or correct `path` in the run file")
            # A local file is read as the train split, whatever the hub would call it.
            return datasets.load_dataset(_FORMATS[suffix], data_files=source.path, split=f"train{limit}")
        return datasets.load_dataset(source.path, split=f"{source.split}{limit}")
    except _UNLOADABLE as error:
        cause = str(error.__cause__ or error) or "it is empty"
        raise SettingsError(f"the data set {source.path} cannot be loaded: {cause.splitlines()[0]}") from error


def _rows(table: Any, columns: Columns, source: DatasetSettings) -> Iterator[Row]:
    for number, record in enumerate(table):
        try:
            demonstration = _value(record, columns.demonstration) if columns.demonstration else None
            yield Row(
                number=number,
                prompt=_prompt(_value(record, columns.prompt)),
                answer=_text(_value(record, columns.answer)),
                demonstrations=_demonstrations(demonstration),
            )
        except (TypeError, KeyError, IndexError) as error:
            raise SettingsError(f"row {number + 1} of {source.path} cannot be used: {error}") from error


def _value(record: Mapping[str, Any], path: str) -> Any:
    """The value at a column, or below it: "reward_model.ground_truth"."""
    value: Any = record
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise KeyError(f"it has no {path!r}")
        value = value[name]
    return value


def _prompt(value: Any) -> str | tuple[Message, ...]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Sequence) and value and all(_is_message(m) for m in value):
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise TypeError("its prompt is neither a non-empty text nor a list of {role, content}")


def _text(value: Any) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"its answer is {type(value).__name__}, not text or a number")


def _demonstrations(value: Any) -> tuple[str, ...]:
    """None; a text; several texts; or messages, of which the last is the demonstration."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and value and _is_message(value[0]):
        return (str(value[-1]["content"]),)
    if isinstance(value, Sequence):
        return tuple(text for item in value for text in (_demonstrations(item) or ("",)))
    raise TypeError(f"its demonstration is {type(value).__name__}, not text")


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
