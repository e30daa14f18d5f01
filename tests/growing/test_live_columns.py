"""New batches of a growing table are found wherever they come in, and vanished ones too."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.collectors.schema import arrow_schema
from moescope.profiler.growing.columns import NULL, Columns, Names, Pieces

SCHEMA = arrow_schema("windows")


def _batch(first: int, rows: int) -> pa.RecordBatch:
    columns = {
        "rank": [0] * rows,
        "source": ["itt"] * rows,
        "start_ns": list(range(first, first + rows)),
        "dur_ns": [None] * rows,
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


steps = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=4), st.lists(st.integers(0, 30), max_size=2)
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(steps, st.booleans())
def test_rows_are_taken_once_however_segments_grow_and_vanish(
    changes: list[tuple[list[tuple[int, int]], list[int]]], pruned: bool
) -> None:
    segments: list[list[pa.RecordBatch]] = [[], [], [], []]
    columns = Columns("windows", "start_ns", ("rank", "source", "start_ns", "dur_ns"), Names())
    count = 0
    for added, removed in changes:
        for segment, rows in added:
            segments[segment].append(_batch(count, rows))
            count += rows
        for position in removed if pruned else ():
            batches = [(segment, at) for segment in range(4) for at in range(len(segments[segment]))]
            if position < len(batches):
                segment, at = batches[position]
                del segments[segment][at]
        table = pa.Table.from_batches([batch for segment in segments for batch in segment], schema=SCHEMA)
        columns.update(table, pruned=pruned)
        assert sorted(columns["start_ns"].tolist()) == sorted(table.column("start_ns").to_pylist())
    assert all(value == NULL for value in columns["dur_ns"].tolist())


def test_the_same_table_again_brings_nothing() -> None:
    table = pa.Table.from_batches([_batch(0, 3)], schema=SCHEMA)
    pieces = Pieces()
    assert pieces.take(table, "start_ns").pieces.tolist() == [0, 0, 0]
    assert not pieces.take(table, "start_ns")
    assert not pieces.take(pa.Table.from_batches(table.to_batches(), schema=SCHEMA), "start_ns")


def test_strings_have_one_code_in_all_tables_and_null_none() -> None:
    names = Names()
    assert names.code("a") == names.code("a") != names.code("b")
    assert names.code(None) == -1
    assert names.text(names.code("b")) == "b"
    assert names.text(-1, "–") == "–"
