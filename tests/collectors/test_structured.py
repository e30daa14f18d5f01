"""Rows of structured arrays that are moved as bytes are the rows that numpy's own way gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.collectors.ring_reader import BLOB, RECORD, Records, blob_heads
from moescope.collectors.structured import joined, pick, values


def records(count: int) -> Records:
    """Every byte of them at random."""
    noise = np.random.default_rng(count).integers(0, 256, count * RECORD.itemsize, np.uint8)
    return noise.view(RECORD)


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_picked_rows_are_what_indexing_gives(count: int) -> None:
    rows = records(count)
    mask = np.arange(count) % 3 == 1
    places = np.flatnonzero(mask)[::-1].copy()
    assert pick(rows, mask).tobytes() == rows[mask].tobytes()
    assert pick(rows, places).tobytes() == rows[places].tobytes()
    assert pick(rows, mask).dtype == RECORD


def test_what_is_picked_is_a_copy() -> None:
    rows = records(3)
    pick(rows, np.ones(3, np.bool_))["a"] = 0
    assert rows["a"].all()


def test_parts_are_joined_in_their_order() -> None:
    parts = [records(3), records(0), records(5)]
    assert joined(parts).tobytes() == np.concatenate(parts).tobytes()
    assert joined(parts).dtype == RECORD


@given(st.lists(st.integers(-3, 3)))
def test_values_are_those_there_are(numbers: list[int]) -> None:
    assert values(np.array(numbers, np.int64)) == sorted(set(numbers))


def one_by_one(rows: Records) -> tuple[list[int], list[bool]]:
    """Where blobs begin and which slots are records, by walking."""
    heads, is_record, at = [], [], 0
    while at < len(rows):
        is_record.append(True)
        at += 1
        if rows["type"][at - 1] == BLOB:
            heads.append(at - 1)
            slots = -(-int(rows["dur_ns"][at - 1]) // RECORD.itemsize)
            is_record += [False] * slots
            at += slots
    return heads, is_record


words = st.lists(st.sampled_from([0, 4, 4 | 1 << 32, 2**40, -1, -(2**63)]), max_size=30)
payload = st.binary(max_size=200) | words.map(lambda numbers: np.array(numbers, np.int64).tobytes())


@given(st.lists(st.none() | payload, max_size=12))
def test_blobs_are_found_whatever_their_payloads_look_like(entries: list[bytes | None]) -> None:
    """None: another record. Payloads may read as blobs' beginnings, with names and sizes of their own."""
    parts = []
    for entry in entries:
        slots = 0 if entry is None else -(-len(entry) // RECORD.itemsize)
        part = np.zeros(1 + slots, RECORD)
        part["type"][0], part["name"][0] = (1, 1) if entry is None else (BLOB, 2)
        if entry is not None:
            part["dur_ns"][0] = len(entry)
            part[1:].view(np.uint8)[: len(entry)] = np.frombuffer(entry, np.uint8)
        parts.append(part)
    rows = joined([np.zeros(0, RECORD), *parts])
    heads, is_record = blob_heads(rows)
    assert (heads.tolist(), is_record.tolist()) == one_by_one(rows)
