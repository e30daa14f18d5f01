"""`moescope run` around real commands: the target stays its own, and what it did is in the recording."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moescope.collectors.calibrate import _machine
from moescope.collectors.sidecar.processes import alive
from moescope.collectors.sidecar.run import TWICE_S
from moescope.tui.commands import COMMANDS
from tests.collectors.reading import meta, rows
from tests.conftest import Moescope

TRAIN = """
import torch
from torch.profiler import record_function
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
import time
until = time.monotonic() + 1.0
while time.monotonic() < until:
    with record_function("mlp(F)"):
        loss = model(torch.randn(32, 64)).square().mean()
    with record_function("mlp(B)"):
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
for _ in range(3):
    with record_function("ProfilerStep#7"):  # as a profiler's schedule names each step
        model(torch.randn(32, 64)).square().mean().backward()
print("trained")
"""

RANKS = """
import time, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
sent, received = torch.ones(3000 if rank == 0 else 1000), torch.empty(2000)
splits = ([1000, 2000], [1000, 1000]) if rank == 0 else ([0, 1000], [2000, 0])
if rank == 1:
    splits = ([0, 1000], [2000, 0])
with torch.profiler.record_function("warm"):
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
dist.barrier()
time.sleep(0.4)
for _ in range(20):
    with torch.profiler.record_function("exchange"):
        dist.all_to_all_single(torch.empty(2048), torch.ones(2048))
    with torch.profiler.record_function("sleep"):
        time.sleep(0.02)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
dist.barrier()
dist.destroy_process_group()
"""


def script(tmp_path: Path, text: str, name: str = "target.py") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording of TRAIN, which ran as it would have without."""
    folder = tmp_path_factory.mktemp("trained")
    env = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "moescope", "run", "-o", "rec", "--", sys.executable, script(folder, TRAIN)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    return folder / "rec"


def test_operators_phases_steps_and_cores_of_a_plain_script_are_recorded(trained: Path) -> None:
    recording = trained
    names = {row["name"] for row in rows(recording, "kernels")}
    assert {"aten::addmm", "aten::mm", "aten::pow"} <= names
    assert {"mlp(F)", "mlp(B)"} <= {row["name"] for row in rows(recording, "phases")}
    assert not [row for row in rows(recording, "phases") if row["name"].startswith("ProfilerStep#")]
    # A backward pass is a phase where it is in none.
    assert [row["parent"] for row in rows(recording, "phases") if row["name"] == "backward"] == [None] * 3
    steps = [row["step"] for row in rows(recording, "steps")]
    assert steps == list(range(len(steps)))
    assert steps
    assert {row["role"] for row in rows(recording, "unit_intervals")} <= {"compute", "other"}
    assert {row["link"] for row in rows(recording, "link_samples")} >= {"lo"}
    facts = meta(recording)
    assert (facts["state"], facts["exit_code"], facts["dropped_events"]) == ("finished", 0, 0)
    assert [r["state"] for r in facts["ranks"]] == ["ended"]
    assert not Path(facts["ring_dir"]).exists()


def test_kernels_lie_inside_windows_and_know_their_phase(trained: Path) -> None:
    recording = trained
    phases = {row["id"]: row for row in rows(recording, "phases")}
    assert len(phases) == len(rows(recording, "phases"))
    placed = [(k, phases[k["phase_id"]]) for k in rows(recording, "kernels") if k["phase_id"] in phases]
    assert placed
    for kernel, phase in placed:
        assert phase["start_ns"] <= kernel["start_ns"]
        assert kernel["start_ns"] + kernel["dur_ns"] <= phase["start_ns"] + phase["dur_ns"]
    assert {p["name"] for k, p in placed if k["name"] == "aten::addmm"} == {"mlp(F)"}


