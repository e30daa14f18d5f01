"""moescope in Python: a run's tables as pandas DataFrames, and every answer of the commands as values.

    import moescope
    run = moescope.open("traces/")
    run.kernels.groupby("operator").dur_ns.sum()
    run.summary()["total"]["overlap_fraction"]

Nothing is read before it is asked for. Tables are read whole; answers are computed a rank or file at a time, so that
they take runs whose tables memory does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moescope.collectors.schema import TABLES
from moescope.profiler.errors import UsageProblem

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from moescope.profiler.ranks.across import Across
    from moescope.profiler.ranks.part import Part
    from moescope.profiler.source import Source
    from moescope.profiler.summary.driver import Work

OF_DEVICES: Final = (
    "rank", "device", "span_us", "busy_us", "compute_us", "comm_us", "memory_us", "overlapped_us", "exposed_comm_us",
    "idle_us", "unknown_us", "overlap_fraction", "kernels", "coverage",
)  # fmt: skip
PARTS: Final = ("phase", "operator", "layer", "micro_batch", "stage", "direction")
NO_PANDAS: Final = (
    "DataFrames need pandas: pip install 'moescope[pandas]'; `run.arrow(name)` gives the same table as Arrow without it"
)


def open_run(*paths: str | Path, executor: Executor | None = None) -> Run:
    """Open a recording, trace files, or a folder of traces.

    executor: where ranks are analysed, any of `concurrent.futures`; this process unless given. Raises UsageProblem for
    a path that is neither, NoData for a folder that holds nothing.
    """
    return Run([Path(path) for path in paths], executor)


class Run:
    """One run. Every table of a recording is an attribute by its name, a DataFrame (`run.kernels`), but `collectives`:
    that is a method, which compares ranks, and `run.table("collectives")` has the calls as recorded.
    """

    def __init__(self, paths: Sequence[Path], executor: Executor | None = None) -> None:
        from moescope.profiler.commands.opening import prepare
        from moescope.profiler.summary.driver import divide

        if paths and paths[0].exists():
            prepare(paths)
        self._paths = tuple(paths)
        self._executor = executor
        self._work: Work = divide(paths)
        self._frames: dict[str, pd.DataFrame] = {}
        self._opened: Source | None = None
        self._merged: Part | None = None
        self._answered: dict[str, Any] | None = None
        self._compared: Across | None = None

    def __repr__(self) -> str:
        held = f"{len(self._work.files)} traces" if self._work.files else f"{len(self._work.items) - 1} ranks"
        return f"<moescope run {self.name}: {self._work.state}, {held}>"

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *(name for name in TABLES if name != "collectives")]

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name not in TABLES:
            raise AttributeError(f"a run has no {name!r}; its tables are {', '.join(TABLES)}")
        return self.table(name)

    @property
    def name(self) -> str:
        """The recording's folder, or the trace file."""
        return self._work.name

    @property
    def meta(self) -> dict[str, Any]:
        """A recording's `meta.json`; of traces, what they tell of their ranks and devices."""
        return self._work.meta or self._source().meta

    @property
    def ranks(self) -> list[int]:
        """Ranks of the run, rising."""
        return sorted({number for _, number in self._part().listed})

    def arrow(self, name: str) -> pa.Table:
        """A table of the run (`docs/data-dictionary.md`); `kernels` with the classifier's kind, operator and rule.

        Raises UsageProblem for a name that is no table.
        """
        if name not in TABLES:
            raise UsageProblem(f"no table {name!r}; there are {', '.join(TABLES)}")
        if name == "kernels":
            from moescope.profiler.export.csv_files import kernels_table

            return kernels_table(self._source())
        return self._source().table(name)

    def table(self, name: str) -> pd.DataFrame:
        """The same as a DataFrame: integers are exact, and missing where they are not known.

        Raises ImportError without pandas.
        """
        if name not in self._frames:
            self._frames[name] = _frame(self.arrow(name))
        return self._frames[name]

    def summary(self) -> dict[str, Any]:
        """The answer of `moescope summary --json`. Raises NoData where no kernels were recorded."""
        return self._answer()

    def text(self) -> str:
        """The answer of `moescope summary`, 120 columns wide."""
        import io

        from rich.console import Console

        from moescope.profiler.report.text import render_text

        file = io.StringIO()
        render_text(self._answer(), Console(file=file, width=120, highlight=False))
        return file.getvalue()

    def overlap(self, by: str | None = None) -> pd.DataFrame:
        """A row a device: where its time goes, µs; or, of each device, a row by one of PARTS.

        Raises UsageProblem for another.
        """
        ranks = self._answer()["ranks"]
        if by is None:
            return _rows([{key: rank[key] for key in OF_DEVICES} for rank in ranks], OF_DEVICES)
        if by not in PARTS:
            raise UsageProblem(f"by {by!r}: there are {', '.join(PARTS)}")
        found = []
        for rank in ranks:
            entries = rank[f"{by}s"] if by in ("phase", "operator") else rank["overlap_by"][by]
            found += [{"rank": rank["rank"], "device": rank["device"]} | _plain(entry) for entry in entries]
        return _rows(found, ("rank", "device"))

    def timeline(self) -> pd.DataFrame:
        """Each device's time in at most a thousand equal bins, as `overlap.csv` has it; µs."""
        from moescope.profiler.export.csv_files import overlap_table

        return _frame(overlap_table(self._source()))

    def findings(self) -> pd.DataFrame:
        """What costs time, the costliest first: id, severity, what, evidence, why, try, gain, lost_share."""
        keys = ("id", "severity", "what", "evidence", "why", "try", "gain", "lost_share")
        return _rows(self._answer()["findings"], keys)

    def collectives(self) -> pd.DataFrame:
        """A row a rank and collective that was matched across ranks; times on one clock, `docs/many-ranks.md`.

        group, number: which collective; op; rank; arrival_ns, ns since the epoch; wait_us, moving_us: of the rank;
        transfer_us: of the collective; last: whether this rank arrived last; lead_us: by how much
        """
        from moescope.profiler.ranks.frames import collective_columns

        return _columns(collective_columns(self._across()))

    def clocks(self) -> pd.DataFrame:
        """A row a rank: what its clock shows more than the reference's, and what that rests on."""
        from moescope.profiler.ranks.frames import clock_columns

        return _columns(clock_columns(self._across()))

    def stragglers(self) -> pd.DataFrame:
        """A row a rank that arrived last at collectives, the costliest first; empty where none was matched."""
        from moescope.profiler.ranks.frames import late_columns

        return _columns(late_columns(self._across()))

    def traffic(self) -> pd.DataFrame:
        """Bytes by sender, receiver and hop, where the run tells them."""
        pairs = sorted(self._part().totals.traffic.items())
        names = ("src", "dst", "hop", "transfers", "bytes")
        return _rows([dict(zip(names, (*pair, *sizes), strict=True)) for pair, sizes in pairs], names)

    # Methods, not properties: an AttributeError inside of a property would end in __getattr__ and be lost.
    def _source(self) -> Source:
        if self._opened is None:
            from moescope.profiler.source import open_source

            self._opened = open_source(self._paths)
        return self._opened

    def _part(self) -> Part:
        if self._merged is None:
            from moescope.profiler.summary.driver import part_over

            self._merged = part_over(self._work, self._executor)
        return self._merged

    def _answer(self) -> dict[str, Any]:
        if self._answered is None:
            from moescope.profiler.summary.driver import answer_of

            self._answered = answer_of(self._work, self._part())
        return self._answered

    def _across(self) -> Across:
        if self._compared is None:
            from moescope.profiler.ranks.across import across

            self._compared = across(self._part())
        return self._compared


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as problem:
        raise ImportError(NO_PANDAS) from problem
    return pandas


def _frame(table: pa.Table) -> pd.DataFrame:
    """As pandas has it, but for integers, which stay integers where some are missing."""
    import pyarrow as pa

    pandas = _pandas()
    types: dict[Any, Any] = {pa.int32(): pandas.Int32Dtype(), pa.int64(): pandas.Int64Dtype()}
    found: pd.DataFrame = table.to_pandas(types_mapper=types.get)
    return found


def _rows(rows: list[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows as a frame; the columns are there even without rows."""
    found: pd.DataFrame = _pandas().DataFrame(rows, columns=None if rows else list(columns))
    return found


def _columns(columns: dict[str, Any]) -> pd.DataFrame:
    found: pd.DataFrame = _pandas().DataFrame(columns)
    return found


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry's own figures: no tables inside of it."""
    return {key: value for key, value in entry.items() if not isinstance(value, (dict, list))}
