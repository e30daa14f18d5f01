"""The training schedule of the report: a forward chunk of one micro-batch beside a backward chunk of another.

arXiv 2412.19437 section 3.2.1, figure 4, and the profile that DeepSeek published: F forward, B gradient of inputs,
W gradient of weights. `ORDER` is that of the launches there. A GPU's host launches ahead, so each dispatch or combine
runs as soon as the one chunk that it hangs on has ended, beside whatever computes by then. Here the thread that would
launch computes, so an exchange is begun at that very point; computation and communication each keep their order:

    computation     attn(F)     mlp(B)  mlp(W)  mlp(F)       attn(B)  attn(W)
    communication   combine(B)  dispatch(F)  dispatch(B)     combine(F)
"""

from __future__ import annotations

from collections.abc import Sequence

from moescope.instrumented_model.schedules.chain import Chain, Next

ORDER = (
    "combine(B)",
    "attn(F)",
    "mlp(B)",
    "dispatch(F)",
    "dispatch(B)",
    "mlp(W)",
    "mlp(F)",
    "attn(B)",
    "attn(W)",
    "combine(F)",
)
"""Of one layer forward and one backward."""
COMPUTATION = tuple(chunk for chunk in ORDER if chunk.startswith(("attn", "mlp")))
COMMUNICATION = tuple(chunk for chunk in ORDER if chunk not in COMPUTATION)


class _Track:
    """A chain and the chunk it comes to next; None when it is done."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.next: Next | None = next(chain, None)
        self._begin()

    def advance(self) -> None:
        """Run the next chunk, when what it needs has come, and begin the exchange that hangs on it."""
        if self.next is not None and self.next.waits_for is not None:
            self.next.waits_for.wait()
        self.next = next(self._chain, None)
        self._begin()

    def _begin(self) -> None:
        while self.next is not None and self.next.chunk in COMMUNICATION:
            self.next = next(self._chain, None)

    def advance_if(self, chunk: str) -> None:
        if self.next is not None and self.next.chunk == chunk:
            self.advance()

    def finish(self) -> None:
        while self.next is not None:
            self.advance()


def beside(forward: Chain, backward: Chain) -> None:
    """A micro-batch's forward beside another's backward, layer by layer; a dense layer leaves out what it has not.

    Heads stand before the layers that follow them (multi-token prediction), and at the end.
    """
    back, ahead = _Track(backward), _Track(forward)
    while ahead.next is not None and back.next is not None:
        ahead.advance_if("head(F)")
        for chunk in COMPUTATION:
            back.advance_if(chunk)
            ahead.advance_if(chunk)
    back.finish()
    ahead.finish()


def interleaved(ahead: Sequence[Chain], back: Sequence[Chain]) -> None:
    """Micro-batch i + 1 forward beside i backward; the first forward and the last backward run alone.

    The order is fixed by the chains alone, so all ranks call their exchanges in the same order; and micro-batches go
    back one after another, so gradients add up in the order of the serial schedule, to the same bits.

    ahead, back: [micro-batches], chains not yet begun
    """
    _Track(ahead[0]).finish()
    for forward, backward in zip(ahead[1:], back, strict=False):
        beside(forward, backward)
    _Track(back[-1]).finish()
