"""Recorded tables as numpy columns that grow with the recording: a row is converted once, however often one looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moescope.collectors.schema import TABLES

if TYPE_CHECKING:
    import pyarrow as pa

NULL: Final = int(np.iinfo(np.int64).min)
"""Stands for null in integer columns; strings have the code -1, floats NaN."""

Column = NDArray[Any]


class Names:
    """Strings as small numbers, shared by all tables of a feed."""

    def __init__(self) -> None:
        self._codes: dict[str | None, int] = {None: -1}
        self._texts: list[str] = []

    def code(self, text: str | None) -> int:
        """The number of `text`; -1 for None."""
        code = self._codes.get(text)
        if code is None:
            code = self._codes[text] = len(self._texts)
            self._texts.append(str(text))
        return code

    def text(self, code: int, default: str = "") -> str:
        """The string of a number."""
        return self._texts[code] if code >= 0 else default


@dataclass(frozen=True)
class Change:
    """What a look at a table brought.

    rows: the new rows, None where there are none; pieces: [new rows], the piece each came in; gone: pieces that are no
    longer there
    """

    rows: pa.Table | None
    pieces: NDArray[np.int32]
    gone: NDArray[np.int32]

    def __bool__(self) -> bool:
        return self.rows is not None or len(self.gone) > 0


Key: TypeAlias = tuple[int, int, int, int]


class Pieces:
    """Tells new record batches of a growing table from known ones, and which have vanished.

    A batch is known by the memory of its time column; that memory is held, so its address is not given out again.
    """

    def __init__(self) -> None:
        self._last: pa.Table | None = None
        self._keys: list[Key] = []
        self._held: dict[Key, tuple[int, pa.Array]] = {}
        self._lengths: NDArray[np.int64] = np.empty(0, np.int64)
        self._next = 0

    def take(self, table: pa.Table, time_column: str, *, pruned: bool = False) -> Change:
        """What changed in `table` since the last call.

        pruned: old batches may go while new ones come; without it a table that did not shrink is taken to have grown
        only, which is told by looking at a few of its batches
        """
        none = np.empty(0, np.int32)
        if table is self._last:
            return Change(None, none, none)
        self._last = table
        column = table.column(time_column)
        fresh = None if pruned else self._grown(column)
        if fresh is None:
            fresh, gone = self._walk(column)
        else:
            gone = []
        return self._change(table, fresh, gone)

    def _change(self, table: pa.Table, fresh: list[int], gone: list[int]) -> Change:
        import pyarrow as pa

        lost = np.array(gone, np.int32)
        if not fresh:
            return Change(None, np.empty(0, np.int32), lost)
        ends = np.cumsum(self._lengths)
        at = np.array(fresh, np.int64)
        first = np.flatnonzero(np.diff(at, prepend=-2) > 1)
        last = np.append(first[1:], len(at)) - 1
        slices = [
            table.slice(ends[low] - self._lengths[low], ends[high] - ends[low] + self._lengths[low])
            for low, high in zip(at[first].tolist(), at[last].tolist(), strict=True)
        ]
        numbers = np.array([self._held[self._keys[position]][0] for position in fresh], np.int32)
        return Change(pa.concat_tables(slices), np.repeat(numbers, self._lengths[at]), lost)

    def _grown(self, column: pa.ChunkedArray) -> list[int] | None:
        """Positions of new batches where batches were only added; None where that cannot be told."""
        keys, count = self._keys, column.num_chunks
        spare = count - len(keys)
        if spare < 0 or not keys:
            return None
        old = new = 0
        fresh: list[int] = []
        merged: list[Key] = []
        chunks: list[pa.Array] = []
        while True:
            run = self._same(column, old, new, min(len(keys) - old, count - new))
            merged += keys[old : old + run]
            old, new = old + run, new + run
            if new == count:
                break
            chunk = column.chunk(new)
            if not spare or not len(chunk) or _key(chunk) in self._held:
                return None
            chunks.append(chunk)
            merged.append(_key(chunk))
            fresh.append(new)
            new, spare = new + 1, spare - 1
        lengths = np.zeros(count, np.int64)
        known = np.ones(count, np.bool_)
        known[fresh] = False
        lengths[known] = self._lengths
        lengths[fresh] = [merged[position][2] for position in fresh]
        for chunk in chunks:
            self._hold(chunk, _key(chunk))
        self._keys, self._lengths = merged, lengths
        return fresh

    def _same(self, column: pa.ChunkedArray, old: int, new: int, most: int) -> int:
        """How many batches from here on are the known ones."""

        def equal(step: int) -> bool:
            chunk = column.chunk(new + step)
            return len(chunk) > 0 and _key(chunk) == self._keys[old + step]

        if most <= 0 or not equal(0):
            return 0
        if equal(most - 1):
            return most
        low, high = 0, most - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if equal(middle) else (low, middle)
        return high

    def _walk(self, column: pa.ChunkedArray) -> tuple[list[int], list[int]]:
        """Positions, among batches with rows, of new ones, and the numbers of those that are gone."""
        before = self._held
        keys: list[Key] = []
        fresh: list[int] = []
        self._held = {}
        for chunk in column.chunks:
            if not len(chunk):
                continue
            key = _key(chunk)
            while key in self._held:
                key = (*key[:3], key[3] + 1)
            if key in before:
                self._held[key] = before[key]
            else:
                fresh.append(len(keys))
                self._hold(chunk, key)
            keys.append(key)
        self._keys, self._lengths = keys, np.array([key[2] for key in keys], np.int64)
        return fresh, [number for key, (number, _) in before.items() if key not in self._held]

    def _hold(self, chunk: pa.Array, key: Key) -> None:
        self._held[key] = (self._next, chunk)
        self._next += 1


def _key(chunk: pa.Array) -> Key:
    return (chunk.buffers()[1].address, chunk.offset, len(chunk), 0)


def to_numpy(rows: pa.Table, name: str, names: Names) -> Column:
    """One column: [rows], int64 with NULL, float64 with NaN, or int32 codes of strings with -1."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = rows.column(name)
    kind = column.type
    if pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _codes(column, names)
    if pa.types.is_null(kind):
        wanted = next(c.type for table in TABLES.values() for c in table if c.name == name)
        if wanted == "string":
            return np.full(len(column), -1, np.int32)
        return np.full(len(column), np.nan) if wanted == "float64" else np.full(len(column), NULL, np.int64)
    if pa.types.is_floating(kind):
        filled = pc.fill_null(column, float("nan")) if column.null_count else column
        return np.asarray(filled.to_numpy(), np.float64)
    filled = pc.fill_null(column.cast(pa.int64()), NULL) if column.null_count else column
    return np.asarray(filled.to_numpy(), np.int64)


