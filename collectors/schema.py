"""What a recording holds: its tables, their columns and units, and the names of its files.

The one contract between who writes a recording (`collectors`) and who reads it (`profiler`). Times are integer
nanoseconds since the epoch; units stand in the column names; a null means "not known", never zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pyarrow as pa

RECORDING_VERSION: Final = 1
META_FILE: Final = "meta.json"
SEGMENT_SUFFIX: Final = ".arrows"

EVIDENCE: Final = ("measured", "derived", "inferred", "modelled")
"""Every figure's label: a counter or timestamp, arithmetic on such, a guess from shapes or names, a formula."""

KINDS: Final = ("compute", "comm", "memory", "fused", "unknown")


THROTTLED: Final = (
    "power cap",
    "hardware slowdown",
    "thermal (software)",
    "thermal (hardware)",
    "power brake",
    "board limit",
    "reliability",
)
"""Words of `device_samples.throttle` that mean a clock below what was asked for; the others are settings, or rest."""

DEVICE_SOURCE: Final = "cupti"
"""`windows.source` of windows that tell of GPUs alone: the host's operators were not recorded in them."""


@dataclass(frozen=True)
class Column:
    """One column: `type` is a pyarrow type's name; `doc` says what it holds and in which unit."""

    name: str
    type: str
    doc: str


