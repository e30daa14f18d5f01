"""What `moescope run` asks of the agent, carried in environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """budget: share of the target's time that recording may cost, None for all of it (`full`)
    steps: first and last step whose operators are recorded, None for all
    ranks: ranks that are recorded, None for all
    collect: collectors wanted
    ring_chunks: 64 KB chunks of the ring
    """

    ring_dir: str
    library: str | None
    budget: float | None
    steps: tuple[int, int] | None
    ranks: frozenset[int] | None
    collect: frozenset[str]
    ring_chunks: int

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Settings:
        """Reads what the sidecar has set; raises ValueError on what it cannot have set."""
        budget = env.get("MOESCOPE_BUDGET", "0.02")
        first, _, last = env.get("MOESCOPE_STEPS", "").partition(":")
        ranks = env.get("MOESCOPE_RANKS", "")
        collect = env.get("MOESCOPE_COLLECT", "kernels,phases,communication")
        return cls(
            ring_dir=env["MOESCOPE_RING_DIR"],
            library=env.get("MOESCOPE_LIBRARY") or None,
            budget=None if budget == "full" else float(budget),
            steps=(int(first or 0), int(last or 2**62)) if first or last else None,
            ranks=frozenset(int(r) for r in ranks.split(",")) if ranks else None,
            collect=frozenset(collect.split(",")),
            ring_chunks=int(env.get("MOESCOPE_RING_CHUNKS", "512")),
        )
