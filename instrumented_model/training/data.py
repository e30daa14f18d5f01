"""Bytes to learn from: the sources of Python's own library, which stand wherever Python does.

Whole files are held out, chosen by a hash of their path: no passage of a held-out file, nor one that overlaps it, is
trained on, and the split does not depend on what other files there are.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from moescope.instrumented_model.config import ConfigError

Split = Literal["train", "held out"]

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
_HELD_OUT_OF_256 = 13
"""Files in 256 that are held out, about 5 %."""


def library() -> Path:
    """Where Python's own modules stand."""
    return Path(sysconfig.get_path("stdlib"))


def files(split: Split, folder: Path | None = None) -> list[Path]:
    """The Python sources of a split, by name; tests and installed packages are left out.

    Raises ConfigError where there are none.
    """
    root = folder or library()
    names = []
    for folder_name, below, found in os.walk(root):
        below[:] = [name for name in below if name not in _LEFT_OUT]  # not walked into
        names += [Path(folder_name, name).relative_to(root) for name in found if name.endswith(".py")]
    chosen = [name for name in sorted(names) if _held_out(name) == (split == "held out")]
    if not chosen:
        raise ConfigError(f"no Python sources to be {split} in {root}: the text is made from them, install them")
    return [root / name for name in chosen]


def _held_out(name: Path) -> bool:
    return hashlib.sha256(name.as_posix().encode()).digest()[0] < _HELD_OUT_OF_256


@cache
def corpus(split: Split = "train", folder: Path | None = None) -> torch.Tensor:
    """All files of a split, one after another. returns: [bytes] uint8, not to be written to"""
    text = bytearray().join(path.read_bytes() for path in files(split, folder))
    return torch.frombuffer(text, dtype=torch.uint8)


def corpus_for(vocabulary: int, split: Split = "train") -> torch.Tensor:
    """`corpus`, for a model of so many tokens. Raises ConfigError where a byte of it is none of them.

    returns: [bytes] uint8, not to be written to
    """
    text = corpus(split)
    if (largest := int(text.max())) >= vocabulary:
        raise ConfigError(
            f"the text has byte {largest}, outside the vocabulary of {vocabulary}: set vocabulary to 256 or more"
        )
    return text


def fingerprint(text: torch.Tensor) -> str:
    """Names the text: another Python has another library. text: [bytes] uint8; returns: SHA-256, 64 hex digits"""
    return hashlib.sha256(text.numpy().tobytes()).hexdigest()


def batch(
    text: torch.Tensor, *, step: int, rank: int, micro_batch: int, sequences: int, positions: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random passages, the same for the same arguments: the position in the data is the step alone.

    returns: tokens and targets (the next byte), both [sequences, positions] int64
    """
    _check_length(text, positions)
    mixed = hashlib.sha256(f"{seed} {step} {rank} {micro_batch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))  # it uses 32 bits
    starts = torch.randint(len(text) - positions, (sequences, 1), generator=generator)
    return _passages(text, starts, positions)


def windows(
    text: torch.Tensor, *, first: int, sequences: int, positions: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sequences` of `count` passages spread evenly over the text, from number `first` on.

    returns: tokens and targets, both [sequences, positions] int64
    """
    _check_length(text, positions)
    numbers = torch.arange(first, first + sequences)[:, None] % count
    return _passages(text, numbers * (len(text) - positions) // count, positions)


def _passages(text: torch.Tensor, starts: torch.Tensor, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    passage = text[starts + torch.arange(positions + 1)].long()
    return passage[:, :-1], passage[:, 1:]


def _check_length(text: torch.Tensor, positions: int) -> None:
    if len(text) <= positions:
        raise ConfigError(f"the text has {len(text)} bytes, too few for sequences of {positions}: shorten them")
