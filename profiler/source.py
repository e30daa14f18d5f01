"""What an analysis reads from: a recording or traces, live or finished, as the tables of `collectors.schema`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from moescope.collectors.schema import META_FILE
from moescope.profiler.errors import NoData, UsageProblem

if TYPE_CHECKING:
    import pyarrow as pa

State = Literal["live", "finished", "torn", "trace"]
TRACE_SUFFIXES = (".json", ".json.gz", ".sqlite")


class Source(Protocol):
    """Tables of one run.

    name: what to call it; meta: the recording's `meta.json`, every key optional; torn: files that end in a torn batch
    """

    @property
    def name(self) -> str: ...
    @property
    def meta(self) -> dict[str, Any]: ...
    @property
    def state(self) -> State: ...
    @property
    def torn(self) -> list[str]: ...

    def poll(self) -> bool:
        """Take in what is new since the last call; True where anything was."""

    def table(self, name: str) -> pa.Table:
        """All rows so far, in the table's Arrow schema; empty where there are none."""

    def ranks(self) -> list[int]:
        """Ranks known so far, rising."""


def open_source(paths: Sequence[Path]) -> Source:
    """Open a recording, trace files, or a folder of trace files, and take in what is there.

    Raises UsageProblem for a path that is neither, NoData for a folder that holds nothing.
    """
    from moescope.profiler.sources.recording import Recording
    from moescope.profiler.sources.traces import open_traces

    files = files_of(paths)
    if not files:
        recording = Recording(paths[0])
        recording.poll()
        return recording
    return open_traces(files)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The trace files that the paths name, none where they name a recording.

    Raises UsageProblem for a path that is neither, NoData for a folder that holds nothing.
    """
    if not paths:
        raise UsageProblem("no source given: name a recording folder or trace files")
    for path in paths:
        if not path.exists():
            raise UsageProblem(f"{path}: no such file or folder")
    if len(paths) == 1 and is_recording(paths[0]):
        return []
    for path in paths:
        if is_recording(path):
            raise UsageProblem(f"{path}: a recording stands alone; give one recording, or trace files")
    files: list[Path] = []
    for path in paths:
        files += _traces_of(path) if path.is_dir() else [path]
    return files


def is_recording(path: Path) -> bool:
    """Whether `path` is a recording's folder."""
    return path.is_dir() and ((path / META_FILE).exists() or any(path.glob("rank-*/*.arrows")))


def _traces_of(folder: Path) -> list[Path]:
    """Traces of a folder, or of the folders in it, one for each rank."""
    for pattern in ("*", "*/*"):
        found = sorted(path for path in folder.glob(pattern) if path.name.endswith(TRACE_SUFFIXES) and path.is_file())
        if found:
            return found
    raise NoData(
        f"{folder}: neither a recording (no {META_FILE}) nor a folder of traces (no *.json, *.json.gz, *.sqlite); "
        "record one with `moescope run`"
    )
