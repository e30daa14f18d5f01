"""Exported CSV is read back by other readers, value by value."""

import csv
import io
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.collectors.schema import TABLES, arrow_schema
from moescope.profiler.export.csv_files import OVERLAP_COLUMNS, export_csv
from moescope.profiler.export.dictionary import dictionary
from moescope.profiler.source import open_source
from moescope.profiler.sources.traces import TraceSource
from moescope.profiler.summary.answer import summarise
from tests.live_recording import MemorySource, kernel, window

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    source = open_source([DATA / "param_dlrm_8rank_v100"])
    folder = tmp_path_factory.mktemp("csv")
    return source, folder, export_csv(source, folder)


def test_the_contract_files_exist_with_their_columns_even_where_empty(exported):
    _, folder, written = exported
    for name in ("kernels", "phases", "overlap", "units", "links", "transfers", "experts"):
        assert folder / f"{name}.csv" in written
    for table, file in (("phases", "phases"), ("unit_intervals", "units"), ("link_samples", "links")):
        assert pd.read_csv(folder / f"{file}.csv").columns.tolist() == [column.name for column in TABLES[table]]
    kernels = pd.read_csv(folder / "kernels.csv").columns.tolist()
    assert kernels == [*(column.name for column in TABLES["kernels"]), "operator", "rule"]
    assert pd.read_csv(folder / "overlap.csv").columns.tolist() == list(OVERLAP_COLUMNS)


def test_kernels_come_back_exactly_with_the_classifier_s_kind(exported):
    source, folder, _ = exported
    rows = read(folder / "kernels.csv")
    table = source.table("kernels").to_pylist()
    assert [row["name"] for row in rows] == [row["name"] for row in table]
    assert [int(row["start_ns"]) for row in rows] == [row["start_ns"] for row in table]
    assert {row["kind"] for row in rows} == {"comm", "compute", "memory"}


def test_bins_of_overlap_sum_up_to_the_summary(exported):
    source, folder, _ = exported
    bins = pd.read_csv(folder / "overlap.csv").groupby("rank").sum(numeric_only=True)
    for rank in summarise(source)["ranks"]:
        row = bins.loc[rank["rank"]]
        assert row["comm_us"] == pytest.approx(rank["comm_us"])
        assert row["overlapped_us"] == pytest.approx(rank["overlapped_us"])
        assert row["exposed_us"] == pytest.approx(rank["exposed_comm_us"])
        assert row["idle_us"] == pytest.approx(rank["idle_us"])
        assert row["bin_us"] == pytest.approx(rank["span_us"])


def test_bins_in_which_nothing_was_recorded_are_empty_not_zero(tmp_path):
    source = MemorySource().add("windows", [window(0, 100_000), window(900_000, 100_000)])
    export_csv(source.add("kernels", [kernel(0, 50_000), kernel(900_000, 50_000, "comm")]), tmp_path)
    bins = pd.read_csv(tmp_path / "overlap.csv").set_index("t_us")
    assert bins.loc[50, "compute_us":].tolist() == [0] * 4 + [1]
    assert bins.loc[500, "compute_us":].isna().all()
    assert bins["bin_us"].sum() == 1000
    assert duckdb.sql(f"select sum(idle_us) from '{tmp_path / 'overlap.csv'}'").fetchall() == [(100,)]


def test_a_window_keeps_the_rows_that_touch_it(tmp_path):
    source = open_source([DATA / "param_dlrm_8rank_v100"])
    rows = source.table("kernels").to_pylist()
    low = rows[0]["start_ns"] + 2_000_000
    window = (low, low + 1_000_000)
    export_csv(source, tmp_path, window)
    expected = [row for row in rows if row["start_ns"] < window[1] and row["start_ns"] + row["dur_ns"] > window[0]]
    assert len(read(tmp_path / "kernels.csv")) == len(expected) > 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4))
def test_any_name_survives_and_every_row_stays_one_line(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    rows = [{"rank": 0, "device": "cpu", "name": name, "start_ns": 1, "dur_ns": 1} for name in names]
    tables = {"kernels": pa.Table.from_pylist(rows, schema=arrow_schema("kernels"))}
    export_csv(TraceSource("x", {"ranks": []}, tables), folder)
    text = (folder / "kernels.csv").read_bytes().decode()
    assert text.count("\n") == len(names) + 1
    back = [row["name"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    escaped = ["".join(f"\\x{ord(c):02x}" if ord(c) < 32 or ord(c) == 127 else c for c in name) for name in names]
    assert back == escaped


def test_the_data_dictionary_is_current():
    assert (ROOT / "docs" / "data-dictionary.md").read_text(encoding="utf-8") == dictionary()


def test_a_file_of_an_earlier_export_does_not_pass_for_this_run_s_and_nobody_else_s_is_touched(tmp_path):
    kernels = [kernel(0, 50)]
    earlier = MemorySource().add("kernels", kernels).add("windows", [window(0, 100)])
    earlier.add("work", [{"rank": 0, "t_ns": 5, "name": "mm", "flops": 1}])
    assert {tmp_path / "windows.csv", tmp_path / "work.csv"} <= set(export_csv(earlier, tmp_path))
    (tmp_path / "steps.csv").write_text("mine,not yours\n1,2\n")
    written = export_csv(MemorySource().add("kernels", kernels), tmp_path)
    assert set(tmp_path.iterdir()) == {*written, tmp_path / "steps.csv"}
    assert (tmp_path / "steps.csv").read_text() == "mine,not yours\n1,2\n"
