"""Decode steps as a CUDA graph: captured once, then launched as one, with nothing that the host is asked for.

A decode step is many short kernels, and launching each takes the host longer than running it takes the GPU. In a graph
everything has its place: tokens, positions and where they are cached stand in tensors that are filled before each
launch, as many positions are read as there is room for, and the experts' rows stay on the device. So it takes an
exchange and products that wait for no count (`counts_stay`), and a batch of which nobody joins or leaves.

Kernels of a graph share one launch, so that a profiler sees them all in one phase, `replay(F)`. Not yet run on a GPU;
that a step asks the host for nothing, and gives the same tokens when it is replayed operation by operation, is tested.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch

from moescope.collectors import emit
from moescope.instrumented_model import observe
from moescope.instrumented_model.device import ended
from moescope.instrumented_model.gemm import products
from moescope.instrumented_model.gemm.linear import Fp8Linear
from moescope.instrumented_model.inference.roofline import PUBLISHED, parts
from moescope.instrumented_model.inference.steps import InferenceStep
from moescope.instrumented_model.layers.cache import LatentCache, LayerCache, Places
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.layers.rope import table
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.parallel.virtual import VirtualExchange
from moescope.instrumented_model.schedules.chain import MicroBatch, forward
from moescope.instrumented_model.schedules.order import SCHEDULES, Schedule
from moescope.instrumented_model.training.train import report_routing, routed

HELD = PUBLISHED["h200"]
"""How weights and cache are held: in FP8, a byte, and in BF16. Speeds play no part here."""
WARM_UPS = 2
"""Passes before the capture: kernels are compiled, tables made and weights quantised in the first."""


class Capture(Protocol):
    """Makes a graph of what a function has the device do."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do it as it is."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Note what it does; what is returned does the same again, on the same memory."""


class CudaGraph:
    """`Capture` by torch."""

    def warm_up(self, work: Callable[[], None]) -> None:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            work()
        here.wait_stream(aside)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Only what this thread does is no part of a graph: a profiler's threads may ask the driver for something.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
        return graph.replay


def why_not(exchange: Exchange, device: torch.device, fp8: bool) -> str | None:
    """Why steps over `exchange` on `device` cannot be captured; None where they can."""
    if device.type != "cuda":
        return "graphs are a GPU's: use --device cuda"
    if not isinstance(exchange, VirtualExchange):
        return "an exchange between processes waits for how many rows come: use --virtual-ranks"
    if not fp8:
        return "products without FP8 wait for each expert's rows: leave fp8=false out"
    if not products.active().counts_stay:
        return f"products of {products.active().name} wait for each expert's rows: use --gemm triton"
    return None


class GraphedDecode:
    """Decode steps of the same sequences, one token each, as `steps.infer` does them one by one."""

    def __init__(
        self,
        model: Model,
        exchange: Exchange,
        schedule: Schedule,
        cache: LatentCache,
        sequences: list[list[int]],
        room: int,
        capture: Capture | None = None,
    ) -> None:
        """sequences: of each micro-batch, their numbers in `cache`; room: positions of each, at most
        raises: ValueError where steps over this exchange cannot be captured
        """
        reason = why_not(exchange, model.device, model.c.fp8) if capture is None else None
        if reason is not None or not isinstance(exchange, VirtualExchange):
            raise ValueError(f"no graph of these steps: {reason or 'the exchange waits for counts'}")
        self._model, self._exchange, self._cache, self._schedule = model, exchange, cache, schedule
        self._sequences, self._room = sequences, room
        self._capture: Capture = CudaGraph() if capture is None else capture
        self._tokens: list[torch.Tensor] = []
        self._caches: list[list[LayerCache]] = []
        self._batches: list[MicroBatch] = []
        self._replay: Callable[[], None] | None = None
        self._parameters = list(model.parameters())
        self._weights: list[int] = []
        """Versions of the parameters that it was captured with."""
        self._looked_up: list[object] = []

    def __call__(self, tokens: list[torch.Tensor], step: int) -> InferenceStep:
        """tokens: a micro-batch each, [sequences, 1] int64. Raises CacheFull where there is no room for one more."""
        start_ns = emit.clock_ns()
        opened = [self._cache.open(s, [1] * len(s), self._room) for s in self._sequences]
        weights = [p._version for p in self._parameters]
        if self._replay is None or weights != self._weights:
            self._replay, self._weights = self._captured(tokens, opened), weights
            start_ns = emit.clock_ns()
        ends = tuple(layers[0].places.spans.ends for layers in opened)
        with emit.step(step):
            for there, given in zip(self._tokens, tokens, strict=True):
                there.copy_(given)
            for layers, now in zip(self._caches, opened, strict=True):
                _fill(layers[0].places, now[0].places)
            with emit.phase("replay(F)"):
                self._replay()
                served = self._served()
                ended(self._model.device)
                self._tell(ends, served)
            report_routing(self._model, routed(self._batches))
        logits = tuple(mb.result.clone() for mb in self._batches if mb.result is not None)
        return InferenceStep(step, emit.clock_ns() - start_ns, sum(t.numel() for t in tokens), logits, ends, served)

    def _captured(self, tokens: list[torch.Tensor], opened: list[list[LayerCache]]) -> Callable[[], None]:
        """A graph of this step; warming up does the step itself, and does nothing that doing it again would not."""
        self._tokens = [t.clone() for t in tokens]
        own = [_own(layers[0].places) for layers in opened]
        self._caches = [[replace(layer, places=p) for layer in layers] for p, layers in zip(own, opened, strict=True)]
        self._exchange.counts_stay = True
        try:
            with torch.no_grad(), emit.phase("capture"), observe.silent():
                for _ in range(WARM_UPS):
                    self._capture.warm_up(self._pass)
                replay = self._capture.capture(self._pass)
        finally:
            self._exchange.counts_stay = False
        # What a pass looks up, and a graph reads where it was: kept as long as the graph.
        linears = [m.quantised for m in self._model.modules() if isinstance(m, Fp8Linear)]
        self._looked_up = [linears, table(self._room, self._model.c.d_rope, self._model.device)]
        return replay

    def _pass(self) -> None:
        self._batches = [MicroBatch(m, t, caches=self._caches[m]) for m, t in enumerate(self._tokens)]
        SCHEDULES[self._schedule]([forward(self._model, self._exchange, mb) for mb in self._batches])

    def _served(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Rows of each expert, of all layers and micro-batches brought over at once."""
        counts = [c for mb in self._batches for c in mb.served if isinstance(c, torch.Tensor)]
        rows = iter(torch.stack(counts).tolist() if counts else [])
        return tuple(tuple(tuple(next(rows)) for _ in mb.served) for mb in self._batches)

    def _tell(self, ends: tuple[tuple[int, ...], ...], served: tuple[tuple[tuple[int, ...], ...], ...]) -> None:
        """The work of a step, by formula, whose bytes leave activations out: nobody counts inside a graph."""
        done: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0])
        for of_batch, counts in zip(ends, served, strict=True):
            for part in parts(self._model.c, HELD, of_batch, counts):
                done[part.dtype][0] += part.flops
                done[part.dtype][1] += part.weight_bytes + part.cache_bytes
        for dtype, (flops, moved) in done.items():
            emit.work(flops=int(flops), bytes=int(moved), dtype=dtype)


def _own(places: Places) -> Places:
    """The same in memory of its own."""
    return replace(
        places,
        write_to=places.write_to.clone(),
        read_from=places.read_from.clone(),
        positions=places.positions.clone(),
        beyond=_beyond(places),
    )


def _fill(there: Places, now: Places) -> None:
    """Puts where this step's tokens lie into the graph's tensors."""
    there.write_to.copy_(now.write_to)
    there.read_from.copy_(now.read_from)
    there.positions.copy_(now.positions)
    assert there.beyond is not None
    there.beyond.copy_(_beyond(now))


def _beyond(places: Places) -> torch.Tensor:
    """[sequences, longest] bool, also where no sequence is shorter."""
    if places.beyond is not None:
        return places.beyond.clone()
    return torch.zeros(len(places.last), places.longest, dtype=torch.bool, device=places.last.device)
