"""Kernels of NVIDIA GPUs from CUPTI, through the C library (collectors/native/cupti.c). Not yet run on a GPU."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

MAJORS = ("13", "12")
"""CUDA versions whose CUPTI the C library reads."""

_TOOLKIT = "/usr/local/cuda/extras/CUPTI/lib64"
_PATHS_BYTES = 4000


class _Facts(ctypes.Structure):
    """`struct cupti_facts` of collectors/native/cupti.h."""

    _fields_ = (
        ("since_ns", ctypes.c_int64),
        ("clock_error_ns", ctypes.c_int64),
        ("clock_readings", ctypes.c_uint64),
        ("records", ctypes.c_uint64),
        ("lost", ctypes.c_uint64),
        ("untimed", ctypes.c_uint64),
        ("unjoined", ctypes.c_uint64),
        ("devices", ctypes.c_uint64),
        ("version", ctypes.c_uint32),
        ("whole_apis", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Facts:
    """since_ns: recording since, on CLOCK_MONOTONIC, 0 where it is off
    clock_error_ns: of CUPTI's clock against CLOCK_MONOTONIC, as far as can be measured from the host
    lost: records that found no room; untimed: of work without times; unjoined: of work whose launch was not seen
    devices: that have run something; whole_apis: this CUPTI can only record all calls, not launches alone
    """

    since_ns: int
    clock_error_ns: int
    records: int
    lost: int
    untimed: int
    unjoined: int
    devices: tuple[int, ...]
    version: int
    whole_apis: bool


class Cupti:
    """The C library's side of CUPTI; calls give up the GIL, as CUPTI may wait for other threads."""

    def __init__(self, library: str) -> None:
        """Raises OSError where the library cannot be loaded, AttributeError where it was built without this."""
        lib = ctypes.CDLL(library)
        lib.moescope_device_allow.argtypes, lib.moescope_device_allow.restype = (ctypes.c_char_p, ctypes.c_int), None
        lib.moescope_device_problem.restype = lib.moescope_device_library.restype = ctypes.c_char_p
        lib.moescope_device_facts.argtypes, lib.moescope_device_facts.restype = (ctypes.POINTER(_Facts),), None
        lib.moescope_device_end.restype = None
        self._lib = lib

    def allow(self, paths: list[str], *, at_once: bool) -> None:
        """Says that kernels are wanted. paths: libraries to try; at_once: as soon as CUDA starts"""
        kept, size = [], 0
        for path in paths:
            size += len(path) + 1
            if size < _PATHS_BYTES:
                kept.append(path)
        self._lib.moescope_device_allow("\n".join(kept).encode(), int(at_once))

    def begin(self) -> str:
        """Records from now on; why not, where that cannot be."""
        return "" if self._lib.moescope_device_begin() == 0 else self.problem()

    def problem(self) -> str:
        """Why recording did not begin; empty where it did, or nobody tried."""
        return (self._lib.moescope_device_problem() or b"").decode("utf-8", "replace")

    def end(self) -> None:
        """Stops, with everything written."""
        self._lib.moescope_device_end()

    def library(self) -> str:
        """The libcupti in use."""
        return (self._lib.moescope_device_library() or b"").decode("utf-8", "replace")

    def facts(self) -> Facts:
        found = _Facts()
        self._lib.moescope_device_facts(ctypes.byref(found))
        return Facts(
            since_ns=found.since_ns,
            clock_error_ns=found.clock_error_ns,
            records=found.records,
            lost=found.lost,
            untimed=found.untimed,
            unjoined=found.unjoined,
            devices=tuple(number for number in range(64) if found.devices >> number & 1),
            version=found.version,
            whole_apis=bool(found.whole_apis),
        )


def candidates(torch: Any) -> list[str]:
    """Where this process's libcupti may be, the best first: torch's own CUDA version, from its own packages."""
    cuda = str(getattr(getattr(torch, "version", None), "cuda", None) or "").partition(".")[0]
    majors = [cuda] if cuda in MAJORS else []
    majors += [major for major in MAJORS if major not in majors]
    roots = [os.path.dirname(os.path.dirname(str(getattr(torch, "__file__", "") or ""))), *sys.path]
    roots = [root for root in dict.fromkeys(roots) if os.path.isdir(os.path.join(root, "nvidia"))]
    found = []
    for major in majors:
        name = f"libcupti.so.{major}"
        folders = [os.path.join(root, "nvidia", part, "lib") for root in roots for part in ("cuda_cupti", f"cu{major}")]
        paths = [os.path.join(folder, name) for folder in (*folders, _TOOLKIT)]
        found += [path for path in paths if os.path.isfile(path)]
        found.append(name)  # wherever the loader looks
    return found
