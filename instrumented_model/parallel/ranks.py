"""The ranks of a run: joined through torchrun's environment, left in an order that does not abort."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from moescope.instrumented_model.config import ConfigError


@dataclass(frozen=True)
class Ranks:
    rank: int
    count: int


def world() -> Ranks:
    """This process's place by torchrun's environment; rank 0 of 1 without. Raises ConfigError for nonsense."""
    try:
        rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise ConfigError(f"RANK and WORLD_SIZE must be numbers: {error}") from None
    if not 0 <= rank < count:
        raise ConfigError(f"RANK {rank} is not below WORLD_SIZE {count}")
    return Ranks(rank, count)


@contextmanager
def joined(ranks: Ranks, timeout_s: float) -> Iterator[None]:
    """The process group, while more than one rank runs. What uses it must be gone when the block ends."""
    if ranks.count == 1:
        yield
        return
    torch.set_num_threads(1)  # ranks share the cores: more threads than cores makes products 100 times slower
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield
        dist.barrier()  # a rank that leaves early takes its connections with it
    finally:
        dist.destroy_process_group()
