"""Times come out of a trace's text to the nanosecond, whichever way they are written."""

from decimal import ROUND_HALF_EVEN, Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.sources.columns import FARTHEST_NS, NO_INT
from moescope.profiler.sources.decimals import all_to_ns, to_ns

NUMBERS = st.one_of(
    st.integers(-(10**18), 10**18).map(str),
    st.tuples(st.integers(0, 2 * 10**15), st.integers(0, 999)).map(lambda one: f"{one[0]}.{one[1]:03d}"),
    st.decimals(-(10**12), 10**12, places=6).map(str),
    st.floats(-1e15, 1e15, allow_nan=False).map(repr),
    st.sampled_from(
        ["0", "-0.0", "1e3", "5E-1", "1e300", "9" * 25, "9" * 39, "4458676522690.655", "2305843009213693.9515"]
    ),
)


def plainly(text):
    ns = int((Decimal(text) * 1000).quantize(Decimal(1), ROUND_HALF_EVEN)) if Decimal(text).adjusted() < 24 else None
    return ns if ns is not None and abs(ns) <= FARTHEST_NS else NO_INT


@settings(max_examples=150, deadline=None)
@given(st.lists(NUMBERS, max_size=6))
def test_decimal_microseconds_are_exact_nanoseconds(numbers):
    raws = msgspec.json.decode(f"[{','.join(numbers)}]".encode(), type=list[msgspec.Raw])
    assert all_to_ns(raws).tolist() == [plainly(number) for number in numbers]


@given(st.integers(0, 2 * 10**15), st.integers(0, 999))
def test_three_decimals_stay_as_they_are(whole, rest):
    assert to_ns(f"{whole}.{rest:03d}".encode()) == whole * 1000 + rest


@pytest.mark.parametrize("text", ["", "null", '"soon"', "true", "[1]", "NaN", "1e999", "{}"])
def test_what_is_no_time_is_told_from_zero(text):
    assert all_to_ns([msgspec.Raw(text.encode()), msgspec.Raw(b"0")]).tolist() == [NO_INT, 0]


def test_a_time_in_quotes_is_a_time():
    assert to_ns(b'"12.5"') == 12_500
