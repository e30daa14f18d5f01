"""What the analysis says of a rank's machine as JSON-ready values: units, their budget, use of the matrix units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moescope.profiler.decode.answer import decode_json, most_tokens
from moescope.profiler.decode.steps import decode_steps, graph_launches
from moescope.profiler.hardware.table import Hardware, hardware_of
from moescope.profiler.labels import labels_in
from moescope.profiler.overlap.sweep import DeviceKernels, Sweep
from moescope.profiler.roofline.answer import bound_json, device_roofline, roofline_json
from moescope.profiler.roofline.matrix_use import matrix_use
from moescope.profiler.units.budget import budget_json, unit_budget
from moescope.profiler.units.held import UnitAnswer, UnitUse, unit_answer

if TYPE_CHECKING:
    from moescope.profiler.source import Source

_UNIT_KEYS: Final = (
    "total", "comm_typical", "comm_at_most", "comm_peak", "comm_time_share", "compute_typical", "compute_at_most",
    "compute_peak", "compute_time_share", "shape_share",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MachineAnswer:
    """keys: of a rank's entry in the answer; bounds: what bounds each class and kind of `operators`"""

    keys: dict[str, Any]
    bounds: dict[tuple[str, str], dict[str, Any]]


def machine_answer(source: Source, device: DeviceKernels, swept: Sweep) -> MachineAnswer:
    """`units`, `sm_budget`, `matrix_use` and `roofline` of one device."""
    import pyarrow as pa

    hardware = hardware_of(source.meta, device.rank, device.device, len(source.ranks()))
    kernels = source.table("kernels")
    units = unit_answer(device, swept, kernels, source.table("unit_intervals"), hardware)
    launched = kernels.select(["name", "correlation"]).take(pa.array(device.rows))
    names, correlations = labels_in(launched.column("name")), launched.column("correlation").fill_null(-1).to_numpy()
    steps = decode_steps(device, names, correlations, source.table("steps"), source.table("phases"))
    roofline = device_roofline(device, swept, kernels, hardware, names, most_tokens(device, steps, _world(source)))
    keys = {
        **_named(hardware, device.device),
        "units": _units(units.use),
        **_budget(units, swept),
        "matrix_use": matrix_use(source, device, swept, roofline),
        **roofline_json(roofline),
        **decode_json(source, device, swept, names, steps, roofline, graph_launches(device, correlations)),
    }
    return MachineAnswer(keys, {(one.operator, one.kind): bound_json(one) for one in roofline.classes})


def _named(hardware: Hardware, device: str) -> dict[str, Any]:
    """`hardware`, what the device is called by its maker."""
    if hardware.name not in ("", device, "this CPU"):
        return {"hardware": hardware.name}
    return {"hardware": None, "hardware_reason": hardware.reason or "the source does not name it"}


def _world(source: Source) -> int:
    """Ranks of the run: as the source tells, at least those it holds."""
    told = [entry.get("world_size") for entry in source.meta.get("ranks") or () if isinstance(entry, dict)]
    return max([len(source.ranks()), *(size for size in told if isinstance(size, int))])


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
