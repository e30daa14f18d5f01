"""Samplers over a root folder made for the test: what the files say is in the rows, what they do not say is null."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.collectors.clock import Clock
from moescope.collectors.samplers import SamplerUnavailable, units
from moescope.collectors.samplers.base import Row
from moescope.collectors.samplers.device import CpuSampler, clock_hz
from moescope.collectors.samplers.files import Files
from moescope.collectors.samplers.hardware import cpu_model, describe, usable_cores
from moescope.collectors.samplers.links import LinkSampler
from moescope.collectors.samplers.perf_event import SWITCH, SwitchBuffer
from moescope.collectors.samplers.units import MERGE_GAP_NS, SchedstatSampler, SwitchIntervals, UnitSampler

CLOCK = Clock(1_000_000_000_000, 0)
PID = 4711


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def links(rows: list[Row]) -> dict[str, tuple[int, int, int | None]]:
    assert {table for table, _, _ in rows} <= {"link_samples"}
    return {row["link"]: (row["tx_bytes"], row["rx_bytes"], row["peak_bytes_per_s"]) for _, _, row in rows}


def test_links_count_bytes_and_tell_rates_where_the_device_does(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "sys/class/net/lo/statistics/tx_bytes": "700\n",
            "sys/class/net/lo/statistics/rx_bytes": "700\n",
            "sys/class/net/eth0/statistics/tx_bytes": "10\n",
            "sys/class/net/eth0/statistics/rx_bytes": "20\n",
            "sys/class/net/eth0/speed": "25000\n",
            "sys/class/net/veth1/statistics/tx_bytes": "1\n",
            "sys/class/net/veth1/statistics/rx_bytes": "2\n",
            "sys/class/net/veth1/speed": "-1\n",
            "sys/class/net/bonding_masters": "",
            "sys/class/net/odd/statistics/tx_bytes": "nonsense\n",
            "sys/class/infiniband/mlx5_0/ports/1/counters/port_xmit_data": "100\n",
            "sys/class/infiniband/mlx5_0/ports/1/counters/port_rcv_data": "50\n",
            "sys/class/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)\n",
        },
    )
    sampler = LinkSampler(CLOCK, "here", tmp_path)
    sampler.open()
    assert links(sampler.poll()) == {
        "lo": (700, 700, None),
        "eth0": (10, 20, 3_125_000_000),
        "veth1": (1, 2, None),
        "mlx5_0/1": (400, 200, 50_000_000_000),
    }
    put(tmp_path, {"sys/class/net/eth0/statistics/tx_bytes": "1000\n"})
    assert links(sampler.close())["eth0"] == (1000, 20, 3_125_000_000)


def test_links_without_sysfs_are_unavailable_and_say_so(tmp_path: Path) -> None:
    with pytest.raises(SamplerUnavailable, match="/sys/class/net"):
        LinkSampler(CLOCK, "here", tmp_path).open()


HOST = {
    "proc/stat": "cpu  100 0 100 600 200 0 0 0 0 0\ncpu0 1 1 1 1\n",
    "proc/meminfo": "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n",
    f"proc/{PID}/statm": "5000 30 10 1 0 100 0\n",
    f"proc/{PID}/stat": f"{PID} (py thon) ) S 1 1 1 0 -1 0 0 0 0 0 700 300 0 0 20 0 8 0 100\n",
}


def test_cores_are_busy_by_what_was_not_idle_since_the_last_sample(tmp_path: Path) -> None:
    root = put(tmp_path, HOST | {"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2500000\n"})
    sampler = CpuSampler(CLOCK, "here", {PID: 3}.get, lambda: [PID, 99], root)
    sampler.open()
    (_, rank, host), (_, process_rank, process) = sampler.poll()
    assert (rank, host["device"], host["sm_active"]) == (None, "cpu", None)
    assert (host["memory_bytes"], host["memory_total_bytes"]) == (600 * 1024, 1000 * 1024)
    assert host["clock_hz"] == 2_500_000_000
    assert (process_rank, process["device"], process["sm_active"]) == (3, f"cpu/{PID}", None)
    assert process["memory_bytes"] == 30 * os.sysconf("SC_PAGE_SIZE")
    put(root, {"proc/stat": "cpu  150 0 125 675 250 0 0 0 0 0\n"})
    second = sampler.poll()
    assert second[0][2]["sm_active"] == pytest.approx(75 / 200)
    assert second[1][2]["sm_active"] == 0.0


def test_a_clock_that_nobody_tells_is_unknown(tmp_path: Path) -> None:
    assert clock_hz(tmp_path) is None
    assert clock_hz(put(tmp_path, {"proc/cpuinfo": "cpu MHz\t\t: 2000.5\ncpu MHz\t\t: 1000.5\n"})) == 1_500_500_000


def test_a_host_without_proc_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(SamplerUnavailable, match="/proc"):
        CpuSampler(CLOCK, "here", lambda _: None, list, tmp_path).open()


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", None), ("150000 100000", 1), ("50000 100000", 1), ("", None)]
)
def test_usable_cores_are_bounded_by_the_groups_quota(tmp_path: Path, quota: str, expected: int | None) -> None:
    put(tmp_path, {"sys/fs/cgroup/cpu.max": quota})
    assert usable_cores(tmp_path) == (expected or len(os.sched_getaffinity(0)))


def test_hardware_tells_what_it_knows_and_why_not_the_rest(tmp_path: Path) -> None:
    root = put(tmp_path, HOST | {"proc/cpuinfo": "processor: 0\nmodel name\t: Test CPU @ 2GHz\n"})
    facts = describe(root)
    assert (facts["cpu"], facts["memory_bytes"]) == ("Test CPU @ 2GHz", 1000 * 1024)
    assert (facts["gpus"] is None) == ("gpus_reason" in facts)
    assert (not facts["peaks"]) == ("peaks_reason" in facts)
    assert cpu_model(put(tmp_path / "other", {"proc/cpuinfo": "processor: 0\n"})) == "unknown"


def schedstat(on_core_ns: int, core: int) -> dict[str, str]:
    fields = ["S", *["0"] * 35, str(core), "0"]
    return {
        f"proc/{PID}/task/{PID}/schedstat": f"{on_core_ns} 5 7\n",
        f"proc/{PID}/task/{PID}/stat": f"{PID} (a) b) {' '.join(fields)}\n",
    }


def test_schedstat_gives_the_time_on_a_core_between_polls_as_derived(tmp_path: Path) -> None:
    root = put(tmp_path, {f"proc/{os.getpid()}/schedstat": "1 1 1\n"} | schedstat(1_000, 5))
    sampler = SchedstatSampler(CLOCK, {PID: 2}.get, lambda *_: "comm", lambda: [PID, 99], root)
    sampler.open()
    assert sampler.poll() == []
    put(root, schedstat(1_400, 7))
    ((table, rank, row),) = sampler.poll()
    assert (table, rank, row["unit"], row["role"], row["evidence"]) == ("unit_intervals", 2, 7, "comm", "derived")
    assert row["end_ns"] - row["start_ns"] == 400
    assert sampler.poll() == [], "a thread that did not run holds no core"
    put(root, schedstat(10**15, 7))
    before = time.monotonic_ns()
    ((_, _, row),) = sampler.close()
    assert row["end_ns"] - row["start_ns"] <= time.monotonic_ns() - before + 10**10, "longer than the time that passed"


def test_schedstat_that_the_kernel_does_not_keep_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(SamplerUnavailable, match="schedstat"):
        SchedstatSampler(CLOCK, lambda _: None, lambda *_: "other", list, tmp_path).open()


turns = st.lists(st.tuples(st.integers(1, 60_000), st.integers(0, 60_000), st.integers(0, 2)), min_size=1, max_size=60)


@given(turns)
def test_switch_intervals_cover_what_ran_and_merge_short_gaps_only(found: list[tuple[int, int, int]]) -> None:
    # One thread after the other on each of three cores: (time on it, gap before it, core).
    clock = [0, 0, 0]
    switches: list[tuple[int, bool, int, int]] = []
    expected: list[list[int]] = []
    last: dict[int, list[int]] = {}
    for on, gap, core in found:
        start = clock[core] + gap
        clock[core] = start + on
        tid = 100 + core
        switches += [(start, False, tid, core), (start + on, True, tid, core)]
        if core in last and start - last[core][1] < MERGE_GAP_NS:
            last[core][1] = start + on
        else:
            last[core] = [start, start + on, core]
            expected.append(last[core])
    switches.sort()
    half = switches[len(switches) // 2][0]
    intervals = SwitchIntervals()
    done = []
    for until, some in ((half, [s for s in switches if s[0] <= half]), (1 << 62, [s for s in switches if s[0] > half])):
        # In any order: cores are read one after another.
        records = np.array([(PID, tid, core, t, leaves) for t, leaves, tid, core in reversed(some)], SWITCH)
        done += [(int(i["start_ns"]), int(i["end_ns"]), int(i["core"])) for i in intervals.take(records, until)]
    joined: list[list[int]] = []
    for start, end, core in sorted(done, key=lambda i: (i[2], i[0])):
        # What the half-way point has cut in two, or kept apart, is one again; nothing else is that near.
        if joined and joined[-1][2] == core and joined[-1][1] <= half <= start and start - joined[-1][1] < MERGE_GAP_NS:
            joined[-1][1] = end
        else:
            joined.append([start, end, core])
    assert sorted(joined) == sorted(expected)


def test_a_thread_that_ends_on_its_core_holds_it_no_longer() -> None:
    ended: set[int] = set()
    intervals = SwitchIntervals(lambda pid, tid: tid not in ended)
    ms = 1_000_000

    def take(until: int, *records: tuple[int, int, int, bool]) -> list[tuple[int, int, int, int]]:
        switches = np.array([(PID, tid, core, t * ms, leaves) for tid, core, t, leaves in records], SWITCH)
        found = intervals.take(switches, until * ms)
        return sorted((int(i["tid"]), int(i["core"]), i["start_ns"] // ms, i["end_ns"] // ms) for i in found)

    # 5 and 6 end without a record: on one core another comes, on the other nobody does.
    assert take(100, (5, 0, 10, False), (6, 1, 20, False)) == [(5, 0, 10, 100), (6, 1, 20, 100)]
    ended.update((5, 6))
    assert take(200, (7, 0, 150, False), (7, 0, 160, True)) == [(5, 0, 100, 150), (7, 0, 150, 160)]
    assert take(300) == []


def test_perf_where_it_is_permitted_sees_this_process_run() -> None:
    sampler = UnitSampler(CLOCK, lambda pid: 0 if pid == os.getpid() else None, lambda *_: "compute")
    try:
        sampler.open()
    except SamplerUnavailable as error:
        pytest.skip(str(error))
    sampler.attach(os.getpid())
    for _ in range(20):
        sum(range(20_000))
        os.sched_yield()
        time.sleep(0)
        Path("/proc/self/stat").read_bytes()
    for _ in range(3):
        time.sleep(0.001)  # leaves the core
    rows = [row for _, _, batch in sampler.close() if not isinstance(batch, dict) for row in batch.to_pylist()]
    assert rows
    assert all(row["start_ns"] < row["end_ns"] and row["unit"] < (os.cpu_count() or 1) for row in rows)
    assert {(row["rank"], row["role"], row["evidence"]) for row in rows} == {(0, "compute", "measured")}


def test_files_are_read_anew_and_let_go_of_once_nobody_asks(tmp_path: Path) -> None:
    files, (one, other) = Files(), (tmp_path / "one", tmp_path / "other")
    one.write_text("1")
    other.write_text("2")
    before = len(os.listdir("/proc/self/fd"))
    assert [files.text(str(one)), files.text(str(other))] == ["1", "2"]
    one.write_text("10")
    assert files.text(str(one)) == "10"
    files.close_others()
    assert files.text(str(one)) == "10"
    files.close_others()  # the other was not read since
    assert len(os.listdir("/proc/self/fd")) == before + 1
    with pytest.raises(FileNotFoundError):
        files.text(str(tmp_path / "missing"))
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before


class _Limited:
    """A buffer of which so many pages can be had, over all cores."""

    left = 0
    open = 0

    def __init__(self, pid: int, core: int, pages: int = 1) -> None:
        if core == 5 or pages > _Limited.left:
            raise SamplerUnavailable("no memory")
        _Limited.left -= pages
        _Limited.open += 1
        self._pages = pages

    def close(self) -> None:
        _Limited.left += self._pages
        _Limited.open -= 1


@pytest.mark.parametrize(("pages", "cores", "buffers"), [(10_000, 4, 4), (600, 4, 4), (9_000, 64, 63), (0, 4, None)])
def test_no_core_goes_without_a_buffer_so_that_another_has_a_large_one(
    monkeypatch: pytest.MonkeyPatch, pages: int, cores: int, buffers: int | None
) -> None:
    monkeypatch.setattr(units, "SwitchBuffer", _Limited)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(_Limited, "left", pages)
    monkeypatch.setattr(_Limited, "open", 0)
    sampler = UnitSampler(CLOCK, lambda _: None, lambda *_: "compute")
    if buffers is None:
        with pytest.raises(SamplerUnavailable):
            sampler.attach(1)
    else:
        sampler.attach(1)
    assert _Limited.open == (buffers or 0)


def test_a_buffer_that_fills_up_tells_so() -> None:
    try:
        buffer = SwitchBuffer(os.getpid(), 0, pages=1)
    except SamplerUnavailable as error:
        pytest.skip(str(error))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    waiting = select.poll()
    waiting.register(buffer.fileno(), select.POLLIN)
    assert waiting.poll(0) == []
    while buffer.fill() < 0.6:
        time.sleep(0.0001)
    assert waiting.poll(1000) == [(buffer.fileno(), select.POLLIN)]
    assert len(buffer.read()) > 40
    assert waiting.poll(0) == []
    os.sched_setaffinity(0, before)
    buffer.close()
