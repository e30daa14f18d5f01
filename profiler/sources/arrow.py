"""Columns as Arrow tables of the recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moescope.collectors.schema import arrow_schema
from moescope.profiler.sources.columns import NO_INT, NO_TEXT, Codes, Ints

if TYPE_CHECKING:
    import pyarrow as pa


def table_of(table: str, rows: int, /, **columns: Any) -> pa.Table:
    """A table of the recording; a column that is not given is null."""
    import pyarrow as pa

    schema = arrow_schema(table)
    arrays = []
    for one in schema:
        values = columns.get(one.name)
        if values is None:
            values = pa.nulls(rows, one.type)
        elif isinstance(values, np.ndarray):
            values = pa.array(values.astype(one.type.to_pandas_dtype(), copy=False))
        arrays.append(values.cast(one.type) if values.type != one.type else values)
    return pa.Table.from_arrays(arrays, schema=schema)


def strings(codes: Codes, texts: list[str]) -> pa.Array:
    """[codes] the texts, null for NO_TEXT."""
    import pyarrow as pa

    used, numbered = np.unique(codes, return_inverse=True)
    known = [texts[code] for code in used.tolist() if code != NO_TEXT]
    skipped = int(len(used) > 0 and used[0] == NO_TEXT)
    indices = pa.array(numbered.reshape(-1).astype(np.int32) - skipped, mask=codes == NO_TEXT)
    return pa.DictionaryArray.from_arrays(indices, pa.array(known, pa.string())).cast(pa.string())


def nullable(values: Ints) -> pa.Array:
    """[values] null for NO_INT."""
    import pyarrow as pa

    return pa.array(values, mask=values == NO_INT)