def test_ranks_their_calls_bytes_and_sleeps_come_back(moescope: Moescope, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = moescope("run", "-o", "rec", "--", *launcher, script(tmp_path, RANKS))
    assert done.returncode == 0, done.stderr
    recording = tmp_path / "rec"
    assert [r["rank"] for r in meta(recording)["ranks"]] == [0, 1]
    calls = [row for row in rows(recording, "collectives") if row["op"] == "all_to_all"]
    assert sorted(row["rank"] for row in calls) == [0] * 20 + [1] * 20
    for row in calls:
        assert (row["sent_bytes"], row["received_bytes"]) == (4096, 4096)
        assert (row["group_ranks"], row["backend"], row["dtype"]) == ("0,1", "gloo", "float32")
        assert row["issue_ns"] <= row["start_ns"]
        assert row["dur_ns"] > 0
    assert {row["evidence"] for row in calls} <= {"measured", "derived"}
    transfers = [row for row in rows(recording, "transfers") if row["op"] == "all_to_all"]
    assert sorted((t["src"], t["dst"], t["bytes"]) for t in transfers) == [(0, 1, 4096)] * 20 + [(1, 0, 4096)] * 20
    sleeps = [row["dur_ns"] for row in rows(recording, "phases") if row["name"] == "sleep"]
    assert len(sleeps) == 40
    assert all(20_000_000 <= dur < 200_000_000 for dur in sleeps)
    kernels = [k for k in rows(recording, "kernels") if k["name"].startswith("gloo:") and k["kind"] == "comm"]
    assert len(kernels) >= 40
    # A thread whose process has ended before anyone looked has no name any more.
    assert all("gloo" in k["stream"] or k["stream"].split()[0] in ("main", "thread") for k in kernels)


def test_a_step_filter_records_operators_of_those_steps_only(moescope: Moescope, tmp_path: Path) -> None:
    text = """
import time, torch
from moescope.collectors import emit
for i in range(12):
    with emit.step(i), emit.phase("work", layer=i):
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            torch.ones(8).neg()
"""
    moescope("run", "-o", "rec", "--steps", "5:7", "--", sys.executable, script(tmp_path, text))
    recording = tmp_path / "rec"
    steps = {row["step"]: row for row in rows(recording, "steps")}
    assert sorted(steps) == list(range(12))
    windows = rows(recording, "windows")
    assert len(windows) == 3
    before, after = steps[4]["start_ns"] + steps[4]["dur_ns"], steps[8]["start_ns"]
    assert all(before <= w["start_ns"] and w["start_ns"] + w["dur_ns"] <= after for w in windows)


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(7)", 7), ("import os; os._exit(9)", 9), ("import os; os.kill(os.getpid(), 15)", 143)],
)
def test_the_exit_code_is_the_targets_and_told(moescope: Moescope, tmp_path: Path, code: str, expected: int) -> None:
    assert moescope("run", "-o", "rec", "--", sys.executable, "-c", code).returncode == expected
    told = [row["message"] for row in rows(tmp_path / "rec", "log") if row["source"] == "run"]
    assert told == [f"the command ended with exit code {expected}" + (" (SIGTERM)" if expected == 143 else "")]


def test_commands_that_cannot_be_run_say_so_and_leave_nothing(moescope: Moescope, tmp_path: Path) -> None:
    missing = moescope("run", "-o", "rec", "--", "no-such-command")
    assert (missing.returncode, "no-such-command" in missing.stderr) == (127, True)
    refused = moescope("run", "-o", "rec", "--", str(tmp_path))
    assert refused.returncode == 126
    assert not (tmp_path / "rec").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--budget", "2"],
        ["--keep", "soon"],
        ["--steps", "a:b"],
        ["--collect", "gpus"],
        ["--ranks", "x"],
        ["--budgte", "full"],
    ],
)
def test_bad_options_are_refused_before_the_command_starts(
    moescope: Moescope, tmp_path: Path, arguments: list[str]
) -> None:
    done = moescope("run", *arguments, "--", "touch", "started")
    assert done.returncode == 2
    assert not (tmp_path / "started").exists()


def test_an_existing_recording_is_not_overwritten_without_force(moescope: Moescope, tmp_path: Path) -> None:
    assert moescope("run", "-o", "rec", "--", "true").returncode == 0
    assert moescope("run", "-o", "rec", "--", "true").returncode == 2
    assert moescope("run", "-f", "-o", "rec", "--", "true").returncode == 0
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    assert moescope("run", "-f", "-o", "data", "--", "true").returncode == 2
    assert (tmp_path / "data" / "precious").exists()


def test_the_demo_overwrites_nothing_without_force(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "meta.json").write_text("precious")
    done = moescope("demo", "-o", "rec")
    assert (done.returncode, "-f to overwrite it" in done.stderr) == (2, True)
    assert (tmp_path / "rec" / "meta.json").read_text() == "precious"


