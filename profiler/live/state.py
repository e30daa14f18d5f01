"""Everything known of a source so far, taken in piece by piece: tables as columns, kernels by rank, swept unions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from moescope.collectors.schema import DEVICE_SOURCE, EVIDENCE, KINDS, TABLES
from moescope.profiler.classify.classifier import classify_table
from moescope.profiler.growing.columns import NULL, Column, Columns, Names, Pieces, to_numpy
from moescope.profiler.growing.kernels import FIELDS, DeviceSweep, RankKernels, refresh
from moescope.profiler.growing.track import EVER, Track
from moescope.profiler.overlap.intervals import union
from moescope.profiler.snapshot import Evidence
from moescope.profiler.units.held import with_launch_text

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.profiler.source import Source

TIME_COLUMNS: Final = {
    "phases": "start_ns",
    "steps": "start_ns",
    "collectives": "issue_ns",
    "transfers": "start_ns",
    "unit_intervals": "start_ns",
    "link_samples": "t_ns",
    "device_samples": "t_ns",
    "experts": "t_ns",
    "quantisation": "t_ns",
    "work": "t_ns",
    "windows": "start_ns",
    "log": "t_ns",
}
"""Every table but `kernels` (and `gauges`, which no view reads), and a time column of it that is never null."""

_READ: Final = {
    "device_samples": (
        "host", "device", "t_ns", "tensor_active", "sm_active", "gpu_busy", "dram_active", "throttle", "memory_bytes",
        "memory_total_bytes", "power_w", "clock_hz",
    ),
}  # fmt: skip
"""Of tables that may have a thousand rows a second: the columns that views read. Of others all."""


@dataclass(frozen=True, slots=True)
class Known:
    """A kernel's name and what the classifier says of it."""

    name: str
    operator: str
    kind: str
    rule: str


class RankState:
    """One rank: its kernels in order, when it was recorded, its devices, and whether windows tell of GPUs alone."""

    __slots__ = ("devices", "kernels", "of_gpu", "recorded")

    def __init__(self) -> None:
        self.kernels = RankKernels()
        self.recorded = Track()
        self.of_gpu = False
        self.devices: dict[int, DeviceSweep] = {}

    def covered(self, name: str, start_ns: int, end_ns: int) -> int:
        """Time of one of DEVICE_SETS in a range, summed over the rank's devices, ns."""
        return sum(sweep.tracks[name].length(start_ns, end_ns) for sweep in self.devices.values())


