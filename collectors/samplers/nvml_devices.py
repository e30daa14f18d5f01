"""Which GPUs a run sees, under the names that its processes know them by. Not yet run on a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moescope.collectors.samplers.base import NothingThere
from moescope.collectors.samplers.nvml_library import Nvml


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    ordinal: as CUDA numbers those that the run sees; index: as NVML and nvidia-smi number all; handle: NVML's
    """

    ordinal: int
    index: int
    uuid: str
    name: str
    handle: Any

    @property
    def device(self) -> str:
        """As torch and a recording's kernels call it."""
        return f"cuda:{self.ordinal}"


def gpus_of(nvml: Nvml, env: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs that a process with this environment sees, in its order.

    Raises NothingThere where there is none.
    """
    uuids = all_uuids(nvml)
    count = len(uuids)
    handles = [nvml.ask(f"GPU {index}", "nvmlDeviceGetHandleByIndex", index) for index in range(count)]
    chosen = [index for index in visible(uuids, env.get("CUDA_VISIBLE_DEVICES")) if handles[index] is not None]
    if not chosen:
        variable = env.get("CUDA_VISIBLE_DEVICES")
        why = f"CUDA_VISIBLE_DEVICES={variable} leaves none" if count and variable is not None else "NVML sees none"
        raise NothingThere(f"no GPU: {why}")
    found = []
    for ordinal, index in enumerate(chosen):
        name = nvml.ask(f"name of GPU {index}", "nvmlDeviceGetName", handles[index])
        found.append(Gpu(ordinal, index, uuids[index], str(name or "unknown GPU"), handles[index]))
    if len({gpu.name for gpu in found}) > 1 and env.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        nvml.reasons["order of GPUs"] = (
            "this machine has GPUs of several kinds, which CUDA numbers by speed and NVML by bus: figures may be of "
            "another GPU than named unless CUDA_DEVICE_ORDER=PCI_BUS_ID is set"
        )
    return found


def gpus_seen(pid: int, uuids: Sequence[str], root: Path = Path("/")) -> dict[str, str] | None:
    """`cuda:0` … to the UUID of the GPU that the process calls so; None where its environment cannot be read.

    The environment is the one it was started with: a program that sets CUDA_VISIBLE_DEVICES for itself is not seen.
    """
    try:
        entries = (root / f"proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    if entries == [b""]:
        return None  # it has ended
    start = b"CUDA_VISIBLE_DEVICES="
    told = [entry.removeprefix(start).decode(errors="replace") for entry in entries if entry.startswith(start)]
    chosen = visible(uuids, told[0] if told else None)
    return {f"cuda:{ordinal}": uuids[index] for ordinal, index in enumerate(chosen) if uuids[index]}


def all_uuids(nvml: Nvml) -> list[str]:
    """UUIDs of all GPUs as NVML numbers them; empty for one that does not tell."""
    found = []
    for index in range(nvml.ask("number of GPUs", "nvmlDeviceGetCount") or 0):
        handle = nvml.ask(f"GPU {index}", "nvmlDeviceGetHandleByIndex", index)
        uuid = None if handle is None else nvml.ask(f"UUID of GPU {index}", "nvmlDeviceGetUUID", handle)
        found.append(str(uuid or ""))
    return found


def visible(uuids: Sequence[str], variable: str | None) -> list[int]:
    """NVML's numbers of the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; all where it is not set.

    uuids: of all GPUs, `GPU-…`. As CUDA reads it: what follows a number or name that is none is not seen; names may be
    cut short; a MIG device (`MIG-…`) is told by its GPU's UUID in old drivers and by nothing in new ones, so that it
    stands for no GPU here.
    """
    if variable is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for word in (part.strip() for part in variable.split(",")):
        if word.isdecimal():
            named = [int(word)] if int(word) < len(uuids) else []
        else:
            start = word.removeprefix("MIG-").partition("/")[0]
            named = [i for i, uuid in enumerate(uuids) if start.startswith("GPU-") and uuid.startswith(start)]
        if len(named) != 1:
            break
        if named[0] not in found:
            found.append(named[0])
    return found
