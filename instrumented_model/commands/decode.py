"""decode: one token a sequence each step, from latent caches; or requests, served by continuous batching."""

from __future__ import annotations

import argparse
from functools import partial

from moescope.collectors import emit
from moescope.instrumented_model.commands import peaks, redundant
from moescope.instrumented_model.commands.common import Run, StepLog, add_step_arguments
from moescope.instrumented_model.config import ConfigError
from moescope.instrumented_model.inference.batching import Limits, Server
from moescope.instrumented_model.inference.graphs import GraphedDecode, why_not
from moescope.instrumented_model.inference.requests import drawn
from moescope.instrumented_model.inference.roofline import Peaks, report, ridge_tokens, roofline
from moescope.instrumented_model.inference.steps import CACHES, CacheKind, InferenceStep, decode
from moescope.instrumented_model.layers.cache import PagedCache
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.training import data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command alone."""
    add_step_arguments(parser)
    peaks.add_arguments(parser)
    redundant.add_arguments(parser)
    parser.add_argument("--cache", choices=list(CACHES), default="contiguous", help="(default %(default)s)")
    parser.add_argument(
        "--graphs", action="store_true", help="capture a step as a CUDA graph, and replay it (a GPU, --virtual-ranks)"
    )
    serving = parser.add_argument_group("continuous batching")
    serving.add_argument(
        "--requests", type=int, metavar="N", help="serve N requests of many lengths to their end, in place of --steps"
    )
    add_serving_arguments(serving)


def add_serving_arguments(group: argparse._ArgumentGroup) -> None:
    """Arguments of what serves requests."""
    group.add_argument("--max-new", type=int, default=64, metavar="TOKENS", help="of a request (default %(default)s)")
    group.add_argument("--max-sequences", type=int, default=32, metavar="N", help="active on a rank at a time")
    group.add_argument("--max-tokens", type=int, default=256, metavar="N", help="of a pass; longer prompts are cut")
    group.add_argument("--cache-blocks", type=int, default=256, metavar="N", help="of 16 positions, on each rank")


def run(run: Run) -> None:
    """Decode with a new model."""
    if run.arguments.graphs:
        if run.arguments.requests is not None:
            raise ConfigError("--graphs: requests come and go, a graph's batch stays: leave --requests out")
        reason = why_not(run.exchange, run.device, run.c.fp8)
        if reason is not None:
            raise ConfigError(f"--graphs: {reason}")
    model = run.new_model()
    exchange = redundant.planned_exchange(run, model)
    if run.arguments.requests is None:
        stage(run, model, exchange)
    else:
        _serve(run, model, exchange)
    redundant.close(run, exchange)


def stage(run: Run, model: Model, exchange: Exchange) -> None:
    """Decode with `model` over `exchange`."""
    a, log = run.arguments, StepLog(run)
    machine, graphed = _machine(run), None
    kind: CacheKind = getattr(a, "cache", "contiguous")  # `all` has no choice of it, nor of graphs
    if getattr(a, "graphs", False):
        graphed = partial(GraphedDecode, model, exchange, a.schedule)
    for s in decode(model, exchange, steps=a.steps, schedule=a.schedule, seed=a.seed, cache=kind, graphed=graphed):
        log(s.step, s.dur_ns, f"{s.tokens} tokens{terms(run, machine, s)}")
    log.close()


def _machine(run: Run) -> Peaks | None:
    machine = peaks.peaks(getattr(run.arguments, "peaks", peaks.HERE), run.device)
    if machine is None:
        calibrate = "run `moescope calibrate`, or " if run.device.type == "cpu" else ""
        run.say(f"roofline – (no peaks of this machine: {calibrate}give --peaks)")
    else:
        peak = f"{machine.flops_per_s:.4g} FLOP/s, {machine.bytes_per_s:.4g} B/s"
        emit.note("roofline", f"modelled for {peak} ({machine.source})")
        run.say(
            f"roofline of {machine.source}: {machine.flops_per_s / 1e9:.0f} GFLOP/s, {machine.bytes_per_s / 1e9:.1f} "
            f"GB/s, weights of {machine.weight_bytes:g} bytes: bound by memory below {ridge_tokens(machine):.0f} "
            "tokens an expert"
        )
    return machine


def terms(run: Run, machine: Peaks | None, s: InferenceStep) -> str:
    """The step's roofline terms, in words; the recording is told them too."""
    if machine is None:
        return ""
    r = roofline(run.c, machine, zip(s.ends, s.served, strict=True))
    report(r, s.dur_ns)
    return (
        f"  {r.tokens_per_expert:.1f} an expert  experts {r.expert_weight_bytes / 1e6:.1f} MB  other weights "
        f"{r.other_weight_bytes / 1e6:.1f} MB  cache {r.cache_bytes / 1e6:.2f} MB  {r.flops / 1e6:.0f} MFLOP  "
        f"roofline {r.time_s * 1e3:.3g} ms, {r.achieved(s.dur_ns / 1e9):.2%} achieved"
    )


def server_limits(a: argparse.Namespace) -> Limits:
    """Raises ConfigError for what cannot work."""
    for name in ("max_new", "cache_blocks"):
        if getattr(a, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(a, name)} must be at least 1")
    return Limits(a.max_sequences, a.max_tokens)


def _serve(run: Run, model: Model, exchange: Exchange) -> None:
    a, c, log = run.arguments, run.c, StepLog(run)
    if a.requests < 1:
        raise ConfigError(f"--requests {a.requests} must be at least 1")
    requests = drawn(a.requests, c, data.corpus_for(c.vocabulary), max_new=a.max_new, spacing=2, seed=a.seed)
    cache = PagedCache(c, a.cache_blocks, device=run.device)
    server = Server(model, exchange, cache, requests, limits=server_limits(a), schedule=a.schedule, seed=a.seed)
    machine, served, generated = _machine(run), 0, 0
    for s in server.run():
        served, generated = served + len(s.finished), generated + sum(len(f.tokens) for f in s.finished)
        if s.inference is not None:
            roof = terms(run, machine, s.inference) if not s.prompt_tokens else ""
            cached = f"cache {s.cache_bytes / 1e6:.2f} of {cache.capacity_bytes / 1e6:.2f} MB"
            what = f"{s.active} active, {s.waiting} waiting  {s.prompt_tokens} prompt + {s.decode_tokens} tokens  "
            log(s.step, s.inference.dur_ns, f"{what}{cached}{roof}")
    log.close()
    run.say(f"served {served} requests of this rank, {generated} tokens generated")
