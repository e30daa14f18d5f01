"""What is asked of a GPU's performance monitors: columns of `device_samples`, and the metrics that may tell them.

Which metrics a chip has for PM sampling, and which go together, depends on the chip and on CUPTI, so each column has
several, the best first, and what fits into one pass beside the columns before it is taken. Not yet run on a GPU; names
and passes are those that CUPTI 12.6 to 13.1 tell for the chip GH100 (`python -m benchmarks.pm_metrics`). None of them
counts FP8 operations by PM sampling: `sm__ops_path_tensor_src_fp8` is there for replayed ranges of kernels alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

_PERCENT: Final = ".avg.pct_of_peak_sustained_elapsed"
_PER_SECOND: Final = ".sum.per_second"
_TPC: Final = "TPC.TriageCompute."

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "tensor_active": (
        f"{_TPC}sm__pipe_tensor_cycles_active_realtime{_PERCENT}",
        f"sm__pipe_tensor_cycles_active_realtime{_PERCENT}",
        f"sm__pipe_tensor_cycles_active{_PERCENT}",
    ),
    "sm_active": (f"{_TPC}sm__cycles_active{_PERCENT}", f"sm__cycles_active{_PERCENT}"),
    "dram_active": (
        f"FBSP.TriageCompute.dramc__throughput{_PERCENT}",
        f"dram__throughput{_PERCENT}",
        f"gpu__dram_throughput{_PERCENT}",
    ),
    "fp8_ops_per_s": (f"sm__ops_path_tensor_src_fp8{_PER_SECOND}",),
    "nvlink_tx_bytes_per_s": (f"nvltx__bytes{_PER_SECOND}",),
    "nvlink_rx_bytes_per_s": (f"nvlrx__bytes{_PER_SECOND}",),
    "pcie_tx_bytes_per_s": (f"PCI.TriageCompute.pcie__write_bytes{_PER_SECOND}", f"pcie__write_bytes{_PER_SECOND}"),
    "pcie_rx_bytes_per_s": (f"PCI.TriageCompute.pcie__read_bytes{_PER_SECOND}", f"pcie__read_bytes{_PER_SECOND}"),
    "hmma_active": (f"{_TPC}sm__pipe_tensor_op_hmma_cycles_active_realtime{_PERCENT}",),
    "imma_active": (f"{_TPC}sm__pipe_tensor_op_imma_cycles_active_realtime{_PERCENT}",),
    "occupancy": (f"{_TPC}tpc__warps_active_realtime{_PERCENT}", f"sm__warps_active{_PERCENT}"),
    "fp64_active": (f"{_TPC}sm__pipe_fp64_cycles_active_realtime{_PERCENT}", f"sm__pipe_fp64_cycles_active{_PERCENT}"),
}
"""By column of `device_samples`, in the order of worth: metrics that tell it, a percentage or a rate by their ending.

Bytes over NVLink and PCIe include what their protocols add. `write` is what the GPU sends over PCIe, `read` what it
receives (NVIDIA Nsight Systems user guide, GPU metrics).
"""


@dataclass(frozen=True)
class Chosen:
    """metrics: by column, what is sampled; refused: by column, why it is not"""

    metrics: dict[str, str]
    refused: dict[str, str]


def choose(passes: Callable[[Sequence[str]], int]) -> Chosen:
    """As many columns as one pass holds.

    passes: how many passes some metrics need together, 0 where the chip does not have the last of them
    """
    metrics: dict[str, str] = {}
    refused: dict[str, str] = {}
    for column, names in COLUMNS.items():
        most = 0
        for name in names:
            needed = passes([*metrics.values(), name])
            most = max(most, needed)
            if needed == 1:
                metrics[column] = name
                break
        else:
            why = "does not go into one pass with the others" if most > 1 else "this chip and CUPTI do not sample it"
            refused[column] = why
    return Chosen(metrics, refused)


def in_our_unit(metric: str, value: float) -> float | None:
    """A metric's value as its column has it: percentages as shares, 0..1; None for what is none."""
    if metric.endswith(_PERCENT):
        # Roll-ups over units that are not read at the very same moment come out a little over 100 now and then.
        return min(value / 100, 1.0) if 0 <= value <= 105 else None
    return value if 0 <= value < float("inf") else None
