"""How many blocks of a launch one execution unit holds at once, and how many units the launch takes.

After NVIDIA's occupancy calculator (CUDA C++ Best Practices Guide, "Occupancy"): registers go to a warp in steps of
256, warps to the four partitions of a unit, shared memory to a block in steps of 128 bytes with what the system takes.
"""

from __future__ import annotations

from typing import Final

from moescope.profiler.hardware.table import UnitLimits

_REGISTER_STEP: Final = 256
_PARTITIONS: Final = 4
_SHARED_STEP: Final = 128


def resident_ctas(
    limits: UnitLimits | None, threads: int | None, registers: int | None, shared_bytes: int | None
) -> int | None:
    """Blocks that one unit holds at once, at least one, for they did run; None where nothing is known to bound it.

    threads, shared_bytes: of a block; registers: of a thread; each None where not told
    """
    if limits is None or threads is None or threads <= 0:
        return None
    warps = -(-threads // limits.warp)
    bounds = [limits.threads // (warps * limits.warp)]
    if limits.ctas is not None:
        bounds.append(limits.ctas)
    if limits.registers is not None and registers is not None and registers > 0:
        of_warp = -(-registers * limits.warp // _REGISTER_STEP) * _REGISTER_STEP
        bounds.append(limits.registers // of_warp // _PARTITIONS * _PARTITIONS // warps)
    if limits.shared_bytes is not None and shared_bytes is not None and shared_bytes >= 0:
        of_block = -(-(shared_bytes + limits.reserved_bytes) // _SHARED_STEP) * _SHARED_STEP
        if of_block:
            bounds.append(limits.shared_bytes // of_block)
    return max(min(bounds), 1)


def units_needed(ctas: int, resident: int | None, units: int) -> int:
    """The fewest units that hold the launch at once, all where it does not fit: min(units, ceil(ctas / resident)).

    resident: None where not known; then a block is taken to hold a unit
    """
    return min(units, -(-ctas // (resident or 1)))


def units_spread(ctas: int, units: int) -> int:
    """The most units that it holds at once: blocks go to idle units first, one each, as long as there are such."""
    return min(units, ctas)