def _columns(*rows: tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


TABLES: Final[dict[str, tuple[Column, ...]]] = {
    "kernels": _columns(
        ("rank", "int32", "rank of the process"),
        ("device", "string", "device the kernel ran on: `cuda:0`, or `cpu` (one a process) on the CPU backend"),
        ("stream", "string", "CUDA stream, or on the CPU backend the thread: `main`, `pt_gloo_runloop 4711`"),
        (
            "name",
            "string",
            "kernel name; on the CPU backend the leaf operator, `aten::mm`, `gloo:all_to_all`, or `compiled graph …`",
        ),
        ("kind", "string", "what the source itself knows (`comm`, `memory`), else null: the classifier decides"),
        ("start_ns", "int64", "start, ns since the epoch"),
        ("dur_ns", "int64", "duration, ns"),
        (
            "correlation",
            "int64",
            "launch id, or the id of its call, which is in `collectives` where it is known; null where there is none",
        ),
        ("phase_id", "int64", "`phases.id` of the innermost phase around the launch; null outside any phase"),
        ("grid", "string", "launch grid `x,y,z`; null on the CPU backend"),
        ("block", "string", "thread block `x,y,z`; null on the CPU backend"),
        ("registers", "int32", "registers a thread; null on the CPU backend"),
        ("shared_bytes", "int64", "shared memory a block, bytes; null on the CPU backend"),
        (
            "shapes",
            "string",
            "operand shapes, `64,128;128,256`, a plain value as `=True`; null where not recorded",
        ),
        ("flops", "int64", "floating-point operations, of imports derived from operands; null where not known"),
        ("bytes", "int64", "bytes moved, of imports derived from operands where not told; null where not known"),
        ("dtype", "string", "operand type of a matrix product (`bf16`, `fp8_e4m3`); null where not known"),
        ("evidence", "string", "label of the times"),
        ("op", "string", "operator whose call launched it, `aten::addmm`; null where not known"),
        ("op_call", "int64", "that call, unique in a rank: one call can launch several; null where not known"),
        ("graph_node", "int64", "node of a CUDA graph that it is, unique in a process; null where launched by itself"),
    ),
    "synchronisations": _columns(
        ("rank", "int32", "rank of the process"),
        ("device", "string", "device that was waited for, `cuda:0`; null where not known"),
        ("stream", "string", "CUDA stream that was waited for, or that waits for an event; null for a whole device"),
        ("name", "string", "`Stream Synchronize`, `Context Synchronize`, `Event Synchronize`, `Stream Wait Event`"),
        ("start_ns", "int64", "start, ns since the epoch"),
        ("dur_ns", "int64", "duration, ns: nothing needs to run meanwhile, so it is no kernel"),
        ("correlation", "int64", "id of the call that asked for it"),
        ("phase_id", "int64", "`phases.id` of the innermost phase around that call; null outside any phase"),
        ("evidence", "string", "label of the times"),
    ),
    "phases": _columns(
        ("rank", "int32", "rank of the process"),
        ("id", "int64", "unique in a rank"),
        ("parent", "int64", "`id` of the enclosing phase; null at the top"),
        ("name", "string", "`dispatch(F)`, `attn(B)`, a `record_function` or NVTX name"),
        ("stage", "string", "`train`, `prefill`, `decode` or `generate`; null where not told"),
        ("step", "int64", "step number; null where not told"),
        ("micro_batch", "int32", "micro-batch; null where not told"),
        ("layer", "int32", "layer; null where not told"),
        ("direction", "string", "`F` forward, `B` input gradient, `W` weight gradient; null where not told"),
        ("thread", "string", "thread that was inside it"),
        ("start_ns", "int64", "start, ns since the epoch"),
        ("dur_ns", "int64", "duration, ns"),
    ),
    "steps": _columns(
        ("rank", "int32", "rank of the process"),
        ("step", "int64", "step number"),
        ("stage", "string", "`train`, `prefill`, `decode` or `generate`; null where not told"),
        ("source", "string", "what named it: `emit`, `optimizer`, `profiler_step`"),
        ("start_ns", "int64", "start, ns since the epoch"),
        ("dur_ns", "int64", "duration, ns"),
    ),
    "collectives": _columns(
        ("rank", "int32", "rank of the process"),
        (
            "call",
            "int64",
            "unique in a rank; in the order of their issue, those that C++ issued in that of their execution",
        ),
        (
            "sequence",
            "int64",
            "place among its group's collectives, of a call that C++ issued: such calls are recorded in windows alone; "
            "null for all others, which are recorded without gaps",
        ),
        ("op", "string", "`all_to_all`, `all_reduce`, `all_gather`, `reduce_scatter`, `broadcast`, `send`, `recv` …"),
        ("group", "string", "name of the process group"),
        ("group_ranks", "string", "its global ranks, `0,1`"),
        ("peer", "int32", "global rank of the other side of a `send` or `recv`; null where not told, and for all else"),
        ("backend", "string", "`gloo`, `nccl` …"),
        ("dtype", "string", "element type sent"),
        (
            "bytes",
            "int64",
            "bytes of this rank's operand, where they do not tell what goes to whom; null where not known",
        ),
        ("sent_bytes", "int64", "bytes sent to other ranks; null where not known"),
        ("received_bytes", "int64", "bytes received from other ranks; null where not known"),
        ("issue_ns", "int64", "when the call was made, ns since the epoch"),
        ("start_ns", "int64", "when its execution began; equal to issue_ns where that was not seen (evidence derived)"),
        ("dur_ns", "int64", "until completion; null for a call that never completed"),
        ("phase_id", "int64", "`phases.id` of the innermost phase around the call"),
        ("evidence", "string", "label of the times"),
    ),
    "transfers": _columns(
        ("rank", "int32", "rank that recorded it (the source)"),
        ("src", "int32", "sending rank"),
        ("dst", "int32", "receiving rank"),
        ("hop", "string", "`direct`, `internode`, `intranode`"),
        ("op", "string", "operation it belongs to"),
        ("bytes", "int64", "bytes"),
        ("start_ns", "int64", "start of the operation, ns since the epoch"),
        ("dur_ns", "int64", "duration, ns; null where it never completed, or ends on a GPU: `kernels` then tell"),
        ("evidence", "string", "label of the times"),
    ),
    "unit_intervals": _columns(
        ("rank", "int32", "rank whose thread or kernel held the unit"),
        ("device", "string", "`cuda:0`, whose SM it is; null for a core of the host"),
        ("launch", "int64", "launch, or thread id on the CPU backend"),
        ("unit", "int32", "SM, or core on the CPU backend"),
        ("role", "string", "`compute`, `comm` or `other`"),
        ("start_ns", "int64", "start, ns since the epoch"),
        ("end_ns", "int64", "end, ns since the epoch"),
        ("evidence", "string", "label of the times"),
    ),
    "link_samples": _columns(
        ("host", "string", "host"),
        ("link", "string", "`lo`, `eth0`, `mlx5_0/1`; of `cuda:0`: `nvlink0.3` is its NVLink 3, `pcie0` its PCIe"),
        ("t_ns", "int64", "time of the sample, ns since the epoch"),
        ("tx_bytes", "int64", "bytes sent, running total"),
        ("rx_bytes", "int64", "bytes received, running total"),
        ("peak_bytes_per_s", "int64", "line rate in one direction; null where the device does not tell"),
    ),
    "device_samples": _columns(
        ("host", "string", "host"),
        ("device", "string", "`cuda:0`, `cpu` for the whole host, `cpu/4711` for one process"),
        ("t_ns", "int64", "time of the sample, ns since the epoch"),
        ("tensor_active", "float64", "share of cycles with a matrix unit active, 0..1; null on the CPU backend"),
        ("sm_active", "float64", "share of units busy, 0..1 (cores on the CPU backend)"),
        ("occupancy", "float64", "share of resident warps, 0..1; null on the CPU backend"),
        ("dram_active", "float64", "share of memory bandwidth in use, 0..1; null where not known"),
        ("power_w", "float64", "power, W; null where not known"),
        (
            "clock_hz",
            "int64",
            "clock, Hz; of cores as it was asked for last, some seconds ago at most; null where not known",
        ),
        ("memory_bytes", "int64", "memory in use, bytes"),
        ("memory_total_bytes", "int64", "memory there is, bytes"),
        ("span_ns", "int64", "time that the shares and rates of a GPU's counters are means over; null where none are"),
        ("hmma_active", "float64", "share of cycles with HMMA, the tensor cores' floating-point pipe, 0..1; GPUs only"),
        ("imma_active", "float64", "the same for IMMA, integers"),
        ("dmma_active", "float64", "the same for DMMA, float64"),
        ("dfma_active", "float64", "the same for DFMA, float64"),
        ("fp64_active", "float64", "share of cycles with float64 outside of tensor cores, 0..1; GPUs only"),
        ("fp32_active", "float64", "the same for float32"),
        ("fp16_active", "float64", "the same for float16"),
        ("integer_active", "float64", "the same for integers"),
        ("fp8_ops_per_s", "float64", "operations of tensor cores on FP8, operations/s; null where no counter tells"),
        ("nvlink_tx_bytes_per_s", "float64", "sent over all NVLinks, bytes/s; null where not known"),
        ("nvlink_rx_bytes_per_s", "float64", "received over all NVLinks, bytes/s; null where not known"),
        ("pcie_tx_bytes_per_s", "float64", "sent over PCIe by the GPU, bytes/s; null where not known"),
        ("pcie_rx_bytes_per_s", "float64", "received over PCIe by the GPU, bytes/s; null where not known"),
        ("gpu_busy", "float64", "share of time with any kernel on the GPU, 0..1 (NVML utilisation): not how many SMs"),
        ("memory_busy", "float64", "share of time with any access to its memory, 0..1: not how much bandwidth"),
        ("memory_clock_hz", "int64", "clock of the GPU's memory, Hz; null where not known"),
        ("temperature_c", "float64", "temperature of the GPU, degrees Celsius; null where not known"),
        (
            "throttle",
            "string",
            "what holds the clock, `power cap, thermal (hardware)`; empty where nothing does, null where not known",
        ),
        ("ecc_corrected", "int64", "ECC errors corrected since the driver was loaded; null where not known"),
        ("ecc_uncorrected", "int64", "ECC errors not corrected since the driver was loaded; null where not known"),
        ("uuid", "string", "which GPU it is, `GPU-…`; null on the CPU backend"),
    ),
    "experts": _columns(
        ("rank", "int32", "rank that counted"),
        ("t_ns", "int64", "when, ns since the epoch"),
        ("step", "int64", "step number; null where not told"),
        ("stage", "string", "stage; null where not told"),
        ("layer", "int32", "layer"),
        ("expert", "int32", "expert, numbered over all ranks"),
        ("tokens", "int64", "tokens that this rank routed to it"),
    ),
    "quantisation": _columns(
        ("rank", "int32", "rank that counted"),
        ("t_ns", "int64", "when, ns since the epoch"),
        ("step", "int64", "step number; null where not told"),
        ("tensor", "string", "which tensor: `mlp.up.x`"),
        ("format", "string", "`e4m3 1x128`, `e4m3 128x128` …"),
        ("amax", "float64", "largest magnitude before scaling"),
        ("scale_min", "float64", "smallest scale"),
        ("scale_max", "float64", "largest scale"),
        ("saturated", "int64", "elements clamped to the largest value"),
        ("flushed", "int64", "non-zero elements that became zero"),
        ("nonfinite", "int64", "elements that were not finite before clamping"),
        ("elements", "int64", "elements"),
    ),
    "work": _columns(
        ("rank", "int32", "rank that counted"),
        ("t_ns", "int64", "when, ns since the epoch"),
        ("step", "int64", "step number; null where not told"),
        ("stage", "string", "stage; null where not told"),
        ("phase_id", "int64", "`phases.id` of the phase it belongs to"),
        ("flops", "int64", "floating-point operations of matrix products"),
        ("bytes", "int64", "bytes they read and write"),
        ("dtype", "string", "operand type the model stands for (`fp8_e4m3`, `bf16`)"),
    ),
    "gauges": _columns(
        ("rank", "int32", "rank that told it"),
        ("t_ns", "int64", "when, ns since the epoch"),
        ("stage", "string", "stage; null where not told"),
        ("step", "int64", "step number; null where not told"),
        ("name", "string", "what the value is of: `roofline_time`, `cache_bytes`, whatever a model names"),
        ("value", "float64", "the value"),
        ("unit", "string", "its unit: `s`, `bytes`, `share` (0..1) …"),
        ("evidence", "string", "label of the value"),
    ),
    "windows": _columns(
        ("rank", "int32", "rank"),
        ("source", "string", "`itt`, `kineto`, `cupti`, `import`: where operators and kernels came from"),
        ("start_ns", "int64", "start, ns since the epoch"),
        ("dur_ns", "int64", "duration, ns: figures count time inside windows only"),
    ),
    "log": _columns(
        ("t_ns", "int64", "when, ns since the epoch"),
        ("rank", "int32", "rank; null for what serves the host"),
        ("level", "string", "`info`, `warning`, `error`"),
        ("source", "string", "collector that speaks"),
        ("message", "string", "what happened, and what to do"),
        ("dropped", "int64", "events lost by it; 0 where none"),
    ),
}


@cache
def arrow_schema(table: str) -> pa.Schema:
    """Arrow schema of `table`, with each column's meaning as field metadata under `doc`."""
    import pyarrow as pa

    return pa.schema(
        [pa.field(c.name, pa.type_for_alias(c.type), metadata={"doc": c.doc}) for c in TABLES[table]],
        metadata={"moescope.table": table, "moescope.version": str(RECORDING_VERSION)},
    )


def rank_folder(rank: int) -> str:
    """Folder of a rank's segments inside a recording."""
    return f"rank-{rank:05d}"


def host_folder(host: str) -> str:
    """Folder of the segments that serve a host, not a rank."""
    return f"host-{host}"


def segment_file(table: str, number: int) -> str:
    """File of a table's n-th segment."""
    return f"{table}-{number:06d}{SEGMENT_SUFFIX}"
