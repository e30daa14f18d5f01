"""The answer to `moescope summary`: where each rank's time goes, as one JSON-ready value (schema 1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from moescope.collectors.schema import EVIDENCE
from moescope.profiler.errors import NoData
from moescope.profiler.findings.rules import as_rows
from moescope.profiler.hardware.samples import host_use, told_of_devices
from moescope.profiler.live.feed import aggregates_of
from moescope.profiler.overlap.intervals import length
from moescope.profiler.overlap.phases import phase_times, ranges_of
from moescope.profiler.overlap.placement import Placement, place
from moescope.profiler.overlap.sweep import (
    DeviceKernels,
    Sweep,
    counted_ns,
    coverage,
    kernels_by_device,
    recorded_windows,
    sweep,
)
from moescope.profiler.ranks.across import across
from moescope.profiler.ranks.answer import told_across
from moescope.profiler.ranks.calls import calls_of
from moescope.profiler.ranks.facts import clock_of, host_of, joined
from moescope.profiler.ranks.losses import findings_across
from moescope.profiler.ranks.part import (
    LOG_LINES,
    Key,
    Log,
    Part,
    RankPart,
    Totals,
    aggregates,
    merged,
    step_times,
    totals_of,
)
from moescope.profiler.ranks.view import HOST, RankView, ranks_in
from moescope.profiler.steps.amounts import step_amounts
from moescope.profiler.summary.breakdown import operator_rows, overlap_rows
from moescope.profiler.summary.device_facts import device_facts
from moescope.profiler.summary.machine import machine_answer
from moescope.profiler.summary.steps import fraction, steps_answer, us

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.profiler.source import Source, State

__all__ = ["answer", "no_kernels", "part_of", "summarise"]

UNSEEN: Final = 0.1
"""Share of the time that a thread without recorded operators spends in phases, from which on it is told."""
SUMS: Final = (
    "span_us", "busy_us", "compute_us", "comm_us", "memory_us", "overlapped_us", "exposed_comm_us", "idle_us",
    "unknown_us",
)  # fmt: skip


def summarise(source: Source) -> dict[str, Any]:
    """Sum up a source.

    Raises NoData where it holds no kernels.
    """
    return answer(part_of(source), source.name, source.state, source.meta)


def part_of(source: Source, place: int = 0, only: int | None = None) -> Part:
    """What the answer needs of the ranks of a source; each is analysed by itself.

    place: of this source among those that the answer is of; only: this rank alone, or HOST for what belongs to none
    """
    ranks = ranks_in(source)
    parts = [_rank_part(RankView(source, rank), (place, rank)) for rank in ranks if only in (None, rank)]
    if only in (None, HOST):
        log = RankView(source, HOST, frozenset(ranks)).table("log")
        key = (place, HOST)
        parts.append(Part(logs={key: _log(log)}, totals=Totals(dropped=_dropped(log)), hosts={key: host_use(source)}))
    told = source.meta.get("dropped_events")
    about = Part(
        listed=frozenset((place, rank) for rank in ranks),
        told_dropped=told if isinstance(told, int) else 0,
        torn=frozenset(source.torn),
    )
    return merged([*parts, about])


def answer(part: Part, name: str, state: State, meta: dict[str, Any]) -> dict[str, Any]:
    """The answer over all ranks of a part.

    name, state, meta: of what the part is of. Raises NoData where no rank has kernels.
    """
    order = sorted(part.ranks)
    ranks = [device for key in order for device in part.ranks[key].devices]
    if not ranks:
        raise NoData(_nothing(part, name, state, meta))
    total: dict[str, Any] = {key: round(sum(rank[key] for rank in ranks), 3) for key in SUMS}
    total |= fraction(total["overlapped_us"], total["comm_us"])
    extent = sum(one.extent_ns for one in part.ranks.values())
    seen = aggregates(part, finished=state != "live")
    found = across(part)
    return {
        "schema": 1,
        "source": name,
        "state": state,
        "evidence": EVIDENCE[max(one.evidence for one in part.ranks.values())],
        "ranks": ranks,
        "coverage": sum(one.counted_ns for one in part.ranks.values()) / extent if extent else 1.0,
        "total": total,
        **steps_answer(part, seen),
        **_cost(meta),
        "dropped_events": max(part.told_dropped, part.totals.dropped),
        "ranks_without_kernels": [key[1] for key in sorted(part.listed) if not part.ranks[key].devices],
        "torn": sorted(part.torn),
        "log": _joined_log(part),
        **told_across(found, part),
        **told_of_devices([part.hosts[key] for key in sorted(part.hosts)]),
        "findings": list(as_rows(findings_across(found, seen))),
    }


def _rank_part(source: Source, key: Key) -> Part:
    """One rank: its figures, and what it adds to those of all."""
    windows = recorded_windows(source).get(key[1])
    devices = kernels_by_device(source.table("kernels"))
    sweeps = [sweep(device, recorded_windows(source, device.device).get(key[1])) for device in devices]
    placed = [
        place(device, swept, source.table("kernels"), source.table("phases"), source.table("steps"))
        for device, swept in zip(devices, sweeps, strict=True)
    ]
    seen = aggregates_of(source)
    held = RankPart(
        devices=tuple(_rank(source, *one) for one in zip(devices, sweeps, placed, strict=True)),
        evidence=_evidence(source, devices, sweeps),
        counted_ns=length(windows) if windows is not None else 0,
        extent_ns=int(windows[1][-1] - windows[0][0]) if windows is not None and len(windows[0]) else 0,
        steps=step_times(source.table("steps")),
        amounts=step_amounts(source.table("steps"), devices, sweeps, placed),
        shares=seen.shares,
        seen_recorded_ns=seen.recorded_ns,
        seen_extent_ns=seen.extent_ns,
        calls=calls_of(
            source,
            joined(swept.compute for swept in sweeps),
            joined(swept.busy for swept in sweeps),
            windows,
        ),
        host=host_of(source, key[1]),
        clock_hz=clock_of(source, key[1], devices[0].device if devices else None),
    )
    totals = totals_of(seen, source.table("transfers"))
    return Part(ranks={key: held}, logs={key: _log(source.table("log"))}, totals=totals)


def no_kernels(source: Source) -> str:
    """That nothing was recorded, with what the log says about it."""
    part = Part(logs={(0, HOST): _log(source.table("log"))})
    return _nothing(part, source.name, source.state, source.meta)


def _nothing(part: Part, name: str, state: State, meta: dict[str, Any]) -> str:
    said = [f"{line['source']}: {line['message']}" for line in _joined_log(part)["lines"] if line["level"] == "error"]
    return "\n".join(
        [f"{name}: no kernels recorded; {_remedy(state, meta)}"] + [f"  its log says: {text}" for text in said[:3]]
    )


def _remedy(state: State, meta: dict[str, Any]) -> str:
    """What to do about a source without kernels: the option that kept them out, where one did."""
    if state == "trace":
        return "trace again with torch.profiler and ProfilerActivity.CUDA (or CPU), or name another file"
    options = meta.get("options")
    options = options if isinstance(options, dict) else {}
    collect = options.get("collect")
    if isinstance(collect, list) and "kernels" not in collect:
        given = ",".join(map(str, collect))
        return f"--collect {given} left them out: record again with kernels in --collect, or without it"
    if options.get("steps"):
        return f"--steps {options['steps']} kept to steps that did not come: record again with others, or without it"
    if options.get("ranks"):
        return f"--ranks {options['ranks']} kept to ranks that were not there: record again with others, or without it"
    return (
        "record again with `moescope run`, `moescope doctor` tells more (on a CPU operators are recorded on the main "
        "thread, and on threads that communicate; what another thread does is not)"
    )


def _rank(source: Source, device: DeviceKernels, swept: Sweep, places: Placement) -> dict[str, Any]:
    inside = counted_ns(device.starts, device.ends, swept.recorded)
    counts = (inside > 0) | (device.starts == device.ends)
    machine = machine_answer(source, device, swept)
    phases = phase_times(device, ranges_of(source.table("phases"), device.rank), swept)
    return {
        "rank": device.rank,
        "device": device.device,
        "span_us": us(swept.span_ns),
        "busy_us": us(length(swept.busy)),
        "compute_us": us(length(swept.compute)),
        "comm_us": us(length(swept.comm)),
        "memory_us": us(length(swept.memory)),
        "overlapped_us": us(length(swept.overlapped)),
        "exposed_comm_us": us(length(swept.exposed)),
        "idle_us": us(swept.idle_ns),
        **fraction(length(swept.overlapped), length(swept.comm)),
        "unknown_us": us(length(swept.unknown)),
        "kernels": int(counts.sum()),
        "coverage": coverage(recorded_windows(source, device.device).get(device.rank)),
        **machine.keys,
        **device_facts(source, device, swept),
        "unseen_threads": _unseen_threads(source, device),
        "phases": [
            {
                "name": phase.name,
                "count": phase.count,
                "total_us": us(phase.total_ns),
                "comm_us": us(phase.comm_ns),
                "exposed_comm_us": us(phase.exposed_ns),
            }
            for phase in phases
        ],
        "operators": operator_rows(device, swept, machine.bounds),
        **overlap_rows(device, swept, places),
    }


def _unseen_threads(source: Source, device: DeviceKernels) -> list[str]:
    """Threads of a CPU that spend a tenth of the time and more in phases, and of which no operator was recorded."""
    import pyarrow.compute as pc

    phases = source.table("phases")
    if not device.device.startswith("cpu") or not phases.num_rows:
        return []
    outermost = phases.filter(pc.is_null(phases.column("parent"))).select(["thread", "start_ns", "dur_ns"])
    if not outermost.num_rows:
        return []
    ends = pc.add(outermost.column("start_ns"), pc.fill_null(outermost.column("dur_ns"), 0))
    whole = pc.max(ends).as_py() - pc.min(outermost.column("start_ns")).as_py()
    spent = outermost.group_by("thread").aggregate([("dur_ns", "sum")]).to_pylist()
    seen = {None, *pc.unique(source.table("kernels").column("stream")).to_pylist()}
    return sorted(
        row["thread"] for row in spent if row["thread"] not in seen and (row["dur_ns_sum"] or 0) >= UNSEEN * whole
    )


def _evidence(source: Source, devices: list[DeviceKernels], sweeps: list[Sweep]) -> int:
    """The weakest label of any kernel that counts, as its place in EVIDENCE."""
    import pyarrow as pa
    import pyarrow.compute as pc

    labels = source.table("kernels").column("evidence")
    worst = 0
    for device, swept in zip(devices, sweeps, strict=True):
        counts = counted_ns(device.starts, device.ends, swept.recorded) > 0
        for label in pc.unique(labels.take(pa.array(device.rows[counts]))).to_pylist():
            worst = max(worst, EVIDENCE.index(label) if label in EVIDENCE else 0)
    return worst


def _cost(meta: dict[str, Any]) -> dict[str, Any]:
    """What recording is reckoned to have cost the ranks, as a share of their time."""
    ranks = meta.get("ranks")
    told = [one.get("cost_share") for one in ranks if isinstance(one, dict)] if isinstance(ranks, list) else []
    known = [share for share in told if isinstance(share, int | float) and not isinstance(share, bool)]
    if not known:
        return {"cost_share": None, "cost_share_reason": "moescope did not record this itself"}
    return {"cost_share": sum(known) / len(known)}


def _dropped(log: pa.Table) -> int:
    return sum(value or 0 for value in log.column("dropped").to_pylist())


def _log(log: pa.Table) -> Log:
    return log_of(log.to_pylist())


def log_of(rows: Iterable[dict[str, Any]]) -> Log:
    """Warnings and errors of rows of `log`."""
    told = [row for row in rows if row["level"] in ("warning", "error")]
    lines = [
        {"level": row["level"], "rank": row["rank"], "source": row["source"], "message": row["message"]} for row in told
    ]
    return Log(len(told), _unique(lines))


def _unique(lines: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    return tuple({tuple(line.items()): line for line in lines}.values())[:LOG_LINES]


def _joined_log(part: Part) -> dict[str, Any]:
    logs = [part.logs[key] for key in sorted(part.logs)]
    return {
        "warnings": sum(log.warnings for log in logs),
        "lines": list(_unique(line for log in logs for line in log.lines)),
    }
