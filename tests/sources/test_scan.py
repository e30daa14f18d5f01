"""The scan by blocks gives what reading in one piece gives, and that is what Python's json reads."""

import gzip
import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.errors import MoescopeError
from moescope.profiler.sources.kineto_scan import Uncertain, scan
from moescope.profiler.sources.kineto_whole import read_whole

TRICKY = st.sampled_from(
    [
        "kernel", "cpu_op", "ph", "},{", '"}, {"', "\\", '\\"', "]", "[{",
        '], "traceEvents": [', "é✓\U0001f600", "\x01\n\t",
        "void f<g{h}>(int*)", '{"cat": "kernel"}', "\ud7ff", "", "a" * 40,
    ]
)  # fmt: skip
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(-1e12, 1e12, allow_nan=False), st.integers(0, 9))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TRICKY),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TRICKY, inner, max_size=3)),
    max_leaves=6,
)
EVENTS = st.fixed_dictionaries(
    {"ph": st.sampled_from("XMif")},
    optional={
        "cat": st.sampled_from(["kernel", "cpu_op", "cuda_runtime", "user_annotation", "python_function"]),
        "name": TRICKY,
        "pid": st.one_of(st.integers(0, 9), TRICKY),
        "tid": st.one_of(st.integers(0, 9), TRICKY),
        "ts": st.one_of(NUMBERS, st.none(), TRICKY),
        "dur": NUMBERS,
        "args": VALUES,
        "more": VALUES,
    },
).flatmap(lambda event: st.permutations(list(event.items())).map(dict))
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (",\n  ", ": "), (" ,", " :"), ("\r\n,\t", ":\n")])

PIECES = st.sampled_from([b"", b"{", b"}", b'"', b",", b"]", b"\\", b"NaN", b"\xff", b"-inf", b"\x00"])


@st.composite
def traces(draw):
    """A trace's text, its events, and what stands around them."""
    events = draw(st.lists(EVENTS, max_size=7))
    around = {key: draw(VALUES) for key in draw(st.lists(TRICKY, max_size=2))}
    around |= draw(st.sampled_from([{}, {"baseTimeNanoseconds": 17}, {"distributedInfo": {"rank": 3}}]))
    keys = draw(st.permutations([*around, "traceEvents"]))
    whole = around | {"traceEvents": events}
    text = json.dumps(
        events if not around and draw(st.booleans()) else {key: whole[key] for key in keys},
        separators=draw(SEPARATORS),
        indent=draw(st.sampled_from([None, None, 1])),
        ensure_ascii=draw(st.booleans()),
    )
    return text.encode(), events, around


def plain(events):
    return [
        (
            one.ph,
            one.cat,
            one.name,
            one.pid,
            one.tid,
            *(bytes(raw).decode("utf-8", "replace") for raw in (one.ts, one.dur, one.args)),
        )
        for one in events
    ]


def outcome(read, file, *more):
    """What a reader makes of a file: events and envelope, or the error's class."""
    events = []
    try:
        found = read(file, events.extend, *more)
    except MoescopeError as problem:
        return type(problem), str(file) in str(problem)
    return plain(events), found.mended, repr(found.envelope)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("scanned") / "trace.json"


@settings(max_examples=120, deadline=None)
@given(traces(), st.integers(1, 300))
def test_every_layout_is_read_alike_by_blocks_at_once_and_by_json(file, trace, block):
    text, events, _ = trace
    file.write_bytes(text)
    whole = outcome(read_whole, file)
    try:
        assert outcome(scan, file, block) == whole
    except Uncertain:
        # Only what stands around the events may be read in two ways.
        assert b"traceEvents" in text.replace(b'"traceEvents"', b"", 1)
    found, mended, _ = whole
    assert not mended
    assert len(found) == len(events)
    for (ph, cat, name, pid, tid, ts, dur, args), event in zip(found, events, strict=True):
        assert (ph, cat, pid, tid) == tuple(event.get(key) for key in ("ph", "cat", "pid", "tid"))
        assert name == event.get("name", "")
        for text_of, key in ((ts, "ts"), (dur, "dur")):
            if isinstance(event.get(key), float):
                assert Decimal(text_of) == Decimal(json.dumps(event[key]))
            elif key in event:
                assert json.loads(text_of) == event[key]
        assert json.loads(args) == event.get("args", {})


@settings(max_examples=150, deadline=None)
@given(
    traces(),
    st.lists(st.tuples(st.floats(0, 1), PIECES), max_size=3),
    st.integers(1, 200),
    st.floats(0, 1.5),
)  # fmt: skip
def test_every_damage_is_read_alike_by_blocks_and_at_once(file, trace, edits, block, cut):
    text, _, _ = trace
    for where, piece in edits:
        at = int(where * len(text))
        text = text[:at] + piece + text[at + 1 :]
    file.write_bytes(text[: int(cut * len(text))])
    whole = outcome(read_whole, file)
    try:
        assert outcome(scan, file, block) == whole
    except Uncertain:
        pass


def test_large_blocks_are_cut_at_events_and_gzip_reads_the_same(tmp_path):
    events = [
        {"ph": "X", "cat": "cpu_op", "name": f"op {at} }},{{", "ts": at, "args": {"n": [{}, {}]}} for at in range(3000)
    ]
    plain_file, packed = tmp_path / "a.json", tmp_path / "b.json.gz"
    plain_file.write_text(json.dumps({"schemaVersion": 1, "traceEvents": events, "traceName": "x"}, indent=1))
    packed.write_bytes(
        gzip.compress(plain_file.read_bytes()[:70_000], mtime=0) + gzip.compress(plain_file.read_bytes()[70_000:])
    )
    sizes = []
    scan(plain_file, lambda some: sizes.append(len(some)), 32 << 10)
    assert sum(sizes) == 3000
    assert len(sizes) > 8
    assert outcome(scan, plain_file) == outcome(scan, packed, 1000) == outcome(read_whole, plain_file)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b'"x": inf', None),
        (b'"x": -nan(ind)', None),
        (b'"x": NaN', None),
        (b'"x": N/A', None),
        (b'"x": ["1,]", 2 ,\n, ],', ["1,]", 2]),
        (rb'"x": "C:\path\nan"', "C:\\path\nan"),
        (b'"x": "two\nlines: inf, nan"', "two\nlines: inf, nan"),
        (b'"x": "\xe9"', "�"),
        (rb'"x": "\ud800"', "�"),
    ],
)
def test_what_profilers_wrote_that_json_does_not_know_is_mended(tmp_path, written, read):
    file = tmp_path / "odd.json"
    ordinary = b'{"ph": "X", "cat": "kernel", "name": "k", "ts": 10.25, "dur": 1e-3, "args": {"y": "inf, NaN"}}'
    odd = b'{"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "dur": 1, "args": {' + written + b"}}"
    file.write_bytes(b'{"traceEvents": [' + b",".join([ordinary] * 9 + [odd] + [ordinary] * 9) + b"]}")
    found, mended, _ = outcome(read_whole, file)
    assert json.loads(found[9][-1]) == {"x": read}
    assert json.loads(found[8][-1]) == {"y": "inf, NaN"}
    if b"\xe9" not in written:
        assert mended
    for block in (*range(30, 150, 7), 700, 1 << 20):
        try:
            assert outcome(scan, file, block) == (
                found,
                mended,
                "Envelope(distributed=None, devices=None, legacy_devices=None, base_ns=0)",
            )
        except Uncertain:
            assert read == "�"
