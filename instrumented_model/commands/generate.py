"""generate: go on from prompts with a trained checkpoint, greedily or by sampling, many at a time."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch.distributed as dist

from moescope.instrumented_model.commands.common import Run, StepLog, with_products
from moescope.instrumented_model.commands.decode import add_serving_arguments, server_limits
from moescope.instrumented_model.config import Config, ConfigError
from moescope.instrumented_model.inference.batching import Finished, Request, Server
from moescope.instrumented_model.inference.requests import read
from moescope.instrumented_model.inference.sampling import Sampling
from moescope.instrumented_model.inference.text import decode, encode, parse_tokens
from moescope.instrumented_model.layers.cache import BLOCK, PagedCache
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.training import checkpoint

PROMPTS = ("def main(", "import ", "    return self.", "class ")
"""What `all` goes on from: beginnings of lines in the text that models learn here."""
NEW = 16
"""Tokens that it adds to each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command alone."""
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", required=True, help="what `train --checkpoints DIR` has saved"
    )
    parser.add_argument(
        "--weights",
        choices=["trained", "averaged"],
        default="trained",
        help="averaged: what `train --ema DECAY` has kept on the side (default %(default)s)",
    )
    prompts = parser.add_argument_group("prompts").add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help="repeatable")
    prompts.add_argument("--tokens", action="append", metavar="N,N,…", help="a prompt as tokens; repeatable")
    prompts.add_argument("--requests", type=Path, metavar="FILE", help="JSON lines of prompt, max_new, arrival, stop")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default)")
    sampling.add_argument("--top-k", type=int, default=0, help="0: all tokens (default)")
    sampling.add_argument("--top-p", type=float, default=1.0)
    add_serving_arguments(parser.add_argument_group("continuous batching"))


def configuration(a: argparse.Namespace) -> Config:
    """The checkpoint's own, but for the arithmetic of products. Raises ConfigError where flags want another."""
    if a.size or a.config or a.settings:
        raise ConfigError("--size, --config and --set cannot change a checkpoint's configuration: leave them out")
    return with_products(a, checkpoint.read_manifest(checkpoint.find(a.checkpoint)).config)


def run(run: Run) -> None:
    """Serve all prompts; rank 0 says what came of them, in their order."""
    a = run.arguments
    sampling = Sampling(a.temperature, a.top_k, a.top_p)
    requests, limits = _requests(a, run.c), server_limits(a)
    model = run.new_model()
    checkpoint.load_weights(a.checkpoint, model, averaged=a.weights == "averaged")
    model.eval()
    server = Server(
        model,
        run.exchange,
        PagedCache(run.c, a.cache_blocks, device=run.device),
        requests,
        limits=limits,
        sampling=sampling,
        schedule=a.schedule,
        seed=a.seed,
    )
    mine = [finished for step in server.run() for finished in step.finished]
    for finished in _gathered(run, mine):
        tokens = (*finished.request.prompt, *finished.tokens)
        run.say(decode(tokens) if a.tokens is None else ",".join(map(str, tokens)))


def stage(run: Run, model: Model, exchange: Exchange) -> None:
    """Go on from `PROMPTS` with `model` over `exchange`, drawing by its own probabilities; recorded as a stage."""
    requests = [Request(number, encode(text, run.c.vocabulary), NEW) for number, text in enumerate(PROMPTS)]
    blocks = sum(-(-request.longest // BLOCK) for request in requests)
    cache = PagedCache(run.c, blocks, device=run.device)
    a, log = run.arguments, StepLog(run)
    mine: list[Finished] = []
    server = Server(
        model,
        exchange,
        cache,
        requests,
        sampling=Sampling(temperature=1.0),  # what has learned for a few steps goes on greedily in spaces alone
        schedule=a.schedule,
        seed=a.seed,
        stage="generate",
    )
    for s in server.run():
        mine += s.finished
        if s.inference is not None:
            log(s.step, s.inference.dur_ns, f"{s.prompt_tokens} prompt + {s.decode_tokens} tokens")
    log.close()
    for finished in _gathered(run, mine):
        run.say(f"{decode(finished.request.prompt)!r} goes on {decode(finished.tokens)!r}")


def _requests(a: argparse.Namespace, c: Config) -> list[Request]:
    if a.requests is not None:
        return read(a.requests, c, a.max_new)
    if a.tokens is not None:
        prompts = [parse_tokens(text, c.vocabulary) for text in a.tokens]
    else:
        prompts = [encode(text, c.vocabulary) for text in a.prompt]
    return [Request(number, prompt, a.max_new) for number, prompt in enumerate(prompts)]


def _gathered(run: Run, mine: list[Finished]) -> list[Finished]:
    """What all ranks finished, in the order of the requests."""
    all_ranks: list[list[Finished]] = [[] for _ in range(run.ranks.count)]
    if run.ranks.count == 1:
        all_ranks = [mine]
    else:
        run.exchange.run(lambda: dist.all_gather_object(all_ranks, mine)).result()
    return sorted((finished for rank in all_ranks for finished in rank), key=lambda f: f.request.number)
