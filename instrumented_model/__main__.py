"""python -m moescope.instrumented_model train|prefill|decode|all, alone or under torchrun."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from moescope.instrumented_model.config import Config, ConfigError, size
from moescope.instrumented_model.inference.steps import decode, prefill
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.parallel.link import DEFAULT_LINK, Link, parse_link
from moescope.instrumented_model.parallel.ranks import Ranks, joined, world
from moescope.instrumented_model.training.train import train

STAGES = ("train", "prefill", "decode")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m moescope.instrumented_model",
        description="FP8 mixture-of-experts model on the CPU; run under torchrun to spread its experts over ranks.",
    )
    parser.add_argument("stage", choices=[*STAGES, "all"], help="all: one after another, on one model")
    parser.add_argument("--steps", type=int, default=20, help="steps of each stage (default %(default)s)")
    parser.add_argument("--size", default="tiny", help="tiny, lite or v3 (default %(default)s)")
    parser.add_argument("--schedule", choices=["serial", "overlapped"], default="overlapped")
    parser.add_argument(
        "--link",
        default=DEFAULT_LINK,
        help="emulated wire, BANDWIDTH:LATENCY such as 1GB/s:50us, or none (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="for a rank that does not answer"
    )
    parser.add_argument("--print-every", type=int, default=10, metavar="STEPS")
    return parser.parse_args(argv)


def _announce(a: argparse.Namespace, c: Config, ranks: Ranks, link: Link) -> None:
    arithmetic = "E4M3 operands, dequantised, FP32 products" if c.fp8 else "FP32 products"
    exchange = "gloo" if ranks.count > 1 else "none, one rank"
    wire = str(link) if ranks.count > 1 else "none, nothing travels"
    print(
        f"backend cpu, {torch.get_num_threads()} thread(s) a rank | arithmetic {arithmetic} | ranks {ranks.count} | "
        f"exchange {exchange} | link {wire} | size {c.name} | {a.stage}, {a.schedule}",
        flush=True,
    )


def _run(a: argparse.Namespace, c: Config, ranks: Ranks, exchange: Exchange) -> None:
    """The chosen stages; all that uses the process group is gone when it returns."""
    model = Model(c, rank=ranks.rank, ranks=ranks.count, seed=a.seed)
    for stage in STAGES if a.stage == "all" else (a.stage,):
        _run_stage(stage, a, model, ranks, exchange)


def _run_stage(stage: str, a: argparse.Namespace, model: Model, ranks: Ranks, exchange: Exchange) -> None:
    talks = ranks.rank == 0
    durations_ns: list[int] = []

    def told(step: int, dur_ns: int, what: str) -> None:
        durations_ns.append(dur_ns)
        if talks and (step % a.print_every == 0 or step == a.steps - 1):
            print(f"step {step:>5}  {what}  {dur_ns / 1e6:.1f} ms", flush=True)

    if talks and a.stage == "all":
        print(f"-- {stage}", flush=True)
    if stage == "train":
        for t in train(model, exchange, steps=a.steps, schedule=a.schedule, seed=a.seed):
            load = t.load.float()
            worst = float((load.amax(1) / load.mean(1)).max())
            told(t.step, t.dur_ns, f"loss {t.loss:.4f}  max/mean load {worst:.2f}")
    else:
        serve = prefill if stage == "prefill" else decode
        for s in serve(model, exchange, steps=a.steps, schedule=a.schedule, seed=a.seed):
            told(s.step, s.dur_ns, f"{s.tokens} tokens")
    if talks:
        print(
            f"median step {sorted(durations_ns)[len(durations_ns) // 2] / 1e6:.1f} ms over {a.steps} steps", flush=True
        )


def main(argv: Sequence[str] | None = None) -> int:
    a = _arguments(argv)
    try:
        for name, value in (("--steps", a.steps), ("--print-every", a.print_every), ("--timeout", a.timeout)):
            if value <= 0:
                raise ConfigError(f"{name} {value} must be above 0")
        c, link, ranks = size(a.size), parse_link(a.link), world()
        c.local_experts(ranks.count)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with joined(ranks, a.timeout):
        if ranks.rank == 0:
            _announce(a, c, ranks, link)
        exchange = Exchange(link, ranks.count)
        try:
            _run(a, c, ranks, exchange)
        finally:
            exchange.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
