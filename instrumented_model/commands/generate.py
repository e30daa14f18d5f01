"""generate: go on from prompts with a trained checkpoint, greedily or by sampling, many at a time."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch.distributed as dist

from moescope.instrumented_model.commands.common import Run, with_products
from moescope.instrumented_model.commands.decode import add_serving_arguments, server_limits
from moescope.instrumented_model.config import Config, ConfigError
from moescope.instrumented_model.inference.batching import Finished, Request, Server
from moescope.instrumented_model.inference.requests import read
from moescope.instrumented_model.inference.sampling import Sampling
from moescope.instrumented_model.inference.text import decode, encode, parse_tokens
from moescope.instrumented_model.layers.cache import PagedCache
from moescope.instrumented_model.training import checkpoint


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
    for finished in sorted(_gathered(run, mine), key=lambda f: f.request.number):
        if a.tokens is not None:
            run.say(",".join(map(str, (*finished.request.prompt, *finished.tokens))))
        else:
            run.say(decode((*finished.request.prompt, *finished.tokens)))


def _requests(a: argparse.Namespace, c: Config) -> list[Request]:
    if a.requests is not None:
        return read(a.requests, c, a.max_new)
    if a.tokens is not None:
        prompts = [parse_tokens(text, c.vocabulary) for text in a.tokens]
    else:
        prompts = [encode(text, c.vocabulary) for text in a.prompt]
    return [Request(number, prompt, a.max_new) for number, prompt in enumerate(prompts)]


def _gathered(run: Run, mine: list[Finished]) -> list[Finished]:
    if run.ranks.count == 1:
        return mine
    all_ranks: list[list[Finished]] = [[] for _ in range(run.ranks.count)]
    run.exchange.run(lambda: dist.all_gather_object(all_ranks, mine)).result()
    return [finished for rank in all_ranks for finished in rank]
