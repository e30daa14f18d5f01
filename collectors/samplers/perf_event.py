"""perf_event_open through ctypes: context-switch records of a process tree, a ring buffer a core.

Layout and numbers are those of <linux/perf_event.h>. Available to an ordinary user for processes of their own up to
perf_event_paranoid 2; containers often forbid the system call.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from moescope.collectors.samplers.base import SamplerUnavailable

_SYSCALL: Final = {"x86_64": 298, "aarch64": 241}
_TYPE_SOFTWARE, _COUNT_DUMMY = 1, 9
_SAMPLE_TID, _SAMPLE_TIME, _SAMPLE_CPU = 1 << 1, 1 << 2, 1 << 7
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 1, 1 << 5, 1 << 6
_WATERMARK, _SAMPLE_ID_ALL, _USE_CLOCKID, _CONTEXT_SWITCH = 1 << 14, 1 << 18, 1 << 25, 1 << 26
_CLOCK_MONOTONIC: Final = 1
_FLAG_CLOEXEC: Final = 1 << 3
_ATTR_BYTES: Final = 112
RECORD_LOST, RECORD_SWITCH = 2, 14
_MISC_SWITCH_OUT: Final = 1 << 13
_SAMPLE_ID: Final = struct.Struct("<IIQII")  # pid, tid, time, cpu, reserved
_SWITCH_RECORD: Final = np.dtype("<u4, <u2, <u2, <u4, <u4, <u8, <u4, <u4")
_SWITCH_RECORD.names = ("kind", "misc", "size", "pid", "tid", "t_ns", "core", "reserved")


SWITCH: Final = np.dtype([("pid", "<u4"), ("tid", "<u4"), ("core", "<u4"), ("t_ns", "<i8"), ("leaves", "?")])
"""A thread came onto a core or left it."""

Switches = npt.NDArray[np.void]

TELLS: Final = 0.45
"""Fill of a buffer, as a share, from which on poll(2) tells of it."""


def attribute(watermark: int) -> bytes:
    """perf_event_attr for switch records stamped with CLOCK_MONOTONIC; watermark: bytes from which on poll(2) tells."""
    flags = _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HV | _WATERMARK | _SAMPLE_ID_ALL | _USE_CLOCKID | _CONTEXT_SWITCH
    sample = _SAMPLE_TID | _SAMPLE_TIME | _SAMPLE_CPU
    kind = _TYPE_SOFTWARE, _ATTR_BYTES, _COUNT_DUMMY
    head = struct.pack("<IIQQQQQIIQQ", *kind, 0, sample, 0, flags, watermark, 0, 0, 0)
    # branch_sample_type, sample_regs_user, sample_stack_user, clockid
    return (head + struct.pack("<QQIi", 0, 0, 0, _CLOCK_MONOTONIC)).ljust(_ATTR_BYTES, b"\0")


class SwitchBuffer:
    """The switch records of one process tree on one core. Its file is readable from a fill of `TELLS` on."""

    def __init__(self, pid: int, core: int, pages: int = 128) -> None:
        """Raises SamplerUnavailable where the kernel refuses."""
        number = _SYSCALL.get(platform.machine())
        if number is None:
            raise SamplerUnavailable(f"no perf_event_open known for {platform.machine()}")
        libc = ctypes.CDLL(None, use_errno=True)
        attr = ctypes.create_string_buffer(attribute(int(TELLS * pages * mmap.PAGESIZE)), _ATTR_BYTES)
        self._fd = libc.syscall(number, attr, pid, core, -1, ctypes.c_ulong(_FLAG_CLOEXEC))
        if self._fd < 0:
            raise SamplerUnavailable(_refusal(ctypes.get_errno()))
        try:
            self._map = mmap.mmap(self._fd, (1 + pages) * mmap.PAGESIZE)
        except OSError as error:
            os.close(self._fd)
            raise SamplerUnavailable(
                f"no memory for perf's buffer ({error.strerror}): raise perf_event_mlock_kb"
            ) from None
        self._size = pages * mmap.PAGESIZE
        self.lost = 0

    def fileno(self) -> int:
        """For poll(2)."""
        return int(self._fd)

    def fill(self) -> float:
        """Share of the buffer that waits to be read."""
        head, tail = struct.unpack_from("<QQ", self._map, 1024)
        return float(head - tail) / self._size

    def read(self) -> Switches:
        """Records since the last call, SWITCH."""
        head, tail = struct.unpack_from("<QQ", self._map, 1024)
        data = self._copy(tail, head)
        # Only now may the kernel write over them.
        struct.pack_into("<Q", self._map, 1032, head)
        return self._parse(data)

    def _copy(self, tail: int, head: int) -> bytes:
        base, at, count = mmap.PAGESIZE, tail % self._size, head - tail
        first = min(count, self._size - at)
        return self._map[base + at : base + at + first] + self._map[base : base + count - first]

    def _parse(self, data: bytes) -> Switches:
        if len(data) % _SWITCH_RECORD.itemsize == 0:
            records = np.frombuffer(data, _SWITCH_RECORD)
            if ((records["kind"] == RECORD_SWITCH) & (records["size"] == _SWITCH_RECORD.itemsize)).all():
                found = np.empty(len(records), SWITCH)
                for name in ("pid", "tid", "core", "t_ns"):
                    found[name] = records[name]
                found["leaves"] = (records["misc"] & _MISC_SWITCH_OUT) != 0
                return found
        return self._parse_mixed(data)

    def _parse_mixed(self, data: bytes) -> Switches:
        """Records of several kinds, one after another."""
        found: list[tuple[int, int, int, int, bool]] = []
        at = 0
        while at + 8 <= len(data):
            kind, misc, size = struct.unpack_from("<IHH", data, at)
            if size < 8:
                break
            if kind == RECORD_SWITCH:
                pid, tid, t_ns, core, _ = _SAMPLE_ID.unpack_from(data, at + size - _SAMPLE_ID.size)
                found.append((pid, tid, core, t_ns, bool(misc & _MISC_SWITCH_OUT)))
            elif kind == RECORD_LOST:
                self.lost += struct.unpack_from("<Q", data, at + 16)[0]
            at += size
        return np.array(found, SWITCH)

    def close(self) -> None:
        """Lets go of the buffer."""
        self._map.close()
        os.close(self._fd)


def _refusal(number: int) -> str:
    try:
        with open("/proc/sys/kernel/perf_event_paranoid") as file:
            level = file.read().strip()
    except OSError:
        return "this kernel has no perf events"
    reason = os.strerror(number)
    return (
        f"perf_event_open: {reason} (perf_event_paranoid = {level}): set it to 2 or less, or in a container allow the "
        "system call (docker: --security-opt seccomp=unconfined, or --cap-add PERFMON)"
    )
