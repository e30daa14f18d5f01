"""What a source tells of a rank besides its kernels and calls: its host, its device's clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from moescope.profiler.overlap.intervals import Intervals, empty, union

if TYPE_CHECKING:
    from moescope.profiler.source import Source


def joined(sets: Iterable[Intervals]) -> Intervals:
    """What any of the unions covers."""
    parts = [empty(), *sets]
    return union(np.concatenate([one[0] for one in parts]), np.concatenate([one[1] for one in parts]))


def host_of(source: Source, rank: int) -> str:
    """The host whose clock a rank's times are read from; empty where the source does not tell, as traces do not."""
    for entry in source.meta.get("ranks") or () if source.state != "trace" else ():
        if isinstance(entry, Mapping) and entry.get("rank") == rank:
            return str(entry.get("host") or "")
    return ""


def clock_of(source: Source, rank: int, device: str | None) -> float | None:
    """Mean clock of a rank's device over all samples, Hz; None where none was sampled."""
    samples = source.table("device_samples")
    if device is None or not samples.num_rows:
        return None
    import pyarrow.compute as pc

    own = samples.filter(pc.equal(samples.column("device"), device))
    host = host_of(source, rank)
    if host:
        own = own.filter(pc.equal(own.column("host"), host))
    mean = pc.mean(own.column("clock_hz")).as_py()
    return None if mean is None else float(mean)
