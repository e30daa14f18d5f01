"""Which process is which rank, and what becomes of each."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moescope.collectors.clock import Clock
from moescope.collectors.ring_reader import Ring, RingError
from moescope.collectors.schema import DEVICE_SOURCE
from moescope.collectors.sidecar.drain import ProcessDrain
from moescope.collectors.sidecar.file_reader import FileRing
from moescope.collectors.sidecar.processes import alive

SETTLE_NS = 1_500_000_000
"""How long a process that tells no rank may still tell one before it is given a number."""

SETTLE_FILL = 0.25
LEFT_OUT = "left out"
"""State of a process whose rank was not asked for."""
RINGS = (".ring", ".events")
"""Names of rings end so; what lies beside them the ranks use among themselves (collectors/agent/peers.py)."""
COARSE_NS = 100_000_000
"""Longer than a file system's stamps of time are apart."""


@dataclass
class RankProcess:
    """One recorded process."""

    drain: ProcessDrain
    first_seen_ns: int
    identity: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    ended: bool = False

    @property
    def pid(self) -> int:
        return self.drain.ring.pid


class RankTable:
    """Finds rings in a folder and gives each active process a rank: its own word first, then free numbers."""

    def __init__(self, ring_dir: Path, clock: Clock, only: str = "", *, telling: bool = True) -> None:
        """only: the ranks that are recorded, `0,3`; all where empty; telling: whether processes tell what they do"""
        self._telling = telling
        self._only = frozenset(int(rank) for rank in only.split(",") if rank)
        self._dir = ring_dir
        self._clock = clock
        self._known: set[str] = set()
        self._changed_ns = -1
        self._opening = False
        self.processes: list[RankProcess] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        """What whoever reads the recording has to know."""

    def scan(self, now_ns: int) -> None:
        """Takes in rings that are new."""
        try:
            changed_ns = os.stat(self._dir).st_mtime_ns
            if changed_ns == self._changed_ns and not self._opening:
                return
            names = sorted(os.listdir(self._dir))
        except OSError:
            return
        # The stamp is coarse: what comes within its next tick bears the same one.
        self._changed_ns = changed_ns if time.time_ns() - changed_ns > COARSE_NS else -1
        self._opening = False
        for name in names:
            if name in self._known or not name.endswith(RINGS):
                continue  # of what lies beside rings the ranks make use among themselves
            path = self._dir / name
            try:
                ring = FileRing(path) if name.endswith(".events") else Ring(path)
            except RingError as error:
                if not alive(_pid_of(name)):
                    self._known.add(name)
                    self.problems.append(f"not recorded: {error}")
                else:
                    self._opening = True
                continue  # still being opened by the target
            except OSError as error:
                self._known.add(name)
                self.problems.append(f"not recorded: {path}: {error}")
                continue
            self._known.add(name)
            self.processes.append(RankProcess(ProcessDrain(ring, self._clock), now_ns))

    def settle(self, process: RankProcess, now_ns: int, *, final: bool) -> bool:
        """Gives the process its rank; False while that is still open, and for a rank that is not to be recorded.

        A process that is started as a rank knows by itself whether it is wanted; one that learns its rank later, or is
        given one, does not.
        """
        if process.state == LEFT_OUT or not self._settled(process, now_ns, final=final):
            return False
        if self._only and process.drain.origin.rank not in self._only:
            process.ended, process.state = True, LEFT_OUT
        return process.state != LEFT_OUT

    def left_out(self) -> int:
        """Processes whose ranks were not asked for."""
        return sum(process.state == LEFT_OUT for process in self.processes)

    def _settled(self, process: RankProcess, now_ns: int, *, final: bool) -> bool:
        """Gives the process its rank; False while that is still open.

        Where a process tells no rank it gets a free number, once it has recorded something: a DataLoader's workers,
        which record nothing, must not take the numbers of those that do.
        """
        found = process.drain.ring.identity()
        if found:
            process.identity = found
            process.drain.origin.kernels_told = found.get("source") == DEVICE_SOURCE
        if process.drain.origin.rank >= 0:
            return True
        wanted = process.identity.get("rank")
        taken = {p.drain.origin.rank: p for p in self.processes if p.drain.origin.rank >= 0}
        if isinstance(wanted, int):
            holder = taken.get(wanted)
            # A rank started again after its process ended (an elastic restart) goes on in the same folder.
            if holder is None or holder.ended or not alive(holder.pid):
                process.drain.origin.rank = wanted
                if holder is not None:
                    self.notes.append(
                        f"rank {wanted} is process {process.pid} from here on, and was process {holder.pid}: its "
                        "figures are of both (a run that was started again; of two runs make two recordings)"
                    )
                process.drain.origin.id_base = (
                    sum(p.drain.origin.rank == wanted for p in self.processes if p is not process) << 32
                )
                return True
        elif process.drain.ring.empty() or (not final and self._may_still_tell(process, now_ns)):
            return False
        promised = {p.identity["rank"] for p in self.processes if isinstance(p.identity.get("rank"), int)}
        number = 0
        while number in taken or number in promised:
            number += 1
        process.drain.origin.rank = number
        if isinstance(wanted, int):
            self.problems.append(f"process {process.pid} says it is rank {wanted}, which another is: kept as {number}")
        return True

    def _may_still_tell(self, process: RankProcess, now_ns: int) -> bool:
        """Whether to go on waiting for the process to name its rank; not where its ring fills up meanwhile."""
        waited_ns = now_ns - process.first_seen_ns
        parent = next((p for p in self.processes if p.pid == process.identity.get("ppid")), None)
        if parent is not None and parent.drain.origin.rank < 0 and alive(parent.pid) and not alive(process.pid):
            return True  # what it recorded stays where it is, and its parent counts first
        return waited_ns < SETTLE_NS and process.drain.ring.fill() < SETTLE_FILL and alive(process.pid)

    def rank_of(self, pid: int) -> int | None:
        """Rank of a process that has begun its work, for samplers: one that only starts others is none to look at."""
        found = next((p for p in self.processes if p.pid == pid and p.drain.origin.rank >= 0), None)
        if found is None or found.state == LEFT_OUT or (self._telling and not found.drain.at_work):
            return None
        return found.drain.origin.rank

    def pids(self) -> list[int]:
        """The processes that are ranks now."""
        return [p.pid for p in self.processes if p.drain.origin.rank >= 0 and not p.ended]

    def role_of(self, pid: int, tid: int) -> str:
        """What a thread does: communication where it completed calls, else compute; ours is neither."""
        process = next((p for p in self.processes if p.pid == pid), None)
        if process is None:
            return "other"
        if tid in process.drain.calls.threads:
            return "comm"
        name = process.drain.origin.label(tid)
        if name.startswith(("pt_gloo", "gloo", "pt_nccl", "nccl", "NCCL")):
            return "comm"
        return "other" if name.startswith(("moescope", "pt_elastic", "pt_tcpstore")) else "compute"

    def meta(self) -> list[dict[str, Any]]:
        """The recorded processes, for meta.json."""
        rows = []
        for p in self.processes:
            if p.drain.origin.rank < 0 or not p.drain.at_work:
                continue
            elapsed = max(p.drain.last_ns - int(p.identity.get("start_ns", p.drain.last_ns)), 1)
            rows.append(
                {
                    "rank": p.drain.origin.rank,
                    "local_rank": p.identity.get("local_rank"),
                    "world_size": p.identity.get("world_size"),
                    "host": p.identity.get("host"),
                    "pid": p.pid,
                    "device": ",".join(sorted(p.drain.origin.devices)) or p.drain.origin.device,
                    "device_properties": p.identity.get("device_properties") or {},
                    "device_clock_error_ns": p.identity.get("device_clock_error_ns"),
                    "state": p.state,
                    "source": p.identity.get("source") or None,
                    "ring": p.identity.get("ring"),
                    "torch": p.identity.get("torch"),
                    "python": p.identity.get("python"),
                    "dropped": p.drain.ring.dropped,
                    "cost_share": round((p.drain.ring.overhead_ns + p.drain.events_cost_ns) / elapsed, 5),
                }
            )
        return sorted(rows, key=lambda row: row["rank"])


def _pid_of(ring_name: str) -> int:
    head = ring_name.partition("-")[0]
    return int(head) if head.isdigit() else 0
