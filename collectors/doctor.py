"""What would be collected on this machine, from which source, and why not the rest: by trying."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moescope.collectors.calibrate import load_peaks
from moescope.collectors.clock import Clock
from moescope.collectors.native import library_path
from moescope.collectors.samplers import Sampler, SamplerUnavailable, make_samplers
from moescope.collectors.samplers.nvml_check import gpu_counters
from moescope.collectors.samplers.nvml_topology import describe_gpus
from moescope.collectors.samplers.pm_sampling.check import pm_sampling
from moescope.collectors.sidecar.target import CUDA_VARIABLE, ITT_VARIABLE, TargetSettings, environment

State = Literal["ok", "fallback", "missing"]


@dataclass(frozen=True)
class Check:
    """One signal: where it would come from here, and what stands in the way of better."""

    signal: str
    state: State
    source: str
    note: str = ""


def examine() -> list[Check]:
    """All signals; takes a second or two, most of it to import torch in a process of its own."""
    probe = _probe_target()
    return [
        *_operators(probe),
        _device_kernels(probe),
        *_samplers(),
        Check("experts, quantisation", "ok", "moescope.collectors.emit", "a model must emit them"),
        _shared_memory(),
        _peaks(),
        Check("GPU counters, links", *gpu_counters()),
        Check("GPU counters, finer", *pm_sampling()),
        _gpu(),
    ]


_PROBE = """
import json, sys
facts = {"injected": "_moescope_agent" in sys.modules}
import torch
facts["torch"] = torch.__version__
facts["distributed"] = torch.distributed.is_available()
agent = sys.modules.get("_moescope_agent")
session = getattr(getattr(agent, "recorder", None), "ring", None)
facts["ring"] = getattr(session, "kind", None)
try:
    from _moescope_agent.windows import IttSource
    source = IttSource(torch)
    before = session.operators()
    source.open(); torch.empty(1).neg(); source.close()
    facts["itt"] = session.operators() > before
except Exception as error:
    facts["itt_error"] = repr(error)
try:
    from _moescope_agent.cupti import Cupti, candidates
    from _moescope_agent.device import _has_gpu
    import os
    paths = candidates(torch)
    facts["gpu"] = _has_gpu(torch)
    facts["cuda"] = getattr(torch.version, "cuda", None)
    paths = [os.environ.get("MOESCOPE_CUPTI") or "", *paths]
    facts["cupti"] = next((path for path in paths if os.path.isfile(path)), "")
    Cupti(os.environ["MOESCOPE_LIBRARY"])
except Exception as error:
    facts["cupti_error"] = repr(error)
