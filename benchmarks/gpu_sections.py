"""What `make gpu-check` measures, section by section: python -m benchmarks.gpu_sections [--rehearse] NAME…

Each prints its figures as a line of JSON: name, value, unit. A rehearsal runs the same code on small shapes under
Triton's interpreter, to find what is wrong with it where there is no GPU. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_counters import counters
from benchmarks.gpu_figure import Figure
from benchmarks.gpu_runs import overlap, recorder

if TYPE_CHECKING:
    from benchmarks.gpu_timing import Bench

SHAPES = {
    "query up": (24576, 1536),
    "key, value up": (32768, 512),
    "attention out": (7168, 16384),
    "expert gate, up": (4096, 7168),
    "expert down": (7168, 2048),
    "dense gate, up": (36864, 7168),
}
"""(n, k) of the V3 model's products (arXiv 2412.19437 section 4.2)."""


SPLITS = (4, 8, 12, 16, 20, 24, 32)
"""SMs that are set aside for the exchange."""


Section = Callable[["Bench"], Iterator[Figure]]


def peaks(b: Bench) -> Iterator[Figure]:
    """Roofs as found here: copying within the memory, and BF16 products of the vendor's library."""
    import torch

    source = torch.empty(b.size(1 << 30, 1 << 12), dtype=torch.uint8, device=b.device)
    to = torch.empty_like(source)
    (copy,) = b.seconds(lambda: to.copy_(source))
    yield Figure("copy, read and write", 2 * source.numel() / copy / 1e9, "GB/s")
    n = b.size(8192, 64)
    x, w = b.random(n, n), b.random(n, n)
    (product,) = b.seconds(lambda: x @ w.T)
    yield Figure(f"bf16 product {n}^3", 2 * n**3 / product / 1e12, "TFLOP/s")


