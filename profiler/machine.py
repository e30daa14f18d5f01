"""What the analysis says of a rank's machine as JSON-ready values: units, their budget, use of the matrix units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from moescope.profiler.overlap import DeviceKernels, Sweep, counted_ns
from moescope.profiler.roofline.hardware import Hardware, hardware_of
from moescope.profiler.unit_budget import budget_json, unit_budget
from moescope.profiler.units import UnitAnswer, UnitUse, unit_answer

if TYPE_CHECKING:
    from moescope.profiler.source import Source

_UNIT_KEYS: Final = (
    "total", "comm_typical", "comm_at_most", "comm_peak", "comm_time_share", "compute_typical", "compute_at_most",
    "compute_peak", "compute_time_share", "shape_share",
)  # fmt: skip


def machine_answer(source: Source, device: DeviceKernels, swept: Sweep) -> dict[str, Any]:
    """`units`, `sm_budget` and `matrix_use` of one device."""
    hardware = hardware_of(source.meta, device.rank, device.device, len(source.ranks()))
    units = unit_answer(device, swept, source.table("kernels"), source.table("unit_intervals"), hardware)
    return {
        "units": _units(units.use),
        **_budget(units, swept),
        "matrix_use": _matrix_use(source, device, swept, hardware),
    }


def _units(units: UnitUse) -> dict[str, Any]:
    answer: dict[str, Any] = {"kind": units.kind}
    for key in _UNIT_KEYS:
        value = getattr(units, key)
        answer[key] = value
        if value is None:
            answer[f"{key}_reason"] = units.reason or "no kernel of this kind with a known launch shape"
    return answer | {"evidence": units.evidence}


def _budget(units: UnitAnswer, swept: Sweep) -> dict[str, Any]:
    total = units.use.total
    budget = unit_budget(units.steps, swept, total) if units.steps is not None and total else None
    if budget is not None:
        return {"sm_budget": budget_json(budget, units.use.evidence)}
    reason = units.use.reason or ("nothing was recorded" if units.steps is not None else "launch shapes are missing")
    return {"sm_budget": None, "sm_budget_reason": reason}


def _matrix_use(source: Source, device: DeviceKernels, swept: Sweep, hardware: Hardware) -> dict[str, Any]:
    """Achieved FLOP/s over the peaks of the operands' types: time at peak, over the counted time (derived).

    On the CPU backend a rank's peak is its part of the host's, as on the dashboard.
    """
    from moescope.profiler.intervals import covered_within
    from moescope.profiler.roofline.operands import dtype_named

    counted: dict[str, int] = {}
    work = source.table("work")
    if work.num_rows:
        times = work.column("t_ns").to_numpy()
        own = (work.column("rank").to_numpy() == device.rank) & (covered_within(swept.recorded, times, times + 1) > 0)
        _add(counted, work.filter(own))
    if not counted:
        import pyarrow as pa

        table = source.table("kernels").select(["flops", "dtype"]).take(pa.array(device.rows))
        _add(counted, table.filter(counted_ns(device.starts, device.ends, swept.recorded) > 0))
    if not counted or not swept.span_ns:
        return _no_use(None, "no operations are recorded: see moescope.collectors.emit.work")
    achieved = sum(counted.values()) / swept.span_ns * 1e9
    at_peak = 0.0
    for dtype, flops in counted.items():
        peak = hardware.peak(dtype_named(dtype) or dtype)
        if peak is None:
            return _no_use(achieved, _no_peak(hardware, dtype))
        at_peak += flops / peak.value
    return {"achieved": at_peak * 1e9 / swept.span_ns, "flops_per_s": achieved, "evidence": "derived"}


def _no_peak(hardware: Hardware, dtype: str) -> str:
    if hardware.reason:
        return hardware.reason
    return f"no peak of {hardware.name} for {dtype or 'products of an unnamed type'} is known"


def _no_use(flops_per_s: float | None, reason: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"achieved": None, "achieved_reason": reason, "flops_per_s": flops_per_s}
    if flops_per_s is None:
        answer["flops_per_s_reason"] = reason
    return answer | {"evidence": "derived"}


def _add(counted: dict[str, int], table: Any) -> None:
    for flops, dtype in zip(table.column("flops").to_pylist(), table.column("dtype").to_pylist(), strict=True):
        if flops:
            counted[dtype or ""] = counted.get(dtype or "", 0) + flops
