"""The samplers of one recording: opened on the target, asked when they are due, left out where they break."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from moescope.collectors.samplers.base import NothingThere, Sampler, SamplerUnavailable
from moescope.collectors.samplers.nvml import GpuSampler
from moescope.collectors.schema import host_folder, rank_folder

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_S: Final = 1.0
EARLY_S: Final = 0.01
"""A tick that comes so much early is that poll's: the next one would be a whole tick late."""

Log = Callable[[str, str, str], None]
"""Level, source, message."""

Rows = list[dict[str, Any]]


class Sampling:
    """Nothing here raises for what a sampler does."""

    def __init__(self, host: str, log: Log) -> None:
        self._host, self._log = host, log
        self._samplers: list[Sampler] = []
        self._at_s: dict[int, float] = {}
        self._rows: dict[tuple[str, str, str], Rows] = {}
        """Not stored yet, by sampler, folder and table."""
        self.warnings = 0
        """What samplers have told for the log themselves."""

    def open(self, signals: Iterable[Sequence[Sampler]], pid: int) -> dict[str, str]:
        """Opens of each signal's sources the first that can be had on the target; the source in use, by name."""
        found: dict[str, str] = {}
        for sources in signals:
            for sampler in sources:
                try:
                    sampler.open()
                    sampler.attach(pid)
                except NothingThere:
                    continue
                except SamplerUnavailable as error:
                    self._log("warning", sampler.name, f"{sampler.source}: {error}")
                except Exception as error:  # noqa: BLE001  a sampler that breaks must not stop the run
                    self._log("error", sampler.name, f"not sampling: {error!r}")
                else:
                    self._samplers.append(sampler)
                    found[sampler.name] = sampler.source
                    break
        return found

    def gpus(self) -> GpuSampler | None:
        """The one that knows GPUs."""
        return next((sampler for sampler in self._samplers if isinstance(sampler, GpuSampler)), None)

    def poll(self, now_s: float, store: Callable[[str, str, pa.RecordBatch], object], *, watched: bool) -> None:
        """Asks those that are due. store: takes folder, table and rows of them that come many at once"""
        for sampler in list(self._samplers):
            if now_s - self._at_s.get(id(sampler), 0.0) >= _period_s(sampler, watched) - EARLY_S:
                self._at_s[id(sampler)] = now_s
                self._take(sampler, sampler.poll, store)

    def close(self, store: Callable[[str, str, pa.RecordBatch], object]) -> None:
        """Takes the last of each, and lets go of them."""
        for sampler in self._samplers:
            self._take(sampler, sampler.close, store)
        self._samplers = []

    def _take(
        self, sampler: Sampler, ask: Callable[[], Sequence[Any]], store: Callable[[str, str, pa.RecordBatch], object]
    ) -> None:
        try:
            for table, rank, row in ask():
                folder = host_folder(self._host) if rank is None else rank_folder(rank)
                if not isinstance(row, dict):
                    store(folder, table, row)
                    continue
                self.warnings += table == "log" and row["level"] != "info"
                self._rows.setdefault((sampler.name, folder, table), []).append(row)
        except Exception as error:  # noqa: BLE001  a sampler that breaks is switched off, the run goes on
            self.switch_off(sampler.name, repr(error))

    def rows(self) -> Iterator[tuple[str, str, str, Rows]]:
        """Sampler, folder, table and rows that are not stored yet: a few a second each, and a batch has its price."""
        rows, self._rows = self._rows, {}
        for key, own in rows.items():
            yield *key, own

    def switch_off(self, name: str, problem: str) -> None:
        """Goes on without this one."""
        for sampler in self._samplers:
            if sampler.name == name:
                with suppress(Exception):  # it is broken already, and what it holds is let go of as far as can be
                    sampler.close()
        self._samplers = [sampler for sampler in self._samplers if sampler.name != name]
        self._log("error", name, f"switched off: {problem}")

    def due_s(self) -> list[float]:
        """When each is due while nobody looks, on time.monotonic()."""
        return [self._at_s.get(id(sampler), 0.0) + _period_s(sampler, watched=False) for sampler in self._samplers]

    def wakes(self) -> list[int]:
        """Files that are readable where one must not wait so long."""
        return [file for sampler in self._samplers for file in getattr(sampler, "wakes", ())]


def _period_s(sampler: Sampler, watched: bool) -> float:
    """Between two polls."""
    period_s: float = getattr(sampler, "period_s", SAMPLE_S)
    return period_s if watched else getattr(sampler, "unwatched_s", period_s)
