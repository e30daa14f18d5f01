"""The C library alone on the stand-in for libcupti, without torch: `python device_direct.py LIBRARY RING CASE`."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any

from tests.collectors.device_target import LAUNCH, RUNTIME, gpu

u64, u32, text = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_char_p


class Facts(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("since", "error", "readings")),
        *((name, u64) for name in ("records", "lost", "untimed", "unjoined", "devices")),
        *((name, u32) for name in ("version", "whole")),
    )


def launch(told: list[Any], name: bytes, start: int, phase: int | None = None) -> None:
    gpu.stand_in_kernel(name, gpu.stand_in_call(RUNTIME, LAUNCH), 0, 7, start, start + 1000, 0)
    told.append([name.decode(), phase, start])


def main(library: str, ring: str, case: str) -> dict[str, Any]:
    lib = ctypes.CDLL(library)
    lib.moescope_phase_begin.argtypes, lib.moescope_phase_begin.restype = (text, u64), u64
    lib.moescope_phase_end.argtypes = (u64,)
    lib.moescope_device_problem.restype = text
    told: list[Any] = []
    assert lib.moescope_open(ring.encode(), 1 if case == "full" else 8) == 0
    lib.moescope_device_allow(b"", 1)
    if case == "counter":
        gpu.stand_in_counter(2.6)
    if case == "late":
        # The phase is older than the recording of the GPU.
        outer = lib.moescope_phase_begin(b"outer", 0)
        lib.moescope_device_injected()
        launch(told, b"before_any_other_phase", time.monotonic_ns(), outer)
        inner = lib.moescope_phase_begin(b"inner", 0)
        launch(told, b"inside", time.monotonic_ns(), inner)
        lib.moescope_phase_end(inner)
        launch(told, b"between", time.monotonic_ns(), outer)
        lib.moescope_phase_end(outer)
        launch(told, b"outside", time.monotonic_ns())
    elif case == "fork":
        lib.moescope_device_injected()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                opened = lib.moescope_open((ring + ".child").encode(), 4)
                code = 0 if opened == 0 and lib.moescope_device_begin() != 0 and lib.moescope_device_problem() else 2
            finally:
                os._exit(code)
        told.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    else:
        lib.moescope_device_injected()
        if case == "full":
            keep = [f"kernel_{i}".encode() for i in range(2000)]
            for name in keep:
                launch(told, name, time.monotonic_ns())
        elif case == "counter":
            # Longer than the library takes to read the clocks anew.
            keep = [f"kernel_{i}".encode() for i in range(8)]
            for name in keep:
                launch(told, name, time.monotonic_ns())
                time.sleep(0.05)
        else:
            launch(told, b"plain", time.monotonic_ns())
    lib.moescope_device_end()
    facts = Facts()
    lib.moescope_device_facts(ctypes.byref(facts))
    lib.moescope_close()
    return {
        "told": told,
        "problem": lib.moescope_device_problem().decode(),
        "facts": {name: getattr(facts, name) for name, *_ in Facts._fields_},
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