def _codes(column: pa.ChunkedArray, names: Names) -> NDArray[np.int32]:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column)
    encoded = column.combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], pa.dictionary(pa.int32(), pa.string()))
    codes = np.array([names.code(text) for text in encoded.dictionary.to_pylist()] + [-1], np.int32)
    indices = pc.fill_null(encoded.indices.cast(pa.int64()), len(codes) - 1)
    coded: NDArray[np.int32] = codes[np.asarray(indices)]
    return coded


@dataclass
class Grown:
    """Columns of one length with room to grow; `data[name][:size]` are the rows."""

    data: dict[str, Column] = field(default_factory=dict)
    size: int = 0

    def __getitem__(self, name: str) -> Column:
        return self.data[name][: self.size]

    def write_from(self, at: int, rows: dict[str, Column]) -> None:
        """Replace everything from row `at` on.

        rows: every column, all of one length
        """
        size = at + len(next(iter(rows.values())))
        for name, values in rows.items():
            held = self.data.get(name)
            if held is None or size > len(held):
                grown = np.empty(max(size, 2 * at, 64), values.dtype)
                if held is not None:
                    grown[:at] = held[:at]
                self.data[name] = held = grown
            held[at:size] = values
        self.size = size

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Drop the rows that `mask` does not name; mask: [rows]."""
        self.write_from(0, {name: values[: self.size][mask].copy() for name, values in self.data.items()})


class Columns(Grown):
    """One table in the order it arrived in, brought up to date by `update`."""

    def __init__(self, table: str, time_column: str, columns: Sequence[str], names: Names) -> None:
        super().__init__()
        self.table = table
        self.version = 0
        self._time_column = time_column
        self._columns = tuple(columns)
        self._names = names
        self._pieces = Pieces()
        types = {column.name: column.type for column in TABLES[table]}
        empty: dict[str, Column] = {"piece": np.empty(0, np.int32)}
        for name in columns:
            dtype = {"string": np.int32, "float64": np.float64}.get(types[name], np.int64)
            empty[name] = np.empty(0, dtype)
        self.write_from(0, empty)

    def update(self, table: pa.Table, *, pruned: bool = False) -> int:
        """Take in what is new; the number of the first new row, -1 where nothing changed.

        pruned: as in `Pieces.take`
        """
        change = self._pieces.take(table, self._time_column, pruned=pruned)
        if not change:
            return -1
        self.version += 1
        if len(change.gone):
            self.keep(~np.isin(self["piece"], change.gone))
        first = self.size
        if change.rows is not None:
            rows = {name: to_numpy(change.rows, name, self._names) for name in self._columns}
            self.write_from(first, {**rows, "piece": change.pieces})
        return first