def products(b: Bench) -> Iterator[Figure]:
    """Block-scaled FP8 against `F.scaled_mm` and BF16 in the same run, and its error against FP64."""
    import torch

    from moescope.instrumented_model.gemm.backends.scaled_mm import ScaledMm
    from moescope.instrumented_model.kernels.gemm import gemm
    from moescope.instrumented_model.numerics.quantise import Quantised, dequantise

    library, m = ScaledMm(), b.size(4096, 40)
    missing = library.why_not(b.device)
    for name, (n, k) in SHAPES.items():
        n, k = b.size(n, 130), b.size(k, 256)
        x = Quantised(b.e4m3(m, k), b.scales(k // 128, m).T, 1)
        w = Quantised(b.e4m3(n, k), b.scales(-(-n // 128), k // 128), 128)
        plain = b.random(m, k), b.random(n, k)
        works: list[Callable[[], torch.Tensor]] = [
            lambda x=x, w=w: gemm(x.q, x.scale, w.q, w.scale),
            lambda plain=plain: plain[0] @ plain[1].T,
        ]
        if missing is None:
            works.append(lambda x=x, w=w: library.dense(x, w, 128, torch.bfloat16))
        taken = b.seconds(*works)
        for what, seconds in zip(("Triton FP8", "bf16", "F.scaled_mm"), taken, strict=False):
            yield Figure(f"{name} {m}x{n}x{k}, {what}", 2 * m * n * k / seconds / 1e12, "TFLOP/s", "expert" in name)
        few = min(m, 64)
        got = gemm(x.q[:few], x.scale[:few], w.q, w.scale, out_dtype=torch.float32).double()
        want = dequantise(Quantised(x.q[:few], x.scale[:few], 1)).double() @ dequantise(w).double().T
        yield Figure(f"{name}, relative error", float((got - want).norm() / want.norm()), "of FP64", False)
    if missing is not None:
        yield Figure("F.scaled_mm", None, missing)


def decode(b: Bench) -> Iterator[Figure]:
    """Products of experts with few tokens each: weights read against the copy's rate, and where they stop to be it."""
    import torch

    from moescope.instrumented_model.kernels.grouped_gemm import grouped_gemm

    experts, (n, k) = b.size(16, 2), (b.size(4096, 128), b.size(7168, 128))
    w, ws = b.e4m3(experts, n, k), b.scales(experts, n // 128, k // 128)
    for tokens in (1, 8, 32, 64, 128, 256):
        m = experts * b.size(tokens, 2)
        x, xs = b.e4m3(m, k), b.scales(k // 128, m).T
        rows = torch.full((experts,), m // experts, dtype=torch.int32, device=b.device)
        (seconds,) = b.seconds(lambda x=x, xs=xs, rows=rows: grouped_gemm(x, xs, w, ws, rows))
        yield Figure(f"{tokens} tokens an expert, weights", w.numel() / seconds / 1e9, "GB/s", tokens < 64)
        yield Figure(f"{tokens} tokens an expert", 2 * m * n * k / seconds / 1e12, "TFLOP/s", tokens == 256)


def quantisers(b: Bench) -> Iterator[Figure]:
    """Bytes read and written a second."""
    from moescope.instrumented_model.kernels.quantise import quantise_tiles, swiglu_quantise
    from moescope.instrumented_model.kernels.transpose import transpose_quantise

    m, k = b.size(16384, 40), b.size(7168, 256)
    x = b.random(m, k)
    q, s = quantise_tiles(x, power_of_2=True)
    works: dict[str, tuple[Callable[[], object], float]] = {
        "1x128 tiles": (lambda: quantise_tiles(x, power_of_2=True), 3),
        "SwiGLU and tiles": (lambda: swiglu_quantise(x, power_of_2=True), 2.5),
        "transpose and requantise": (lambda: transpose_quantise(q, s, power_of_2=True), 2),
    }
    for (name, (_, moved)), seconds in zip(works.items(), b.seconds(*(w for w, _ in works.values())), strict=True):
        yield Figure(name, moved * m * k / seconds / 1e9, "GB/s")


def exchange(b: Bench) -> Iterator[Figure]:
    """Dispatch and combine by SMs that they may use, and what that costs a product on the others."""
    import torch

    from moescope.instrumented_model.kernels.check import sm_count
    from moescope.instrumented_model.kernels.exchange import combine, dispatch
    from moescope.instrumented_model.kernels.gemm import gemm

    tokens, d, top_k, there = b.size(16384, 40), b.size(7168, 256), 8, sm_count(b.device)
    q, s = b.e4m3(tokens, d), b.scales(tokens, d // 128)
    pair = torch.randperm(tokens * top_k, generator=b.generator, device=b.device)
    source, slot = (pair // top_k).int(), torch.argsort(pair).reshape(tokens, top_k).int()
    rows = b.random(tokens * top_k, d)
    m, n, k = b.size(8192, 64), b.size(4096, 128), b.size(7168, 128)
    x, xs, w, ws = b.e4m3(m, k), b.scales(k // 128, m).T, b.e4m3(n, k), b.scales(n // 128, k // 128)
    (alone,) = b.seconds(lambda: gemm(x, xs, w, ws))
    for sms in SPLITS:
        limit, rest = (1, 2) if b.rehearsal else (sms, there - sms)
        there_s, back_s, limited = b.seconds(
            lambda limit=limit: dispatch(q, s, source, sms=limit),
            lambda limit=limit: combine(rows, slot, sms=limit),
            lambda rest=rest: gemm(x, xs, w, ws, sms=rest),
            times=5,
        )
        moved = tokens * top_k * d
        yield Figure(f"dispatch on {sms} SMs, read and write", 2 * moved / there_s / 1e9, "GB/s", sms == 20)
        yield Figure(f"combine on {sms} SMs, read", 2 * moved / back_s / 1e9, "GB/s", sms == 20)
        yield Figure(f"product on the {there - sms} others, alone there", limited / alone - 1, "longer", sms == 20)
    serial, beside = _serial_and_beside(b, q, s, source, rows, slot, (x, xs, w, ws))
    best = min(beside, key=beside.__getitem__)
    for sms, seconds in beside.items():
        text = f"exchange on {sms} SMs beside the products that take as long"
        yield Figure(text, seconds / serial, "of one after the other", sms in (20, best))
    yield Figure("SMs for the exchange that make both shortest", best, "SMs")


def _serial_and_beside(
    b: Bench, q: Any, s: Any, source: Any, rows: Any, slot: Any, product: tuple[Any, ...]
) -> tuple[float, dict[int, float]]:
    """Seconds of a dispatch, a combine and products as long as they, after one another on all SMs, and side by side.

    returns: both one after the other; by SMs that the exchange may use, both at once, products on the others
    """
    import torch

    from moescope.instrumented_model.kernels.check import sm_count
    from moescope.instrumented_model.kernels.exchange import combine, dispatch
    from moescope.instrumented_model.kernels.gemm import gemm

    there, aside = sm_count(b.device), None if b.rehearsal else torch.cuda.Stream(b.device)

    def exchanged(sms: int | None) -> None:
        dispatch(q, s, source, sms=sms)
        combine(rows, slot, sms=sms)

    def multiplied(times: int, sms: int | None) -> None:
        for _ in range(times):
            gemm(*product, sms=sms)

    def at_once(times: int, limit: int) -> None:
        if aside is None:
            exchanged(1)
            multiplied(times, 2)
            return
        here = torch.cuda.current_stream(b.device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            exchanged(limit)
        multiplied(times, there - limit)
        here.wait_stream(aside)

    one, other = b.seconds(lambda: exchanged(20 if aside else 1), lambda: multiplied(1, None), times=5)
    times = b.size(max(round(one / other), 1), 1)
    (serial,) = b.seconds(lambda: (exchanged(None), multiplied(times, None)), times=5)
    limits = (20,) if b.rehearsal else SPLITS
    return serial, {sms: b.seconds(lambda sms=sms: at_once(times, sms), times=5)[0] for sms in limits}


def records(b: Bench) -> Iterator[Figure]:
    """What records cost, which SMs products and exchange held, and how well the clocks are compared."""
    import torch

    from moescope.instrumented_model.kernels.check import sm_count
    from moescope.instrumented_model.kernels.exchange import SMS, dispatch
    from moescope.instrumented_model.kernels.gemm import gemm
    from moescope.instrumented_model.kernels.trace import Trace, clock_offset

    m, n, k = b.size(8192, 300), b.size(4096, 260), b.size(7168, 128)
    x, xs, w, ws = b.e4m3(m, k), b.scales(k // 128, m).T, b.e4m3(n, k), b.scales(-(-n // 128), k // 128)
    of_product, of_exchange = (Trace(b.device, programs=256, capacity=4096) for _ in range(2))
    gemm(x, xs, w, ws, trace=of_product)
    cost = b.apart(lambda: gemm(x, xs, w, ws, trace=of_product), lambda: gemm(x, xs, w, ws))
    yield Figure("records of a product", cost, "of its time")
    of_product.drain()
    q, s = b.e4m3(b.size(16384, 40), 7168), b.scales(b.size(16384, 40), 56)
    source = torch.arange(8 * len(q), device=b.device, dtype=torch.int32) % len(q)
    rest = None if b.rehearsal else sm_count(b.device) - SMS
    for work in range(2):  # the first compiles
        b.wait()
        with b.stream():
            dispatch(q, s, source, trace=of_exchange)
        for _ in range(4):
            gemm(x, xs, w, ws, sms=rest, trace=of_product)
        b.wait()
        communicating, computing = of_exchange.drain().rows, of_product.drain().rows
        if work:
            ours, theirs = set(communicating["unit"].tolist()), set(computing["unit"].tolist())
            yield Figure("SMs of the exchange", len(ours), "SMs")
            yield Figure("SMs of the product beside it", len(theirs), "SMs")
            beside = computing[
                (computing["start_ns"] < communicating["end_ns"].max())
                & (computing["end_ns"] > communicating["start_ns"].min())
            ]
            yield Figure("SMs of both at a time", len(ours & set(beside["unit"].tolist())), "SMs")
            yield Figure("tiles of the product beside the exchange", len(beside), "tiles")
    steps = pairwise(sorted(set(computing["end_ns"].tolist())))
    yield Figure("step of %globaltimer", min((after - before for before, after in steps), default=None), "ns")
    yield Figure("clocks are compared to within", clock_offset(b.device).uncertainty_ns, "ns")


def stack(b: Bench) -> Iterator[Figure]:
    """Steps of the whole stack on virtual ranks: what trains on CPUs trains here."""
    from moescope.instrumented_model.config import size
    from moescope.instrumented_model.gemm import products as chosen
    from moescope.instrumented_model.gemm.arithmetic import Arithmetic
    from moescope.instrumented_model.gemm.choice import choose
    from moescope.instrumented_model.inference.graphs import GraphedDecode, why_not
    from moescope.instrumented_model.inference.steps import decode as decoded
    from moescope.instrumented_model.layers.model import Model
    from moescope.instrumented_model.parallel.lane import lane_for
    from moescope.instrumented_model.parallel.mover import KernelMover
    from moescope.instrumented_model.parallel.virtual import VirtualExchange
    from moescope.instrumented_model.training.recipe import Recipe
    from moescope.instrumented_model.training.train import Trainer

    c = replace(size("tiny"), sequence_length=16, decode_sequences=2) if b.rehearsal else size("lite")
    yield Figure(f"products by {choose(None, b.device, Arithmetic.of(c)).backend.name}", 1, "backend")
    mover, steps = KernelMover(), b.size(12, 2)
    exchange = VirtualExchange(c, 4, mover, lane_for(b.device))
    if not b.rehearsal:
        chosen.leave(mover.sms)
    model = Model(c, seed=0).to(b.device)
    trainer = Trainer(model, exchange, Recipe(seed=0), schedule="overlapped")
    results = [trainer.run_step() for _ in range(steps)]
    trainer.close()
    yield Figure(f"training step, {c.name}", median(r.dur_ns for r in results[steps // 3 :]) / 1e6, "ms")
    yield Figure("loss at the first step", results[0].loss, "nats a byte")
    yield Figure(f"loss at step {steps}", results[-1].loss, "nats a byte")
    taken = [s.dur_ns for s in decoded(model, exchange, steps=steps, schedule="overlapped", seed=0)]
    yield Figure(f"decode step, {c.name}", median(taken[steps // 3 :]) / 1e6, "ms")
    reason = why_not(exchange, b.device, c.fp8)
    if reason is not None:
        yield Figure("decode step as a CUDA graph", None, reason)
        return
    graphed = partial(GraphedDecode, model, exchange, "overlapped")
    replayed = decoded(model, exchange, steps=4 * steps, schedule="overlapped", seed=0, graphed=graphed)
    taken = [s.dur_ns for s in replayed]
    yield Figure("decode step as a CUDA graph", median(taken[steps:]) / 1e6, "ms")


def accumulation(b: Bench) -> Iterator[Figure]:
    """How many results of an unscaled product have the emulator's very bits."""
    import torch

    from moescope.instrumented_model.kernels.gemm import gemm
    from moescope.instrumented_model.numerics.tensor_core import accumulate

    m, n, k = 64, 128, b.size(1024, 128)
    x, w = b.e4m3(m, k), b.e4m3(n, k)
    ones = (torch.ones(m, k // 128, device=b.device), torch.ones(1, k // 128, device=b.device))
    got = gemm(x, ones[0], w, ones[1], out_dtype=torch.float32).cpu()
    want = accumulate(x.cpu(), w.cpu(), interval=128)
    yield Figure(f"results with the emulator's bits, {m}x{n}x{k}", float((got == want).float().mean()), "of all")
    exact = x.cpu().double() @ w.cpu().double().T
    never = gemm(x, ones[0], w, ones[1], out_dtype=torch.float32, promote=False).cpu()
    same = float((never == accumulate(x.cpu(), w.cpu(), interval=None)).float().mean())
    yield Figure("results with the emulator's bits, never promoted", same, "of all")
    for name, result in (("tensor core", got), ("emulator", want), ("tensor core, never promoted", never)):
        yield Figure(f"relative error, {name}", float((result - exact).norm() / exact.norm()), "of FP64")
    for n, k, few in ((4096, 7168, 256), (7168, 2048, 128)):
        m, n, k = b.size(4096, 40), b.size(n, 130), b.size(k, few)
        x, w = b.e4m3(m, k), b.e4m3(n, k)
        xs, ws = torch.ones(k // 128, m, device=b.device).T, torch.ones(-(-n // 128), k // 128, device=b.device)
        cost = b.apart(
            lambda x=x, xs=xs, w=w, ws=ws: gemm(x, xs, w, ws),
            lambda x=x, xs=xs, w=w, ws=ws: gemm(x, xs, w, ws, promote=False),
        )
        yield Figure(f"promotion every 128 against never, {m}x{n}x{k}", cost, "longer")


SECTIONS: dict[str, Section] = {
    section.__name__: section
    for section in (
        peaks,
        products,
        decode,
        quantisers,
        stack,
        exchange,
        records,
        accumulation,
        counters,
        overlap,
        recorder,
    )
}


def main(argv: list[str]) -> int:
    """Prints a line of JSON a figure. returns: exit code, 3 where there is no GPU"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="small shapes on the CPU, under Triton's interpreter")
    parser.add_argument("names", nargs="*", choices=[*SECTIONS, []], metavar="NAME")
    a = parser.parse_args(argv)
    if a.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    from moescope.instrumented_model.kernels import why_not

    reason = why_not()
    if reason is not None:
        print(f"no GPU for the kernels: {reason}", file=sys.stderr)
        return 3
    import torch

    from benchmarks.gpu_timing import Bench

    bench = Bench(torch.device("cpu" if a.rehearse else "cuda:0"))
    for name in a.names or SECTIONS:
        for figure in SECTIONS[name](bench):
            print(json.dumps({"section": name} | asdict(figure)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
