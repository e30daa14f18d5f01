"""Bytes of a trace's collectives against an exchange that is carried out element by element, and cut lists of ranks."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.profiler.source import open_source
from moescope.profiler.sources.messages import Message, carried, ranks_text, splits_of
from moescope.profiler.summary.answer import summarise
from moescope.profiler.summary.driver import divide, summarise_over

RANKS = (4, 5, 7)


def exchanged(rows):
    """What each rank sends to and gets from each other one. rows: [from][to] number of elements, bf16"""
    sent = {src: {dst: 2 * rows[i][j] for j, dst in enumerate(RANKS) if j != i} for i, src in enumerate(RANKS)}
    got = {dst: sum(sent[src].get(dst, 0) for src in RANKS) for dst in RANKS}
    return sent, got


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=3, max_size=3), st.integers(1, 3))
def test_an_all_to_all_carries_what_its_splits_say(rows, width):
    sent, got = exchanged([[width * part for part in line] for line in rows])
    for at, me in enumerate(RANKS):
        out = tuple(line[at] for line in rows)
        message = Message(width * sum(rows[at]), width * sum(out), 3, None, tuple(rows[at]), out)
        found = carried("all_to_allv", message, 2.0, RANKS, me)
        assert dict(found.to) == {dst: size for dst, size in sent[me].items() if size}
        assert (found.sent, found.received) == (sum(sent[me].values()), got[me])


@pytest.mark.parametrize(
    ("op", "message", "expected"),
    [
        ("allgather_base", Message(10, 30, 3), (40, 40)),
        ("_reduce_scatter_base", Message(30, 10, 3), (40, 40)),
        ("all_to_all", Message(30, 30, 3, None, (), ()), (40, 40)),
        ("all_to_all", Message(30, 30, 3, None, (15, 15, 0), ()), (30, 40)),
        ("all_to_all", Message(31, 31, 3, None, (), ()), (None, None)),
        ("all_to_all", Message(30, 30, 3, None, None, None), (None, None)),
        ("send", Message(30, 30, 3, 5), (60, 0)),
        ("recv", Message(30, 30, 3, 5), (0, 60)),
        ("allreduce", Message(30, 30, 3), (None, None)),
        ("broadcast", Message(30, 30, 3), (None, None)),
        ("send", Message(), (None, None)),
    ],
)
def test_bytes_are_told_only_where_the_operation_settles_them(op, message, expected):
    found = carried(op, message, 2.0, RANKS, 5)
    assert (found.sent, found.received) == expected
    assert carried(op, message, None, RANKS, 5).sent is None


def test_who_the_rank_is_matters_only_where_parts_differ():
    uneven = Message(30, 30, 3, None, (20, 10, 0), ())
    assert carried("all_to_all", uneven, 2.0, RANKS, None).sent is None
    assert carried("all_to_all", Message(30, 30, 3, None, (), ()), 2.0, RANKS, None).sent == 40


@pytest.mark.parametrize(
    ("told", "size", "groups", "expected"),
    [
        ("0,1", 2, {}, "0,1"),
        ("0,1,2,...,63", 64, {}, ",".join(map(str, range(64)))),
        ("0,8,16,...,248", 32, {}, ",".join(map(str, range(0, 256, 8)))),
        ("0,1,2,...,63", 63, {}, "0,1,2,...,63"),
        ("0,1,2,...,63", None, {}, "0,1,2,...,63"),
        ("0,1,8,...,63", 40, {}, "0,1,8,...,63"),
        ("0,1,8,...,63", 5, {"g": "0,1,8,40,63"}, "0,1,8,40,63"),
        ("0,1,8,...,63", 4, {"g": "0,1,8,40,63"}, "0,1,8,...,63"),
    ],
)
def test_cut_ranks_are_written_out_only_where_they_are_settled(told, size, groups, expected):
    assert ranks_text(told, size, "g", groups) == expected


def test_splits_that_were_cut_short_are_not_told():
    assert splits_of("[1, 2]") == (1, 2)
    assert splits_of("[]") == ()
    assert splits_of("[1, 2, ..., 9]") is splits_of("1") is splits_of([1]) is splits_of("[-1]") is None


def call(op, start, dur, into, out, **more):
    args = {"device": 0, "stream": 20, "Collective name": op, "In msg nelems": into, "Out msg nelems": out}
    args |= {"Group size": 2, "dtype": "BFloat16", "Process Group Name": "ep", "Process Group Ranks": "[0, 1]"}
    name = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"
    return {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 20, "ts": start, "dur": dur, "args": args | more}


def traces(folder, told=(0, 1), names=("rank0.json", "rank1.json")):
    """Two ranks that exchange 3 and 5 elements and keep 1 and 2, then rank 0 sends 8 to rank 1, three times over."""
    for rank, (here, there) in enumerate((((1, 3), (1, 5)), ((5, 2), (3, 2)))):
        events = []
        for turn in range(3):
            at = 1000 * turn
            way = {"Dst Rank": 1} if rank == 0 else {"Src Rank": 0}
            splits = {"In split size": str(list(here)), "Out split size": str(list(there))}
            events += [
                call("all_to_allv", at + 10 * rank, 50 - 10 * rank, sum(here), sum(there), **splits),
                call("send" if rank == 0 else "recv", at + 100 + 30 * rank, 90 - 30 * rank, 8, 8, **way),
            ]
        text = {"traceEvents": events, "distributedInfo": {"rank": told[rank], "world_size": 2}}
        (folder / names[rank]).write_text(json.dumps(text))
    return folder


def test_a_trace_tells_who_sends_how_much_to_whom(tmp_path):
    source = open_source([traces(tmp_path)])
    rows = source.table("transfers").to_pylist()
    pairs = {(row["src"], row["dst"], row["op"]): row["bytes"] for row in rows}
    assert pairs == {(0, 1, "all_to_all"): 6, (1, 0, "all_to_all"): 10, (0, 1, "send"): 16}
    assert len(rows) == 9
    calls = {(row["rank"], row["op"]): row for row in source.table("collectives").to_pylist()}
    assert [(row["sent_bytes"], row["received_bytes"], row["peer"]) for _, row in sorted(calls.items())] == [
        (6, 10, None), (16, 0, 1), (10, 6, None), (0, 16, 0),
    ]  # fmt: skip
    for found in (summarise(source), summarise_over(divide([tmp_path]))):
        traffic = found["collectives"]["traffic"]
        assert [(row["src"], row["dst"], row["transfers"], row["bytes"]) for row in traffic] == [
            (0, 1, 6, 66), (1, 0, 3, 30),
        ]  # fmt: skip


def test_a_trace_whose_file_is_named_for_another_rank_tells_nobody_s_bytes(tmp_path):
    source = open_source([traces(tmp_path, told=(0, 0))])
    assert source.ranks() == [0, 1]
    assert {row["src"] for row in source.table("transfers").to_pylist()} == {0}
    told = {(row["rank"], row["op"]): row["sent_bytes"] for row in source.table("collectives").to_pylist()}
    assert told == {(0, "all_to_allv"): 6, (0, "send"): 16, (1, "all_to_allv"): None, (1, "recv"): 0}
    assert summarise_over(divide([tmp_path]))["collectives"]["traffic_bytes"] == 66


def test_a_send_is_matched_to_the_receive_that_it_meets(tmp_path):
    found = summarise(open_source([traces(tmp_path)]))["collectives"]
    (pair,) = [one for one in found["ops"] if one["op"] == "send_recv"]
    assert (pair["calls"], pair["collectives"], found["peer_to_peer_calls"]) == (6, 3, 0)
    # The sender stands for 30 µs until its receiver comes, three times; then both move 16 bytes in 60 µs.
    assert (pair["wait_us"], pair["transfer_us"]) == (90, 180)
    assert pair["bus_bytes_per_s"] == pytest.approx(16 / 60e-6)


def test_a_send_whose_receiver_is_not_in_the_source_is_told_as_unmatched(tmp_path):
    traces(tmp_path)
    text = json.loads((tmp_path / "rank1.json").read_text())
    text["traceEvents"] = [one for one in text["traceEvents"] if one["args"]["Collective name"] != "recv"]
    (tmp_path / "rank1.json").write_text(json.dumps(text))
    (left,) = summarise(open_source([tmp_path]))["collectives"]["unmatched"]
    assert (left["ranks"], left["calls"]) == ("0,1", 3)
    assert "other side" in left["reason"]
