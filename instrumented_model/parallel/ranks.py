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
    """One rank's place among all: rank = node * gpus + index."""

    rank: int
    count: int
    nodes: int = 1

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.count % self.nodes:
            fits = [n for n in range(1, self.count + 1) if self.count % n == 0]
            raise ConfigError(f"{self.nodes} nodes do not divide {self.count} ranks: use one of {fits}")

    @property
    def gpus(self) -> int:
        """Ranks on a node."""
        return self.count // self.nodes

    @property
    def node(self) -> int:
        """Number of its node, from 0; the ranks of a node are numbered in a row."""
        return self.rank // self.gpus

    @property
    def index(self) -> int:
        """Place on the node."""
        return self.rank % self.gpus


def world(nodes: int = 1) -> Ranks:
    """This process's place by torchrun's environment; rank 0 of 1 without. Raises ConfigError for nonsense."""
    try:
        rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise ConfigError(f"RANK and WORLD_SIZE must be numbers: {error}") from None
    if not 0 <= rank < count:
        raise ConfigError(f"RANK {rank} is not below WORLD_SIZE {count}")
    return Ranks(rank, count, nodes)


class PeerError(RuntimeError):
    """Another rank died or does not answer; one line that says what to do."""


@contextmanager
def answering() -> Iterator[None]:
    """Turns what `torch.distributed` raises inside, when a peer is lost, into a PeerError."""
    try:
        yield
    except RuntimeError as error:  # gloo raises no class of its own
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise PeerError(
            f"a rank died or did not answer within --timeout ({first}): look at what the other ranks say, then start "
            "all of them again"
        ) from error


@contextmanager
def joined(ranks: Ranks, timeout_s: float, backend: str = "gloo") -> Iterator[None]:
    """The process group, while more than one rank runs. What uses it must be gone when the block ends.

    backend: as `torch.distributed` takes it; NCCL is not yet run on a GPU
    """
    if ranks.count == 1:
        yield
        return
    torch.set_num_threads(1)  # ranks share the cores: more threads than cores makes products 100 times slower
    with answering():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield
        with answering():
            dist.barrier()  # a rank that leaves early takes its connections with it
    finally:
        dist.destroy_process_group()