def test_the_demo_of_all_stages_answers_from_where_it_recorded_if_its_folder_cannot_be_written_to(
    moescope: Moescope, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    env = os.environ | {"TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    kept = tmp_path / "cache" / "moescope" / f"peaks-{socket.gethostname()}.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"machine": _machine(), "peaks": {}}))  # known peaks: nothing is measured first
    done = moescope("demo", "--no-tui", "--stage", "all", "--ranks", "1", "--steps", "2", "-o", "file/rec", env=env)
    assert done.returncode == 0, done.stderr
    assert "cannot record into file/rec" in done.stderr
    (found,) = tmp_path.glob("rec-*")
    assert f"moescope top {found}" in done.stdout
    assert (found / "csv" / "kernels.csv").exists()
    with open(found / "csv" / "phases.csv", newline="") as file:
        stages = [row["stage"] for row in csv.DictReader(file) if row["stage"]]
    assert list(dict.fromkeys(stages))[-1] == "generate"
    assert {"train", "prefill", "decode", "generate"} == set(stages)
    assert "'def main(' goes on " in done.stdout


def test_a_process_that_keeps_us_out_is_told(moescope: Moescope, tmp_path: Path) -> None:
    done = moescope("run", "-o", "rec", "--", sys.executable, "-I", "-c", "import torch")
    assert done.returncode == 0
    assert "no process that imports torch was recorded" in done.stderr
    assert done.stderr.splitlines()[-1] == "moescope: next: moescope doctor"


def test_workers_that_load_data_take_no_rank_from_the_process_that_trains(moescope: Moescope, tmp_path: Path) -> None:
    text = """
import time, torch
from torch.utils.data import DataLoader
if __name__ == "__main__":
    until = time.monotonic() + 0.4
    while time.monotonic() < until:
        torch.ones(8).neg()
    for batch in DataLoader(torch.ones(16, 4), batch_size=4, num_workers=2):
        batch.neg()
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        torch.ones(8).neg()
"""
    done = moescope("run", "-o", "rec", "--", sys.executable, script(tmp_path, text))
    assert "recorded 1 rank(s)" in done.stderr
    meta = json.loads((tmp_path / "rec" / "meta.json").read_text())
    assert [row["rank"] for row in meta["ranks"]] == [0]
    assert meta["state"] == "finished"


def test_a_process_that_is_too_short_to_record_is_told_from_one_that_keeps_us_out(moescope: Moescope) -> None:
    done = moescope("run", "-o", "rec", "--", sys.executable, "-c", "import os, torch; os._exit(4)")
    assert done.returncode == 4
    assert "1 process imported torch" in done.stderr
    assert "keep moescope out" not in done.stderr


def test_the_targets_own_modules_and_sitecustomize_go_on_working(moescope: Moescope, tmp_path: Path) -> None:
    for name in ("profiler", "collectors", "tui", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"print('mine: {name}')\n")
    code = "import profiler, collectors, tui; import torch; torch.ones(3).neg(); print('done')"
    # Unbuffered: the first line is from the interpreter that runs moescope itself, and would come last.
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    done = moescope("run", "-o", "rec", "--", sys.executable, "-c", code, env=env)
    expected = ["mine: sitecustomize", "mine: sitecustomize", "mine: profiler", "mine: collectors", "mine: tui", "done"]
    assert done.stdout.splitlines() == expected


def test_the_targets_own_profiler_counts_exactly_and_the_conflict_is_logged(moescope: Moescope, tmp_path: Path) -> None:
    text = """
import time, torch
until = time.monotonic() + 0.6
while time.monotonic() < until:
    torch.ones(4).neg()
with torch.profiler.profile() as p:
    for _ in range(2000):
        torch.ones(4).neg()
print([e.count for e in p.key_averages() if e.key == "aten::neg"])
"""
    done = moescope("run", "-o", "rec", "--budget", "full", "--", sys.executable, script(tmp_path, text))
    assert done.stdout == "[2000]\n", done.stderr
    assert any("torch.profiler itself" in row["message"] for row in rows(tmp_path / "rec", "log"))


SPAWNED = """
import time, torch, torch.multiprocessing as mp, torch.distributed as dist
def work(rank, path):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    for _ in range(40):
        dist.all_reduce(torch.ones(64))
        time.sleep(0.02)
    dist.destroy_process_group()
if __name__ == "__main__":
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, args=(folder + "/store",), nprocs=2)
"""