class LiveState:
    """What a source holds, brought up to date by `poll`; only new rows are converted, classified and swept."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.names = Names()
        self.tables = {
            table: Columns(table, time, _READ.get(table) or [column.name for column in TABLES[table]], self.names)
            for table, time in TIME_COLUMNS.items()
        }
        self.ranks: dict[int, RankState] = {}
        self.classes: list[Known] = []
        self.version = 0
        self.other_peaks = False
        """As the view that is being answered has it."""
        self._listed: list[int] = []
        self._codes: dict[Known, int] = {}
        self._kinds: NDArray[np.int8] = np.empty(0, np.int8)
        self._pieces = Pieces()
        self._matching: tuple[str, int, NDArray[np.bool_]] = ("", 0, np.empty(0, np.bool_))

    def poll(self) -> bool:
        """Take in what is new; True where anything was."""
        if not self.source.poll() and self.version:
            return False
        self._listed = self.source.ranks()
        since = self._take_kernels()
        for name, columns in self.tables.items():
            held = columns.size
            first = columns.update(self.source.table(name), pruned=self._pruned())
            if name == "windows" and first >= 0:
                for rank in np.unique(columns["rank"]).tolist():
                    self.ranks.setdefault(rank, RankState())
                starts = columns["start_ns"][first:].tolist()
                for rank, start in zip(columns["rank"][first:].tolist(), starts, strict=True):
                    since[rank] = min(since.get(rank, start), start)
                if first < held:
                    since.update(dict.fromkeys(self.ranks, EVER))
        for rank, from_ns in since.items():
            held_rank = self.ranks.setdefault(rank, RankState())
            again = self._record(rank, held_rank)
            refresh(held_rank.devices, held_rank.kernels, self._kinds, held_rank.recorded, EVER if again else from_ns)
        self.version += 1
        return True

    def _pruned(self) -> bool:
        """Whether the recorder removes old segments while it writes (`--keep`)."""
        return self.source.meta.get("keep_ns") is not None

    def _record(self, rank: int, held: RankState) -> bool:
        """Takes in a rank's windows; whether others than before are looked at."""
        windows = self.tables["windows"]
        own = windows["rank"] == rank
        of_gpu = own & (windows["source"] == self.names.code(DEVICE_SOURCE))
        # From when the GPU is recorded on, operators of the host are not.
        again = bool(of_gpu.any()) != held.of_gpu
        held.of_gpu = bool(of_gpu.any())
        own = of_gpu if held.of_gpu else own
        starts, ends = windows["start_ns"][own], (windows["start_ns"] + windows["dur_ns"])[own]
        if not own.any() and held.kernels.size and self.source.state != "live":
            starts, ends = held.kernels["start"][:1], held.kernels["reach"][-1:]
        held.recorded.replace_from(EVER, *union(starts, ends))
        return again

    def _take_kernels(self) -> dict[int, int]:
        """Sort new kernels into their ranks; from when on each rank is to be swept again."""
        change = self._pieces.take(self.source.table("kernels"), "start_ns", pruned=self._pruned())
        since: dict[int, int] = {}
        if len(change.gone):
            since.update({rank: EVER for rank, held in self.ranks.items() if held.kernels.drop(change.gone)})
        if change.rows is None:
            return since
        rows = self._kernel_columns(change.rows, change.pieces)
        ranks = to_numpy(change.rows, "rank", self.names)
        ranks = np.where(ranks == NULL, 0, ranks)
        kernel = rows["code"] >= 0
        for rank in np.unique(ranks[kernel]).tolist():
            own = kernel & (ranks == rank)
            first = self.ranks.setdefault(rank, RankState()).kernels.insert(
                {name: values[own] for name, values in rows.items()}
            )
            since[rank] = min(since.get(rank, first), first)
        return since

    def _kernel_columns(self, rows: pa.Table, pieces: NDArray[np.int32]) -> dict[str, Column]:
        start = to_numpy(rows, "start_ns", self.names)
        duration = np.maximum(to_numpy(rows, "dur_ns", self.names), 0)
        columns: dict[str, Column] = {"start": start, "end": start + duration, "piece": pieces}
        columns["code"] = self._class_codes(rows)
        for name, column in (
            ("stream", "stream"),
            ("device", "device"),
            ("phase", "phase_id"),
            ("flops", "flops"),
            ("bytes", "bytes"),
            ("dtype", "dtype"),
            ("evidence", "evidence"),
        ):
            columns[name] = to_numpy(rows, column, self.names)
        columns["launch"] = to_numpy(with_launch_text(rows), "launch", self.names)
        return {name: columns[name] for name in FIELDS}

    def _class_codes(self, rows: pa.Table) -> Column:
        """The number of each row's name and class; -1 for calls that only issue work: [rows]."""
        names, hints = to_numpy(rows, "name", self.names), to_numpy(rows, "kind", self.names)
        keys = (names.astype(np.int64) << 32) | (hints.astype(np.int64) & 0xFFFFFFFF)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        kinds, operators, rules = classify_table(rows.take(first))
        codes = np.empty(len(first), np.int32)
        for at, (name, kind, operator, rule) in enumerate(zip(names[first], kinds, operators, rules, strict=True)):
            known = Known(self.names.text(int(name), "–"), str(operator), str(kind), str(rule))
            codes[at] = self._code(known) if known.kind in KINDS else -1
        self._kinds = np.array([KINDS.index(known.kind) for known in self.classes], np.int8)
        numbered: Column = codes[inverse.reshape(-1)]
        return numbered

    def _code(self, known: Known) -> int:
        code = self._codes.get(known)
        if code is None:
            code = self._codes[known] = len(self.classes)
            self.classes.append(known)
        return code

    def kind_of(self) -> NDArray[np.int8]:
        """Index into KINDS by a kernel's code: [codes]."""
        return self._kinds

    def matching(self, text: str) -> NDArray[np.bool_]:
        """Whether name, operator or kind of each code contains `text`, in any case: [codes]."""
        wanted, count, found = self._matching
        if wanted != text or count != len(self.classes):
            low = text.lower()
            found = np.array([low in f"{k.name} {k.operator} {k.kind}".lower() for k in self.classes], np.bool_)
            self._matching = (text, len(self.classes), found)
        return found

    def rank_numbers(self) -> list[int]:
        """Every rank that the source or a row names, in order."""
        return sorted({*self._listed, *self.ranks})

    def evidence(self, code: int) -> Evidence:
        """A row's label."""
        text = self.names.text(code, "measured")
        return cast(Evidence, text) if text in EVIDENCE else "inferred"

    def phase_name(self, rank: int, phase: int) -> str:
        """Name of a phase; empty for a kernel outside of any."""
        if phase == NULL:
            return ""
        phases = self.tables["phases"]
        at = np.flatnonzero((phases["rank"] == rank) & (phases["id"] == phase))
        return self.names.text(int(phases["name"][at[-1]])) if len(at) else ""

    def first_device(self, held: RankState) -> int:
        """Of a rank's devices the first GPU, else the first of the host; the number of its name."""
        return min(held.devices, key=lambda code: (self.names.text(code).startswith("cpu"), self.names.text(code)))

    @property
    def unit_kind(self) -> Literal["sm", "core"]:
        """What this source's execution units are."""
        devices = {self.names.text(device) for held in self.ranks.values() for device in held.devices}
        return "core" if not devices or all(device.startswith("cpu") for device in devices) else "sm"

    def span(self) -> tuple[int, int]:
        """First and last time of anything recorded in windows, kernels, steps or samples; (0, 0) for nothing."""
        starts: list[int] = []
        ends: list[int] = []
        for held in self.ranks.values():
            if held.kernels.size:
                starts.append(int(held.kernels["start"][0]))
                ends.append(int(held.kernels["reach"][-1]))
        for name in ("windows", "steps"):
            table = self.tables[name]
            if table.size:
                starts.append(int(table["start_ns"].min()))
                ends.append(int((table["start_ns"] + np.maximum(table["dur_ns"], 0)).max()))
        for name in ("link_samples", "device_samples") if not starts else ():
            table = self.tables[name]
            if table.size:
                starts.append(int(table["t_ns"].min()))
                ends.append(int(table["t_ns"].max()))
        return (min(starts), max(ends)) if starts else (0, 0)
