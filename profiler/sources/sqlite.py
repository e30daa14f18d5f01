"""Reads tables of somebody's SQLite file as they are: only plain tables, only the columns that are there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from moescope.profiler.errors import MoescopeError
from moescope.profiler.sources.columns import NO_INT, Ints

MAGIC: Final = b"SQLite format 3\0"
_ROWS: Final = 1 << 16
_LONGEST_TEXT: Final = 1 << 24


class Database:
    """An open file. tables: columns by table"""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self.tables: dict[str, tuple[str, ...]] = {}
        # A view or a virtual table runs whatever its author wrote.
        plain = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'create virtual%'"
        for (name,) in connection.execute(plain).fetchall():
            listed = connection.execute(f"PRAGMA table_info({_quoted(name)})").fetchall()
            self.tables[name] = tuple(column for _, column, *_ in listed)

    def pieces(self, table: str, columns: Sequence[str]) -> Iterator[tuple[list[Any], ...]]:
        """Values of the columns, many rows at a time: [columns][rows]; None in all rows of a column that is not there.

        Nothing where there is no such table.
        """
        there = self.tables.get(table)
        if there is None:
            return
        wanted = ", ".join(_quoted(column) if column in there else "NULL" for column in columns)
        with closing(self._connection.execute(f"SELECT {wanted} FROM {_quoted(table)}")) as cursor:
            while rows := cursor.fetchmany(_ROWS):
                yield tuple(list(column) for column in zip(*rows, strict=True))

    def strings(self, used: Sequence[tuple[str, str]]) -> dict[int, str]:
        """Texts of `StringIds` by number, those alone that these columns of tables refer to."""
        there = [(table, column) for table, column in used if column in self.tables.get(table, ())]
        if not there or not {"id", "value"} <= set(self.tables.get("StringIds", ())):
            return {}
        numbers = " UNION ".join(f"SELECT {_quoted(column)} FROM {_quoted(table)}" for table, column in there)
        query = f"SELECT id, value FROM StringIds WHERE id IN ({numbers})"
        with closing(self._connection.execute(query)) as cursor:
            return {number: text for number, text in cursor if isinstance(text, str) and isinstance(number, int)}

    def rows(self, table: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """All rows of a small table, as `pieces`."""
        return [row for piece in self.pieces(table, columns) for row in zip(*piece, strict=True)]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    """Open a file for reading, without a lock and without a trace beside it.

    Raises MoescopeError for what is no SQLite file, is damaged, or is not whole without the log beside it.
    """
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        raise MoescopeError(f"{path}: {log.name} holds a part of it: open it once with sqlite3, so that it is taken in")
    try:
        address = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_TEXT)
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA query_only = ON")
            yield Database(path, connection)
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as problem:
        raise MoescopeError(f"{path}: SQLite cannot read it ({problem}); export or copy it again") from problem


def integers(values: Sequence[object]) -> Ints:
    """[values] NO_INT for what is no whole number: SQLite keeps anything in any column."""
    if set(map(type, values)) == {int}:
        return np.array(values, np.int64)
    return np.array([value if type(value) is int else NO_INT for value in values], np.int64)
