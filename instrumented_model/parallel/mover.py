"""What copies rows between virtual ranks whose buffers lie in one memory, and adds them up on the way back.

On a GPU kernels do it on a set number of SMs, so that an exchange takes from computation what the report gives it
(arXiv 2412.19437 section 3.2.2); elsewhere plain indexing. Both give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from moescope.instrumented_model import kernels

if TYPE_CHECKING:
    from moescope.instrumented_model.kernels.trace import Trace


class Mover(Protocol):
    """Copies rows between the buffers of ranks.

    sms: of a GPU, that it takes; 0 where it takes none
    """

    sms: int

    def dispatch(
        self, q: torch.Tensor, scale: torch.Tensor | None, source: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """to[i] = q[source[i]], its scales with it.

        q: [n, d] float8_e4m3fn or uint8; scale: [n, tiles] float32; source: [rows] int32, all at least 0
        """

    def combine(self, rows: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        """y[t] = sum over j of rows[slot[t, j]], in float32 in the order of j, rounded once.

        rows: [n, d] bfloat16; slot: [tokens, top_k] int32, all at least 0; returns: [tokens, d] bfloat16
        """


class IndexingMover:
    """`Mover` in plain torch, on any device."""

    sms = 0

    def dispatch(
        self, q: torch.Tensor, scale: torch.Tensor | None, source: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        to = q.view(torch.uint8).index_select(0, source).view(q.dtype)
        return to, None if scale is None else scale.index_select(0, source)

    def combine(self, rows: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        total = rows.new_zeros(len(slot), rows.shape[1], dtype=torch.float32)
        for choice in slot.unbind(1):
            total += rows.index_select(0, choice)
        return total.bfloat16()


class KernelMover:
    """`Mover` by the Triton kernels of `kernels/exchange.py`. Not yet run on a GPU.

    sms: that dispatch and combine take, None for the report's 20; trace: where they leave their records
    """

    def __init__(self, sms: int | None = None, trace: Trace | None = None) -> None:
        from moescope.instrumented_model.kernels import exchange

        self._kernels, self.sms, self._trace = exchange, exchange.SMS if sms is None else sms, trace

    def dispatch(
        self, q: torch.Tensor, scale: torch.Tensor | None, source: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._kernels.dispatch(q, scale, source, sms=self.sms, trace=self._trace)

    def combine(self, rows: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        return self._kernels.combine(rows, slot, sms=self.sms, trace=self._trace)


def mover_for(device: torch.device) -> tuple[Mover, str]:
    """The mover for tensors on `device`, and what to say of it and why."""
    if device.type != "cuda":
        return IndexingMover(), f"copied by indexing, on the {device.type.upper()}"
    reason = kernels.why_not(torch.cuda.current_device() if device.index is None else device.index)
    if reason is not None:
        return IndexingMover(), f"copied by indexing ({reason})"
    mover = KernelMover()
    return mover, f"copied by Triton kernels on {mover.sms} SMs"
