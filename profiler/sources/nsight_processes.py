"""The processes of an Nsight Systems export: which rank each is, and which GPUs it used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moescope.profiler.sources.columns import TraceFile
from moescope.profiler.sources.sqlite import Database

_THREAD_BITS = 24
_MASK = (1 << _THREAD_BITS) - 1


@dataclass(frozen=True, slots=True)
class Processes:
    """ranks: MPI rank by process; gpus: properties by the machine's number; of_cuda: that by process and ordinal."""

    ranks: dict[int, int]
    gpus: dict[int, dict[str, Any]]
    of_cuda: dict[tuple[int, int], int]

    @classmethod
    def of(cls, database: Database) -> Processes:
        """Read what the export tells; all of it may be missing."""
        told: dict[int, set[int]] = {}
        for thread, rank in database.rows("MPI_RANKS", ("globalTid", "rank")):
            if type(thread) is int and type(rank) is int and 0 <= rank < 2**31:
                told.setdefault(thread >> _THREAD_BITS & _MASK, set()).add(rank)
        gpus = {
            number: {"id": number}
            | ({"name": name} if isinstance(name, str) and name else {})
            | ({"numSms": units} if type(units) is int and 0 < units < 2**16 else {})
            for number, name, units in database.rows("TARGET_INFO_GPU", ("id", "name", "smCount"))
            if type(number) is int
        }
        of_cuda = {
            (pid, ordinal): number
            for number, ordinal, pid in database.rows("TARGET_INFO_CUDA_DEVICE", ("gpuId", "cudaId", "pid"))
            if type(number) is int and type(ordinal) is int and type(pid) is int
        }
        return cls({pid: min(ranks) for pid, ranks in told.items() if len(ranks) == 1}, gpus, of_cuda)

    def devices(self, pid: int, used: Sequence[int]) -> dict[str, dict[str, Any]]:
        """Properties of the devices that a process used, by `cuda:n`.

        An ordinal is the machine's number only where no environment variable hides GPUs, so it is taken for one only
        where all GPUs are alike.
        """
        kinds = {(gpu.get("name"), gpu.get("numSms")) for gpu in self.gpus.values()}
        found = {}
        for ordinal in used:
            number = self.of_cuda.get((pid, ordinal))
            if number is None and len(kinds) == 1:
                number = ordinal if ordinal in self.gpus else next(iter(self.gpus))
            if number in self.gpus:
                found[f"cuda:{ordinal}"] = self.gpus[number]
        return found

    def in_order(self, ranks: list[TraceFile], pids: Sequence[int]) -> list[TraceFile]:
        """Processes by the GPU that they used, as launchers number ranks; then by process."""

        def key(at: int) -> tuple[int, int]:
            used = sorted(set(ranks[at].columns.work["device"].tolist()))
            return min(self.of_cuda.get((pids[at], ordinal), ordinal) for ordinal in used), pids[at]

        return [ranks[at] for at in sorted(range(len(ranks)), key=key)]