print(json.dumps(facts))
"""


def _probe_target() -> dict[str, object]:
    """What a target would find: the agent, torch, ITT."""
    with tempfile.TemporaryDirectory(prefix="moescope-doctor-") as folder:
        settings = TargetSettings("0.02", "", "", "phases", Path(folder))
        env, _ = environment(os.environ, settings)
        command = [sys.executable, "-c", _PROBE]
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return {"error": "importing torch took more than two minutes"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    facts: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return facts


def _operators(probe: dict[str, object]) -> list[Check]:
    if "error" in probe:
        note = f"{probe['error']}; this Python runs moescope, the target's may be another"
        return [Check("operators, phases, communication", "missing", "–", note)]
    found = []
    torch = f"torch {probe['torch']}"
    if probe.get("itt"):
        found.append(Check("operators", "ok", f"ITT into the C library's ring ({torch})"))
    elif library_path() is None:
        note = "moescope was installed without its C library: install a C compiler, then moescope again"
        found.append(Check("operators", "fallback", f"Kineto in windows on the main thread ({torch})", note))
    else:
        other = os.environ.get(ITT_VARIABLE)
        note = f"{ITT_VARIABLE} is set to {other}" if other else str(probe.get("itt_error") or "no ITT event arrived")
        found.append(Check("operators", "fallback", f"Kineto in windows on the main thread ({torch})", note))
    ring = "memory-mapped ring" if probe.get("ring") == "ring" else "append-only file"
    found.append(Check("phases, steps", "ok", f"record_function, NVTX, optimizer steps, emit ({ring})"))
    if probe.get("distributed"):
        found.append(Check("communication", "ok", "ProcessGroup methods, futures, execution ranges"))
    else:
        found.append(Check("communication", "missing", "–", "this torch was built without torch.distributed"))
    note = "python -I, -E and -S, `env -i` and `srun --export=NONE` keep moescope out of a process"
    found.append(Check("injection", "ok" if probe.get("injected") else "missing", "PYTHONPATH", note))
    return found


def _device_kernels(probe: dict[str, object]) -> Check:
    """Which source of GPU kernels a target would have; which it had is in meta.json. Not yet run on a GPU."""
    signal = "GPU kernels"
    if "error" in probe:
        return Check(signal, "missing", "–", "torch cannot be imported in this Python")
    if not probe.get("cuda"):
        return Check(signal, "missing", "–", "this torch was built without CUDA")
    if not probe.get("gpu"):
        return Check(signal, "missing", "–", "no NVIDIA device, or CUDA_VISIBLE_DEVICES hides it")
    if "cupti_error" in probe:
        note = f"CUPTI cannot be used ({probe['cupti_error']}): install a C compiler, then moescope again"
        return Check(signal, "fallback", "PyTorch's profiler in windows on the main thread", note)
    found = str(probe.get("cupti") or "libcupti of the library path")
    other = os.environ.get(CUDA_VARIABLE)
    note = f"{CUDA_VARIABLE} is set to {other}: the first half second may be missing" if other else ""
    return Check(signal, "ok", f"CUPTI activity records ({found}), else PyTorch's profiler in windows", note)


def _samplers() -> list[Check]:
    signals = make_samplers(
        Clock.measure(1), "", lambda _: None, lambda _p, _t: "other", list, ("units", "links", "device")
    )
    return [_first_that_opens(sources) for sources in signals if sources[0].name != "gpu"]


def _first_that_opens(sources: list[Sampler]) -> Check:
    notes: list[str] = []
    for sampler in sources:
        try:
            sampler.open()
        except SamplerUnavailable as error:
            notes.append(f"{sampler.source}: {error}")
        else:
            return Check(sampler.name, "fallback" if notes else "ok", sampler.source, "; ".join(notes))
    return Check(sources[0].name, "missing", "–", "; ".join(notes))


def _shared_memory() -> Check:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        return Check("rings", "fallback", "the recording's folder", f"/dev/shm: {error.strerror}")
    if free < 512 << 20:
        note = f"{free >> 20} MB are free in /dev/shm, 512 are wanted (docker: --shm-size 1g)"
        return Check("rings", "fallback", "the recording's folder", note)
    return Check("rings", "ok", "/dev/shm", f"{free >> 20} MB free")


def _peaks() -> Check:
    if load_peaks() is None:
        return Check("peaks", "missing", "–", "run `moescope calibrate` once: shares of a peak are not shown without")
    return Check("peaks", "ok", "moescope calibrate")


def _gpu() -> Check:
    facts = describe_gpus()
    names = facts.get("gpus")
    if not names:
        reason = str(facts.get("gpus_reason") or "NVML sees no GPU")
        return Check("GPU SMs", "missing", "–", reason)
    note = "SMs of Triton kernels are measured where a model records them (emit.unit_intervals); not yet run on a GPU"
    return Check("GPU SMs", "fallback", f"inferred from launch shapes ({', '.join(dict.fromkeys(names))})", note)


def package_state() -> dict[str, str]:
    """Versions that matter for a report."""
    import moescope

    return {
        "moescope": moescope.__version__,
        "python": sys.version.split()[0],
        "c_library": str(library_path() or "not built"),
    }
