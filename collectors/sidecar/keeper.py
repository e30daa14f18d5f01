"""Keeps a recording while the target runs: rings to tables, samplers to tables, meta.json, and a log of what failed."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import moescope
from moescope.collectors.clock import Clock
from moescope.collectors.schema import RECORDING_VERSION, host_folder, rank_folder
from moescope.collectors.sidecar.audience import Audience
from moescope.collectors.sidecar.batch import Batch
from moescope.collectors.sidecar.memory import keep_freed_memory
from moescope.collectors.sidecar.processes import alive, kill, started
from moescope.collectors.sidecar.ranks import RankProcess, RankTable
from moescope.collectors.sidecar.sampling import EARLY_S, Sampling
from moescope.collectors.sidecar.writer import RecordingWriter

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.collectors.sidecar.run import RunOptions

TICK_S: Final = 0.1
"""How often to look while somebody waits for what is found, and the shortest time between two looks."""
CALM_S: Final = 1.0
"""The longest else: each look takes a core from somebody, and rings have room."""
WATCHED_S: Final = 0.5
UNWATCHED_S: Final = 10.0
"""How often rings are drained, while somebody looks at the recording and else: a batch has a price of its own, for the
recorder, which takes its time from the target where cores are scarce, and for every reader."""

DRAIN_FILL: Final = 0.2
"""A ring this full is drained at once."""

PRESSED_FILL: Final = 0.4

TOLD: Final = frozenset({"kernels", "phases", "communication"})
"""Collectors by which a process shows that it works."""

META_S: Final = 1.0
RETRY_S: Final = 2.0


class Keeper:
    """One recording of one run on this host. Nothing here raises for want of space, rights or a working sampler."""

    def __init__(self, options: RunOptions, folder: Path, ring_dir: Path, clock: Clock, collect: list[str]) -> None:
        self.folder = folder
        self._clock = clock
        self._host = socket.gethostname()
        self._ring_dir = ring_dir
        self._writer = RecordingWriter(folder, options.keep_s)
        # What lies in the rings meanwhile is kept beyond what was asked for.
        self._calm_s = UNWATCHED_S if options.keep_s is None else min(UNWATCHED_S, max(WATCHED_S, options.keep_s / 8))
        self._ranks = RankTable(ring_dir, clock, options.ranks, telling=not TOLD.isdisjoint(collect))
        self._audience = Audience(folder)
        self._sampling = Sampling(self._host, self.log)
        self._collect = collect
        self._periods_s = options.gpu_period_s, options.pm_period_s
        self._gpus_seen: dict[int, dict[str, str] | None] = {}
        self._log: list[dict[str, Any]] = []
        self._errors: list[str] = []
        self._retry_at_s = 0.0
        self._broken = ""
        self._failed = False
        self._pending: dict[int, Batch] = {}
        self._dropped_told: dict[int, int] = {}
        self._drained_s = 0.0
        self._meta_s = 0.0
        self._warnings = 0
        self._cpu_start_s = time.process_time()
        self._meta: dict[str, Any] = {
            "moescope": moescope.__version__,
            "version": RECORDING_VERSION,
            "command": list(options.command),
            "target": target_name(options.command),
            "cwd": os.getcwd(),
            "host": self._host,
            "python": platform.python_version(),
            "started_ns": self._clock.epoch_ns(time.monotonic_ns()),
            "ended_ns": None,
            "exit_code": None,
            "state": "live",
            "sidecar_pid": os.getpid(),
            "sidecar_start": started(os.getpid()),
            "budget": options.budget,
            "options": {"collect": collect, "steps": options.steps, "ranks": options.ranks},
            "keep_ns": None if options.keep_s is None else int(options.keep_s * 1e9),
            "clock": {"offset_ns": clock.offset_ns, "error_ns": clock.error_ns},
            "ring_dir": str(ring_dir),
            "ranks": [],
            "collectors": {},
            "hardware": {},
            "dropped_events": 0,
        }

    def log(self, level: str, source: str, message: str, *, rank: int | None = None, dropped: int = 0) -> None:
        """A line for the recording's log."""
        self._warnings += level != "info"
        if level == "error" and f"{source}: {message}" not in self._errors:
            self._errors.append(f"{source}: {message}")
        now = self._clock.epoch_ns(time.monotonic_ns())
        row = {"t_ns": now, "rank": rank, "level": level, "source": source, "message": message, "dropped": dropped}
        self._log.append(row)

    def attach(self, pid: int) -> None:
        """Opens the samplers on the held-back target. One that cannot be opened is left out, and says why."""
        self._open_samplers(pid)
        self._describe_hardware()
        self._save_meta()

    def _open_samplers(self, pid: int) -> None:
        from moescope.collectors.samplers import make_samplers

        def rank_of(process: int) -> int | None:
            return self._ranks.rank_of(process)

        def role_of(process: int, thread: int) -> str:
            return self._ranks.role_of(process, thread)

        signals = make_samplers(
            self._clock, self._host, rank_of, role_of, self._ranks.pids, self._collect, *self._periods_s
        )
        self._meta["collectors"] |= self._sampling.open(signals, pid)

    def _describe_hardware(self) -> None:
        from moescope.collectors.samplers.hardware import describe

        try:
            self._meta["hardware"] = describe()
        except Exception as error:  # noqa: BLE001  a description that fails must not stop the run
            self.log("warning", "hardware", f"not described: {error!r}")

    def warm_up(self) -> None:
        """Loads what taking in needs while the target still loads its own: later it would be in its way."""
        import pyarrow.compute  # noqa: F401  Arrow imports it at the first `take`, in a tenth of a second

        keep_freed_memory()

    def tick(self, *, final: bool = False) -> None:
        """Takes in what is new everywhere, and stores it."""
        now_ns, now_s = time.monotonic_ns(), time.monotonic()
        if self._broken and now_s < self._retry_at_s and not final:
            return
        self._failed = False
        self._ranks.scan(now_ns)
        self._look_at_gpus()
        for text in (*self._ranks.problems, *self._ranks.notes):
            self.log("warning", "ranks", text)
        self._ranks.problems.clear()
        self._ranks.notes.clear()
        watched = self._audience.looks()
        period_s = WATCHED_S if watched else self._calm_s
        due = final or now_s - self._drained_s >= period_s - EARLY_S
        if due:
            self._drained_s = now_s
        for process in self._ranks.processes:
            fill = 0.0 if process.ended else process.drain.ring.fill()
            # One that has yet to show work of its own is looked at each time: samplers wait for it.
            if not process.ended and (due or fill > DRAIN_FILL or (fill > 0 and not process.drain.at_work)):
                self._take_in(process, now_ns, final=final)
            elif not process.ended and process.drain.origin.rank < 0:
                self._ranks.settle(process, now_ns, final=False)  # samplers wait for it
        if final:
            self._sampling.close(self._store_sampled)
        else:
            self._sampling.poll(now_s, self._store_sampled, watched=watched)
        if due:
            self._store_samples()
        self._store_log()
        if final or now_s - self._meta_s >= max(META_S, period_s):
            self._meta_s = now_s
            if self._writer.vanished():
                text = f"files of {self.folder} were removed during the run: data is missing"
                self.log("error", "recording", text)
            self._save_meta()
        if self._broken and not self._failed:
            self._broken = ""
            self.log("info", "recording", "writing again")

    def next_tick(self) -> tuple[float, list[int]]:
        """How long until something is due, s, and the files that are readable where it is earlier.

        Often while somebody looks, or a process has no rank yet: samplers wait for it.
        """
        watched = self._audience.looks()
        wakes = self._sampling.wakes() + self._audience.wakes
        processes = self._ranks.processes
        if watched or not processes or any(p.drain.origin.rank < 0 and not p.ended for p in processes):
            return TICK_S, wakes
        now_s = time.monotonic()
        due_s = min(self._drained_s + self._calm_s, now_s + CALM_S, *self._sampling.due_s())
        return max(TICK_S, due_s - now_s), wakes

    def pressed(self) -> bool:
        """Whether a ring holds so much that taking in must not wait for a quiet moment."""
        return any(not p.ended and p.drain.ring.fill() > PRESSED_FILL for p in self._ranks.processes)

    def _take_in(self, process: RankProcess, now_ns: int, *, final: bool) -> None:
        try:
            self._drain(process, now_ns, final=final)
        except Exception as error:  # noqa: BLE001  one ring that cannot be read must not cost the others, nor the run
            process.ended = True
            process.state = "lost"
            text = f"process {process.pid} is not recorded any more: {error!r}"
            self.log("error", "drain", text, rank=max(process.drain.origin.rank, 0))

    def _drain(self, process: RankProcess, now_ns: int, *, final: bool) -> None:
        if not self._ranks.settle(process, now_ns, final=final):
            if (final or not alive(process.pid)) and process.drain.ring.empty():
                process.ended, process.state = True, "ended"
            return
        gone = final or not alive(process.pid)
        late = self._pending.get(process.pid)
        if late is not None and not self._store_batch(process, late):
            return  # the rows stay in the ring until there is room
        batch = process.drain.drain(now_ns, final=gone)
        if not process.drain.at_work:
            process.drain.commit(batch)  # nothing but logs, and room is short or the process is gone
        elif not self._store_batch(process, batch):
            return
        dropped = process.drain.ring.dropped
        if dropped > self._dropped_told.get(process.pid, 0):
            lost = dropped - self._dropped_told.get(process.pid, 0)
            self._dropped_told[process.pid] = dropped
            rank = process.drain.origin.rank
            self.log(
                "warning",
                "ring",
                f"no room for {lost} events, in the ring or in a GPU's buffers: dropped",
                rank=rank,
                dropped=lost,
            )
        if gone:
            process.ended = True
            process.state = "ended" if process.drain.ring.closed else "killed"
            if process.state == "killed" and process.drain.at_work:
                text = f"process {process.pid} ended without a normal exit; what it had recorded is kept"
                # A pool's workers are ended so.
                level = "info" if process.identity.get("role") == "worker" else "warning"
                self.log(level, "agent", text, rank=process.drain.origin.rank)

    def _store_batch(self, process: RankProcess, batch: Batch) -> bool:
        """Stores a batch and marks it in the ring; where a table fails, the rest waits: what is stored stays so."""
        folder = rank_folder(process.drain.origin.rank)
        for table in list(batch.tables):
            if not self._store(partial(self._writer.write, folder, table, batch.tables[table])):
                self._pending[process.pid] = batch
                return False
            del batch.tables[table]
        for table in list(batch.rows):
            if not self._store(partial(self._write_told, folder, table, batch.rows[table])):
                self._pending[process.pid] = batch
                return False
            del batch.rows[table]
        self._pending.pop(process.pid, None)
        process.drain.commit(batch)
        return True

    def _write_told(self, folder: str, table: str, rows: list[dict[str, Any]]) -> None:
        problem = self._writer.write_rows(folder, table, rows)
        if problem:
            self.log("error", "emit", f"{folder}: {problem}")

    def _write_samples(self, name: str, folder: str, table: str, rows: list[dict[str, Any]]) -> None:
        problem = self._writer.write_rows(folder, table, rows)
        if problem:
            self._sampling.switch_off(name, problem)

    def _store_sampled(self, folder: str, table: str, rows: pa.RecordBatch) -> None:
        self._store(partial(self._writer.write, folder, table, [rows]))

    def _store_samples(self) -> None:
        for name, folder, table, rows in self._sampling.rows():
            self._store(partial(self._write_samples, name, folder, table, rows))

    def _store_log(self) -> None:
        if self._log and self._store(partial(self._writer.write_rows, host_folder(self._host), "log", self._log)):
            self._log = []

    def _store(self, write: Callable[[], object]) -> bool:
        """Whether it could be stored; a failure is logged once, and the next try waits."""
        try:
            write()
        except OSError as error:
            reason = error.strerror or str(error)
            if self._broken != reason:
                self._broken = reason
                text = f"cannot write to {self.folder} ({reason}): samples of the machine are lost from here on, "
                self.log("error", "recording", text + "and events of the ranks once their rings are full")
            self._failed = True
            self._retry_at_s = time.monotonic() + RETRY_S
            return False
        return True

    def _save_meta(self) -> None:
        ranks = self._ranks.meta()
        for row in ranks:
            row["gpus"] = self._gpus_seen.get(row["pid"])
        self._meta["ranks"] = ranks
        self._meta["dropped_events"] = sum(row["dropped"] for row in ranks)
        sources = sorted({row["source"] for row in ranks if row["source"]})
        if sources:
            self._meta["collectors"]["kernels"] = ", ".join(sources)
        self._meta["sidecar_cpu_s"] = round(time.process_time() - self._cpu_start_s, 3)
        self._store(lambda: self._writer.write_meta(self._meta))

    def _look_at_gpus(self) -> None:
        """Keeps what each new process calls its GPUs: once it has ended nothing tells."""
        sampler = self._sampling.gpus()
        for process in self._ranks.processes if sampler is not None else ():
            if sampler is not None and process.pid not in self._gpus_seen:
                self._gpus_seen[process.pid] = sampler.gpus_seen(process.pid)

    def survivors(self) -> list[int]:
        """Recorded processes that still run; those that have only just begun to record are among them."""
        self._ranks.scan(time.monotonic_ns())
        return [p.pid for p in self._ranks.processes if not p.ended and alive(p.pid)]

    def kill_ranks(self) -> None:
        """Ends every recorded process at once: one may have left the command that started it."""
        kill(process.pid for process in self._ranks.processes if not process.ended)

    def finish(self, exit_code: int) -> None:
        """Stores what is left, and marks the recording as finished."""
        self._writer.keep_all()
        if survivors := self.survivors():
            text = f"processes {survivors} outlived the command; what they do from now on is not recorded"
            self.log("warning", "run", text)
        self.tick(final=True)
        if exit_code:
            self.log("warning", "run", f"the command ended with exit code {exit_code}{_signal_text(exit_code)}")
        unsaved = [process.pid for process in self._ranks.processes if not process.ended]
        self._meta |= {
            "state": "unsaved" if unsaved else "finished",
            "exit_code": exit_code,
            "ended_ns": self._clock.epoch_ns(time.monotonic_ns()),
        }
        if unsaved:
            text = f"events of processes {unsaved} could not be stored and wait in {self._ring_dir}: make room, then"
            self.log("error", "recording", f"{text} open the recording on this host: `moescope summary {self.folder}`")
        self._store_log()
        self._writer.close()
        self._audience.close()
        self._save_meta()
        if not unsaved:
            shutil.rmtree(self._ring_dir, ignore_errors=True)

    def abandon(self) -> None:
        """The command could not be run: leaves no empty recording behind."""
        self._sampling.close(lambda *_: None)
        self._writer.close()
        self._audience.close()
        shutil.rmtree(self._ring_dir, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def last_words(self) -> list[str]:
        """What the person at the terminal should know, the next command last."""
        words = list(self._errors)
        ranks = self._meta["ranks"]
        left_out = self._ranks.left_out()
        silent = len(self._ranks.processes) - left_out
        if not ranks and left_out:
            words.append(
                f"{left_out} process{'es' if left_out > 1 else ''} recorded nothing: no rank that was asked for "
                "(--ranks)"
            )
        elif not ranks and silent:
            words.append(
                f"{silent} process{'es' if silent > 1 else ''} imported torch, and ended or went idle before there was "
                "anything to record: operators are recorded from about 20 ms after the import on"
            )
        elif not ranks:
            words.append(
                "no process that imports torch was recorded (python -I, -E, -S and `env -i` keep moescope out); "
                "`moescope doctor` tells more"
            )
        warnings = self._warnings + self._sampling.warnings
        if warnings:
            words.append(f"{warnings} warning(s) in the recording's log")
        words.append(f"recorded {len(ranks)} rank(s) into {self.folder}")
        words.append(f"next: moescope summary {self.folder}" if ranks else "next: moescope doctor")
        return words


def _signal_text(exit_code: int) -> str:
    """What a shell means by a code above 128."""
    try:
        return f" ({signal.Signals(exit_code - 128).name})" if exit_code > 128 else ""
    except ValueError:
        return ""


def target_name(command: tuple[str, ...]) -> str:
    """What to call the run: its script or module, else its program."""
    for i, word in enumerate(command):
        if word == "-m" and i + 1 < len(command) and command[i + 1] not in ("torch.distributed.run",):
            return command[i + 1]
        if word.endswith((".py", ".sh")):
            return Path(word).name
    return Path(command[0]).name
