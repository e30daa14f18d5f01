"""Bytes to learn from: the sources of Python's own library, which stand wherever Python does."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

from moescope.instrumented_model.config import ConfigError

_LIMIT_BYTES = 2_000_000


def corpus() -> torch.Tensor:
    """The first 2 MB of the library's top-level modules, by name. returns: [bytes] uint8"""
    folder = Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= _LIMIT_BYTES:
            break
    if not text:
        raise ConfigError(f"no Python sources in {folder}: the training text is made from them")
    return torch.frombuffer(text[:_LIMIT_BYTES], dtype=torch.uint8)


def batch(
    text: torch.Tensor, *, step: int, rank: int, micro_batch: int, sequences: int, positions: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random passages, the same for the same arguments.

    returns: tokens and targets (the next byte), both [sequences, positions] int64
    """
    mixed = (((seed * 1_000_003 + step) * 1009 + rank) * 31 + micro_batch) % (2**63)
    generator = torch.Generator().manual_seed(mixed)
    starts = torch.randint(len(text) - positions - 1, (sequences, 1), generator=generator)
    passage = text[starts + torch.arange(positions + 1)].long()
    return passage[:, :-1], passage[:, 1:]
