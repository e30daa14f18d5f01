"""What annotations of serving engines tell of a step: whether it decodes, how many sequences, how long their cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_SGLANG: Final = re.compile(r"\bstep\[(?P<mode>\w+)[^\]]*?\bbs=(?P<batch>\d{1,9})", re.IGNORECASE)
_ENGINE: Final = re.compile(
    r"context_(?P<prompts>\d{1,9})\([^)]*\)_generation_(?P<batch>\d{1,9})\((?:sq)?(?P<queries>\d{1,9})(?:sk(?P<keys>\d{1,15}))?"
)
_WORD: Final = re.compile(r"(?:^|[^a-z])decode(?:[^a-z]|$)", re.IGNORECASE)
_PART: Final = re.compile(
    r"att(?:ention|n)|kernel|alloc|slot|prefill|extend|encode|image|video|audio|token", re.IGNORECASE
)
"""Words of what is a part of a step, or decodes something else."""


@dataclass(frozen=True, slots=True)
class Told:
    """A decode step by its name; None where the name does not tell.

    sequences: of the batch; tokens: new ones in the step; cached_tokens: positions that attention reads, of all of them
    """

    sequences: int | None
    tokens: int | None
    cached_tokens: int | None


@lru_cache(maxsize=65536)
def decode_step_in(name: str) -> Told | None:
    """What a range of this name tells; None where it is no decode step.

    `step[DECODE bs=16]` (SGLang), `execute_context_0(0)_generation_16(16)` and
    `execute_16_context_0(sq0sk0…)_generation_16(sq16sk8193…)` (vLLM and tools after it), `decode`, `decode_step 7`.
    """
    match = _ENGINE.search(name)
    if match is not None:
        if int(match["prompts"]) or not int(match["batch"]):
            return None
        keys = match["keys"]
        return Told(int(match["batch"]), int(match["queries"]), int(keys) if keys else None)
    match = _SGLANG.search(name)
    if match is not None:
        batch = int(match["batch"])
        return Told(batch, batch, None) if match["mode"].upper() == "DECODE" and batch else None
    return Told(None, None, None) if _WORD.search(name) and not _PART.search(name) else None
