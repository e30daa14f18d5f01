"""What all commands share: arguments, what is announced, the ranks and their exchange, how errors end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from moescope.collectors import emit
from moescope.instrumented_model.commands.configuration import DEFAULT_SIZE, configured
from moescope.instrumented_model.config import PRODUCT_DTYPES, SIZES, Config, ConfigError
from moescope.instrumented_model.device import DEVICES, PROCESS_GROUPS, device_of
from moescope.instrumented_model.gemm import products
from moescope.instrumented_model.gemm.arithmetic import Arithmetic
from moescope.instrumented_model.gemm.choice import NAMES, Choice, choose
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.parallel.link import DEFAULT_INTRA_LINK, DEFAULT_LINK, Link, parse_link
from moescope.instrumented_model.parallel.open import described, open_exchange, open_virtual
from moescope.instrumented_model.parallel.ranks import PeerError, Ranks, joined, world
from moescope.instrumented_model.parallel.virtual import VirtualExchange
from moescope.instrumented_model.schedules.order import SCHEDULES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command."""
    model = parser.add_argument_group("model")
    model.add_argument("--size", help=f"{', '.join(SIZES)} (default {DEFAULT_SIZE})")
    model.add_argument("--config", type=Path, metavar="FILE", help="TOML file with `size` and keys that change it")
    model.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="change one key; repeatable"
    )
    model.add_argument("--seed", type=int, default=0)
    products = parser.add_argument_group("products in FP8")
    products.add_argument("--gemm", metavar="NAME", help=f"{', '.join(NAMES)} (default: the first that works here)")
    products.add_argument(
        "--promotion-interval",
        type=int,
        metavar="K",
        help="elements of k between promotions to FP32, 0 for no bound (default: the configuration's, 128)",
    )
    products.add_argument(
        "--product-dtype",
        choices=PRODUCT_DTYPES,
        help="that Fprop and Dgrad come out in (default: the configuration's, float32)",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--device", choices=DEVICES, default="cpu", help="cuda: a GPU for each rank, over NCCL (default %(default)s)"
    )
    run.add_argument("--schedule", choices=list(SCHEDULES), default="overlapped")
    run.add_argument(
        "--link",
        help=f"emulated wire, BANDWIDTH:LATENCY such as 1GB/s:50us, or none (default {DEFAULT_LINK}; none on a GPU)",
    )
    run.add_argument("--nodes", type=int, default=1, help="that the ranks are spread over (default %(default)s)")
    run.add_argument(
        "--intra-link",
        help="the wire inside a node where there are several; --link is the one between them "
        f"(default {DEFAULT_INTRA_LINK}; none on a GPU)",
    )
    run.add_argument(
        "--virtual-ranks", type=int, metavar="R", help="exchange tokens between R ranks in this one process's memory"
    )
    run.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="for a rank that does not answer")


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of commands that run for a number of steps."""
    run = parser.add_argument_group("steps")
    run.add_argument("--steps", type=int, default=20, help="steps of each stage (default %(default)s)")
    run.add_argument("--print-every", type=int, default=10, metavar="STEPS")


@dataclass(frozen=True)
class Run:
    """What a command works with, on this rank.

    arguments: parsed; those of the command's own `add_arguments` among them
    """

    arguments: argparse.Namespace
    c: Config
    device: torch.device
    ranks: Ranks
    link: Link
    intra_link: Link
    exchange: Exchange

    def say(self, text: str) -> None:
        """A line on stdout, from rank 0 alone; characters that it cannot encode are escaped: text may be generated."""
        if self.ranks.rank == 0:
            encoding = sys.stdout.encoding or "utf-8"
            print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)

    def new_model(self) -> Model:
        """A model of this run's configuration, drawn from its seed."""
        ranks = self.ranks
        model = Model(self.c, rank=ranks.rank, ranks=ranks.count, nodes=ranks.nodes, seed=self.arguments.seed)
        return model.to(self.device)  # drawn on the CPU: the same weights on every device


