"""A run is analysed rank by rank, wherever and in whatever order: always to the same answer."""

from __future__ import annotations

import gzip
import json
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from moescope.profiler.commands.main import main
from moescope.profiler.errors import MoescopeError, NoData, UsageProblem
from moescope.profiler.source import open_source
from moescope.profiler.summary.answer import summarise
from moescope.profiler.summary.driver import divide, executor_for, summarise_over

DATA = Path(__file__).parents[1] / "data"
DLRM = DATA / "param_dlrm_8rank_v100"


class Backwards(Executor):
    """Runs what it is given when somebody asks for any of it, the last first."""

    _max_workers = 8

    def __init__(self) -> None:
        self.calls: list[tuple[Future[Any], Any, tuple[Any, ...]]] = []
        self.most = 0

    def submit(self, function: Any, /, *arguments: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.calls.append((future, function, arguments))
        self.most = max(self.most, len(self.calls))
        if len(self.calls) == 8:
            for waiting, call, given in reversed(self.calls):
                waiting.set_result(call(*given))
            self.calls.clear()
        return future


@pytest.fixture(scope="module")
def whole() -> str:
    """The answer from all tables in memory."""
    return json.dumps(summarise(open_source([DLRM])))


def test_a_file_at_a_time_gives_the_answer_of_all_at_once(whole: str) -> None:
    seen: list[tuple[int, int]] = []
    found = summarise_over(divide([DLRM]), None, lambda done, total: seen.append((done, total)))
    assert json.dumps(found) == whole
    assert seen == [(done, 8) for done in range(1, 9)]


def test_results_in_reverse_order_give_the_same_answer(whole: str) -> None:
    assert json.dumps(summarise_over(divide([DLRM]), Backwards())) == whole


def test_processes_of_this_machine_give_the_same_answer(whole: str) -> None:
    work = divide([DLRM])
    with executor_for(work, jobs=2) as executor:
        assert executor is not None
        assert json.dumps(summarise_over(work, executor)) == whole


def test_little_work_starts_no_processes() -> None:
    with executor_for(divide([DLRM])) as executor:
        assert executor is None


def test_a_dask_cluster_gives_the_same_answer(whole: str, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed (extra `dask`)")
    settings = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(
        host="127.0.0.1", protocol="tcp", local_directory=str(tmp_path), **settings
    ) as cluster:
        assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")
        work = divide([DLRM])
        with executor_for(work, scheduler=cluster.scheduler_address) as executor:
            assert json.dumps(summarise_over(work, executor)) == whole


def test_no_scheduler_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed (extra `dask`)")
    with pytest.raises(SystemExit) as caught:
        main(["summary", str(DLRM), "--scheduler", "nonsense://127.0.0.1:1"])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert "--scheduler nonsense://127.0.0.1:1: no Dask scheduler answers there" in err
    assert "Traceback" not in err


def test_a_recording_is_read_rank_by_rank_to_the_same_answer(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["import", str(DLRM), "-o", str(tmp_path / "rec")])
    found = summarise_over(divide([tmp_path / "rec"]))
    assert json.dumps(found) == json.dumps(summarise(open_source([tmp_path / "rec"])))


def _trace(path: Path, rank: int | None, *, device: bool, ts: int = 100) -> Path:
    kernel = {"ph": "X", "cat": "kernel", "name": "gemm", "ts": ts, "dur": 10, "args": {"device": 0, "stream": 7}}
    operator = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1, "ts": ts, "dur": 20}
    trace: dict[str, Any] = {"traceEvents": [operator, kernel] if device else [operator]}
    if rank is not None:
        trace["distributedInfo"] = {"rank": rank, "world_size": 3}
    path.write_text(json.dumps(trace))
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Two ranks with device events and one without."""
    return [
        _trace(tmp_path / "b.json", 1, device=True),
        _trace(tmp_path / "a.json", 0, device=False),
        _trace(tmp_path / "c.json", 2, device=True),
    ]


def test_ranks_are_those_that_traces_tell_whatever_order_files_come_in(mixed: list[Path]) -> None:
    for files in (mixed, mixed[::-1]):
        found = summarise_over(divide(files))
        assert json.dumps(found) == json.dumps(summarise(open_source(files)))
        assert [rank["rank"] for rank in found["ranks"]] == [1, 2]
        assert found["ranks_without_kernels"] == [0]
        assert any("no device events" in line["message"] for line in found["log"]["lines"])


def test_operators_count_where_no_rank_has_device_events(tmp_path: Path) -> None:
    files = [_trace(tmp_path / f"{name}.json", None, device=False) for name in "xy"]
    found = summarise_over(divide(files))
    assert json.dumps(found) == json.dumps(summarise(open_source(files)))
    assert [(rank["rank"], rank["device"]) for rank in found["ranks"]] == [(0, "cpu"), (1, "cpu")]
    assert any("numbered in the order given" in line["message"] for line in found["log"]["lines"])


def test_a_broken_trace_among_many_is_named(mixed: list[Path]) -> None:
    mixed[2].write_bytes(gzip.compress(mixed[2].read_bytes(), mtime=0)[:-9])
    with pytest.raises(MoescopeError, match=r"c\.json"), ThreadPoolExecutor(2) as executor:
        summarise_over(divide(mixed), executor)


def test_two_traces_of_a_rank_and_traces_without_events_are_refused(tmp_path: Path) -> None:
    twins = [_trace(tmp_path / f"{name}.json", 1, device=True) for name in "xy"]
    with pytest.raises(MoescopeError, match="both say they were of rank 1"):
        summarise_over(divide(twins))
    nothing = tmp_path / "nothing.json"
    nothing.write_text('{"traceEvents": []}')
    with pytest.raises(NoData, match=r"nothing\.json"):
        summarise_over(divide([nothing]))
    with pytest.raises(UsageProblem, match="no such file"):
        divide([tmp_path / "gone"])


def test_the_progress_bar_is_for_terminals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    with pytest.raises(SystemExit) as caught:
        main(["summary", str(DLRM), "--json"])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    assert json.loads(out)["schema"] == 1