def test_ranks_that_were_not_asked_for_are_left_out_though_they_learn_their_number_late(
    moescope: Moescope, tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(SPAWNED)
    done = moescope("run", "--ranks", "1", "-o", "rec", "--", sys.executable, "main.py")
    assert done.returncode == 0, done.stderr
    assert [row["rank"] for row in meta(tmp_path / "rec")["ranks"]] == [1]
    assert {row["rank"] for row in rows(tmp_path / "rec", "collectives")} == {1}
    assert {row["rank"] for row in rows(tmp_path / "rec", "unit_intervals")} <= {1}
    alone = "import time, torch; x = torch.ones(8); [(x.neg(), time.sleep(0.01)) for _ in range(60)]"
    done = moescope("run", "--ranks", "7", "-f", "-o", "rec", "--", sys.executable, "-c", alone)
    assert done.returncode == 0, done.stderr
    assert meta(tmp_path / "rec")["ranks"] == []
    assert "no rank that was asked for" in done.stderr


def test_spawned_processes_are_ranks_of_their_own(moescope: Moescope, tmp_path: Path) -> None:
    text = """
import time, torch, torch.multiprocessing as mp
def work(i):
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        torch.ones(i + 1).neg()
if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
"""
    done = moescope("run", "-o", "rec", "--budget", "full", "--", sys.executable, script(tmp_path, text))
    assert done.returncode == 0, done.stderr
    ranks = meta(tmp_path / "rec")["ranks"]
    assert len({r["pid"] for r in ranks}) == 2
    # Who only starts them is none, in no table.
    assert {row["rank"] for row in rows(tmp_path / "rec", "unit_intervals")} == {r["rank"] for r in ranks}


def test_without_the_library_operators_come_from_kineto_and_it_is_said(moescope: Moescope, tmp_path: Path) -> None:
    env = os.environ | {"INTEL_LIBITTNOTIFY64": "/another/collector.so"}
    done = moescope("run", "-o", "rec", "--", sys.executable, script(tmp_path, TRAIN), env=env)
    assert (done.returncode, done.stdout) == (0, "trained\n")
    recording = tmp_path / "rec"
    assert meta(recording)["ranks"][0]["source"] == "kineto"
    kernels = rows(recording, "kernels")
    assert {"aten::addmm", "aten::mm"} <= {row["name"] for row in kernels}
    assert {k["flops"] for k in kernels if k["name"] == "aten::addmm"} == {2 * 32 * 64 * 64}
    assert any("INTEL_LIBITTNOTIFY64" in row["message"] for row in rows(recording, "log"))


ENDLESS = """
import signal, sys, time, torch
def stop(*_):
    print("interrupted", flush=True)
    sys.exit(3)
signal.signal(signal.SIGINT, stop if sys.argv[1] == "polite" else signal.SIG_IGN)
print("ready", flush=True)
while True:
    torch.ones(8).neg(); time.sleep(0.001)
"""


@pytest.mark.parametrize(("manner", "code"), [("polite", 3), ("deaf", 137)])
def test_an_interrupt_is_passed_on_and_a_second_one_ends_it_at_once(
    start_moescope: Callable[..., subprocess.Popen[str]], tmp_path: Path, manner: str, code: int
) -> None:
    target = script(tmp_path, ENDLESS)
    process = start_moescope("run", "-o", "rec", "--", sys.executable, target, manner)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    for _ in range(100) if manner == "deaf" else ():
        time.sleep(0.3)  # two signals at once are one
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == code
    assert meta(tmp_path / "rec")["state"] == "finished"


ENDED = """
import os, sys, torch
for _ in range(200):
    torch.ones(64).neg()
print(os.getpid(), flush=True)
sys.exit(5)
"""


def test_ctrl_c_while_a_run_is_stored_costs_neither_the_recording_nor_the_exit_code(
    start_moescope: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start_moescope("run", "-o", "rec", "--", sys.executable, script(tmp_path, ENDED))
    assert process.stdout is not None
    target = int(process.stdout.readline())
    while alive(target):
        time.sleep(0.005)
    sent = 0
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        sent += 1
        time.sleep(0.005)
    assert sent > 3
    assert process.wait(30) == 5
    assert meta(tmp_path / "rec")["state"] == "finished"


PROMPT = """
import signal
count = 0
def caught(*_):
    global count
    count += 1
    print("caught", count, flush=True)
signal.signal(signal.SIGINT, caught)
print("ready", flush=True)
while True:
    signal.pause()
"""


def test_an_interrupt_long_after_another_is_the_command_s_own_and_two_in_a_row_are_told_to_end_it(
    start_moescope: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start_moescope("run", "-o", "rec", "--", sys.executable, "-I", script(tmp_path, PROMPT))
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "caught 1\n"
    assert f"Ctrl-C twice within {TWICE_S:g} s ends it at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "caught 2\n"
    for _ in range(100):
        time.sleep(0.3)  # two signals at once are one
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == 137


DEAF = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
if len(sys.argv) > 1:
    child = subprocess.Popen([sys.executable, "-I", __file__, *sys.argv[2:]])
    sys.exit(child.wait())
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_two_interrupts_in_a_row_end_what_the_command_has_started_though_nothing_of_it_is_recorded(
    start_moescope: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    target = script(tmp_path, DEAF)
    process = start_moescope("run", "-o", "rec", "--", sys.executable, "-I", target, "child", "grandchild")
    assert process.stdout is not None
    innermost = int(process.stdout.readline())
    assert alive(innermost)
    for _ in range(100):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)  # two signals at once are one
        if process.poll() is not None:
            break
    assert process.wait(30) == 137
    until = time.monotonic() + 10
    while alive(innermost) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(innermost)


def test_what_is_said_of_an_interrupt_is_what_it_does() -> None:
    root = Path(__file__).parents[2]
    said = [(root / "README.md").read_text(), (root / "profiler/commands/run.py").read_text()]
    said.append(next(command.help for command in COMMANDS if command.action == "interrupt"))
    assert all(f"within {TWICE_S:g} s" in " ".join(text.split()) for text in said)


def test_a_folder_that_cannot_be_written_costs_the_place_not_the_run(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = moescope("run", "-o", "file/rec", "--", sys.executable, "-c", "import torch; print(1)")
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "recording into" in done.stderr


def test_a_folder_that_vanishes_costs_data_not_the_run(
    start_moescope: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    import shutil

    text = """
import sys, time, torch
print("ready", flush=True); sys.stdin.readline()
until = time.monotonic() + 2.5
while time.monotonic() < until: torch.ones(8).neg()
print("finished", flush=True)
"""
    target = script(tmp_path, text)
    process = start_moescope("run", "-o", "rec", "--", sys.executable, target, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    # Away at once: what the recorder writes meanwhile would keep the folder from being removed.
    (tmp_path / "rec").rename(tmp_path / "away")
    shutil.rmtree(tmp_path / "away")
    out, _ = process.communicate("go\n", timeout=60)
    assert (process.returncode, out) == (0, "finished\n")
    assert any("removed during the run" in row["message"] for row in rows(tmp_path / "rec", "log"))


def test_a_collector_that_raises_is_logged_and_the_target_goes_on(moescope: Moescope, tmp_path: Path) -> None:
    text = """
import sys, torch
sys.modules["_moescope_agent"].recorder.ring.blob = None  # breaks every collector that reports rows
import torch.distributed as dist
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
dist.all_reduce(torch.ones(2)); dist.destroy_process_group()
print("fine")
"""
    done = moescope("run", "-o", "rec", "--", sys.executable, script(tmp_path, text))
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_windows_open_and_close_around_backward_passes_never_inside(moescope: Moescope, tmp_path: Path) -> None:
    # Python code inside backward is where a pending call could run with torch's state swapped.
    text = """
import time, torch
class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, g):
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            torch.ones(8).neg()
        return g
until = time.monotonic() + 2.0
while time.monotonic() < until:
    Slow.apply(torch.ones(4, requires_grad=True)).sum().backward()
"""
    done = moescope("run", "-o", "rec", "--", sys.executable, "-W", "error", script(tmp_path, text))
    assert done.returncode == 0, done.stderr
    assert "callback" not in done.stderr
    assert rows(tmp_path / "rec", "windows")


def test_a_run_that_is_stopped_and_continued_goes_on(
    start_moescope: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "target.py").write_text("import torch\nprint('up', flush=True)\ninput()\nprint('end')\n")
    process = start_moescope("run", "-o", "rec", "--", sys.executable, "target.py", stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)  # longer than a tick: only then does Python return a signal that is none
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate("\n", timeout=60)
    assert process.returncode == 0, err
    assert out == "end\n"
    assert "Traceback" not in err
