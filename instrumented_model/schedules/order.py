"""Which micro-batch runs while another's exchange is under way (arXiv 2412.19437 sections 3.2.1 and 3.4)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from moescope.instrumented_model.schedules.chain import Chain

Schedule = Literal["serial", "overlapped", "interleaved"]


def serial(chains: Sequence[Chain]) -> None:
    """One micro-batch after another; every exchange is waited for at once, so that nothing runs beside it."""
    for chain in chains:
        for pause in chain:
            under_way = pause.waits_for or pause.beside
            if under_way is not None:
                under_way.wait()


def overlapped(chains: Sequence[Chain]) -> None:
    """Micro-batches take turns: one's attention runs during the other's dispatch, one's mlp during the other's combine.

    A turn ends where a chain would wait for an exchange. The order is fixed by the chains alone, so all ranks call
    their exchanges in the same order.
    """
    waiting = deque(chains)
    while waiting:
        chain = waiting.popleft()
        if any(pause.waits_for is not None for pause in chain):  # stops at the first
            waiting.append(chain)


SCHEDULES: dict[str, Callable[[Sequence[Chain]], None]] = {
    "serial": serial,
    "overlapped": overlapped,
    "interleaved": overlapped,
}
"""For chains that all go the same way; where some go forward and some back, `interleaved` has an order of its own."""