@dataclass
class StepLog:
    """Says every so many steps what a step did, and at the end the median of all."""

    run: Run
    durations_ns: list[int] = field(default_factory=list)

    def __call__(self, step: int, dur_ns: int, what: str) -> None:
        a = self.run.arguments
        self.durations_ns.append(dur_ns)
        if step % a.print_every == 0 or step == a.steps - 1:
            self.run.say(f"step {step:>5}  {what}  {dur_ns / 1e6:.1f} ms")

    def close(self) -> None:
        """Say the median of all steps."""
        if self.durations_ns:
            middle = sorted(self.durations_ns)[len(self.durations_ns) // 2]
            self.run.say(f"median step {middle / 1e6:.1f} ms over {len(self.durations_ns)} steps")


def _opened(
    a: argparse.Namespace, c: Config, device: torch.device, ranks: Ranks, link: Link, intra_link: Link
) -> tuple[Exchange, str]:
    """The exchange of this rank, and what to say of it. Raises ConfigError."""
    if a.virtual_ranks is None:
        return open_exchange(c, ranks, link, intra_link, a.timeout), described(ranks, device)
    if ranks.count > 1:
        raise ConfigError(f"--virtual-ranks {a.virtual_ranks}: real ranks, {ranks.count}, have no virtual ones beside")
    if a.virtual_ranks < 1:
        raise ConfigError(f"--virtual-ranks {a.virtual_ranks} must be above 0")
    return open_virtual(c, a.virtual_ranks, device)


def _left(exchange: Exchange, c: Config, schedule: str) -> str:
    """Keeps FP8 products off the SMs of an exchange beside them; what to say of it, if anything."""
    sms = exchange.mover.sms if isinstance(exchange, VirtualExchange) and schedule != "serial" and c.fp8 else 0
    if products.leave(sms):
        return ", FP8 products on the others" if sms else ""
    return f", which {products.active().name} does not leave alone"


def _announce(run: Run, gemm: Choice, exchange: str) -> None:
    a, c, ranks = run.arguments, run.c, run.ranks
    arithmetic = gemm.backend.arithmetic if c.fp8 else "FP32 products"
    wire = str(run.link) if ranks.count > 1 else "none, nothing travels"
    if ranks.nodes > 1:
        wire += f" between nodes; {run.intra_link} inside"
    changed = " (changed)" if c != SIZES.get(c.name) else ""
    device = f"cpu, {torch.get_num_threads()} thread(s) a rank"
    if run.device.type == "cuda":
        device = f"cuda, {torch.cuda.get_device_name(run.device)} a rank"
    emit.note("device", f"{device}, {exchange}")
    run.say(
        f"backend {device} | arithmetic {arithmetic} | ranks {ranks.count} | "
        f"exchange {exchange} | link {wire} | size {c.name}{changed} | {a.stage}, {a.schedule}"
    )
    if c.fp8:
        run.say(f"gemm {gemm}")


def configuration(a: argparse.Namespace) -> Config:
    """By --size, --config, --set, and the flags of products. Raises ConfigError."""
    return with_products(a, configured(a.size, a.config, a.settings))


def with_products(a: argparse.Namespace, c: Config) -> Config:
    """A configuration with the arithmetic that flags ask for. Raises ConfigError."""
    wanted = {"promotion_interval": a.promotion_interval, "product_dtype": a.product_dtype}
    return replace(c, **{key: value for key, value in wanted.items() if value is not None})


def execute(
    a: argparse.Namespace,
    command: Callable[[Run], None],
    configuration: Callable[[argparse.Namespace], Config] = configuration,
) -> int:
    """Join the ranks, announce, run. returns: exit code; what the user can put right is one line on stderr and 2,
    a lost rank one line and 1
    """
    try:
        _execute(a, command, configuration)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PeerError as error:
        print(f"error: rank {os.environ.get('RANK', '0')}: {error}", file=sys.stderr)
        return 1
    return 0


def _execute(
    a: argparse.Namespace, command: Callable[[Run], None], configuration: Callable[[argparse.Namespace], Config]
) -> None:
    for name in ("steps", "print_every", "timeout"):
        value = getattr(a, name, 1)
        if value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be above 0")
    if not -(2**63) <= a.seed < 2**63:
        raise ConfigError(f"--seed {a.seed} must fit into 64 bits: take a smaller number")
    c, ranks = configuration(a), world(a.nodes)
    # On a GPU the real wire is what matters.
    links = (DEFAULT_LINK, DEFAULT_INTRA_LINK) if a.device == "cpu" else ("none", "none")
    link, intra_link = parse_link(a.link or links[0]), parse_link(a.intra_link or links[1])
    c.local_experts(ranks.count)
    c.check_nodes(ranks.nodes)
    if a.device != "cpu" and getattr(a, "redundant_experts", 0):
        raise ConfigError("--redundant-experts are planned on the CPU: leave them out, or use --device cpu")
    device = device_of(a.device)
    gemm = choose(a.gemm, device, Arithmetic.of(c))
    with joined(ranks, a.timeout, PROCESS_GROUPS[a.device]):
        exchange, what = _opened(a, c, device, ranks, link, intra_link)
        run = Run(a, c, device, ranks, link, intra_link, exchange)
        _announce(run, gemm, what + _left(exchange, c, a.schedule))
        try:
            command(run)  # all that uses the process group is gone when it returns
        finally:
            run.exchange.close()
