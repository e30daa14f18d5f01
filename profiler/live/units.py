"""Execution units that communication and compute hold in a window, for the ranks of a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moescope.profiler.growing.columns import Column
from moescope.profiler.growing.kernels import as_device
from moescope.profiler.live.figures import recorded_columns
from moescope.profiler.live.state import LiveState
from moescope.profiler.overlap.sweep import sweep
from moescope.profiler.snapshot import Figure, Units
from moescope.profiler.units.held import UnitUse, launch_columns, units_used

if TYPE_CHECKING:
    import pyarrow as pa


def rank_units(state: LiveState, rank: int, window: tuple[int, int]) -> Units:
    """Units of one rank: measured intervals inside its recorded windows, else inferred from launch shapes.

    A rank with several devices shows its first.
    """
    held = state.ranks.get(rank)
    if held is None or not held.devices:
        none = Figure(None, "derived", "nothing recorded of this rank")
        return Units(state.unit_kind, None, none, none, none, none)
    number = state.first_device(held)
    name = state.names.text(number, "cpu")
    # Only launch shapes tell units where none were measured, and operators on a CPU have none.
    seen = window if not name.startswith("cpu") else (window[0], window[0])
    starts, ends, code, device, launch = recorded_columns(held, seen, ("start", "end", "code", "device", "launch"))
    own = (device == number) & (launch >= 0) if len(device) else np.empty(0, np.bool_)
    kinds = state.kind_of()[code[own]] if own.any() else np.empty(0, np.int8)
    kernels = as_device(starts[own], ends[own], kinds, rank, name)
    swept = sweep(kernels, held.recorded.between(*window), window)
    used = units_used(kernels, swept, _launches(state, launch[own]), _intervals(state, rank, window), state.source.meta)
    return _as_units(used)


def _as_units(used: UnitUse) -> Units:
    evidence = "measured" if used.evidence == "measured" else "inferred"

    def figure(value: float | None) -> Figure:
        if value is None:
            return Figure(None, "measured" if evidence == "measured" else "inferred", used.reason or "not recorded")
        return Figure(float(value), "measured" if evidence == "measured" else "inferred")

    return Units(
        kind=used.kind,
        total=used.total,
        comm_typical=figure(used.comm_typical),
        comm_peak=figure(used.comm_peak),
        comm_time_share=figure(used.comm_time_share),
        compute_typical=figure(used.compute_typical),
    )


def _launches(state: LiveState, launch: Column) -> pa.Table:
    """A table with the kernels' launch shapes alone."""
    import pyarrow as pa

    distinct, inverse = np.unique(launch, return_inverse=True)
    table = launch_columns([state.names.text(int(code)) for code in distinct])
    return table.take(pa.array(inverse.reshape(-1)))


def _intervals(state: LiveState, rank: int, window: tuple[int, int]) -> pa.Table:
    """The rank's `unit_intervals` that touch the window."""
    import pyarrow as pa

    table = state.tables["unit_intervals"]
    at = np.flatnonzero(
        (table["rank"] == rank) & (table["end_ns"] > window[0]) & (table["start_ns"] < window[1]) & (table["unit"] >= 0)
    )

    def texts(column: str, unknown: str | None) -> pa.Array:
        distinct, inverse = np.unique(table[column][at], return_inverse=True)
        told = pa.array([unknown if code < 0 else state.names.text(int(code)) for code in distinct], pa.string())
        return told.take(pa.array(inverse.reshape(-1)))

    return pa.table(
        {
            "rank": table["rank"][at],
            "device": texts("device", None),
            "unit": table["unit"][at],
            "role": texts("role", "other"),
            "start_ns": table["start_ns"][at],
            "end_ns": table["end_ns"][at],
        }
    )


def all_units(rows: Sequence[Units]) -> Units | None:
    """Several ranks as one: the median rank's typical counts, the highest peak, the share of all units' time.

    Ranks on the CPU backend share the host's cores, so their shares add up; devices have units of their own.
    """
    known = [row for row in rows if row.comm_typical.value is not None]
    if not known:
        return rows[0] if rows else None
    if len(known) == 1:
        return known[0]
    shares = [row.comm_time_share.value for row in known if row.comm_time_share.value is not None]
    share = known[0].comm_time_share
    if shares:
        whole = sum(shares) if known[0].kind == "core" else sum(shares) / len(shares)
        share = Figure(min(whole, 1.0), "derived")
    return Units(
        kind=known[0].kind,
        total=known[0].total,
        comm_typical=_middle([row.comm_typical for row in known]),
        comm_peak=max((row.comm_peak for row in known), key=lambda figure: figure.value or 0),
        comm_time_share=share,
        compute_typical=_middle([row.compute_typical for row in known]),
    )


def _middle(figures: Sequence[Figure]) -> Figure:
    known = sorted((figure for figure in figures if figure.value is not None), key=lambda figure: figure.value or 0)
    return known[(len(known) - 1) // 2] if known else figures[0]
