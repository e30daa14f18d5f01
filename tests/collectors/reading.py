"""Reads a recording's tables in the plainest way there is, independent of the code under test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa


def rows(recording: Path, table: str) -> list[dict[str, Any]]:
    """All rows of `table`, of whole batches, over all ranks and hosts."""
    found: list[dict[str, Any]] = []
    for path in sorted(recording.glob(f"*/{table}-*.arrows")):
        with open(path, "rb") as file:
            try:
                reader = pa.ipc.open_stream(file)
                while True:
                    found += reader.read_next_batch().to_pylist()
            except (StopIteration, pa.ArrowInvalid, OSError):
                continue
    return found


def meta(recording: Path) -> dict[str, Any]:
    """meta.json."""
    found: dict[str, Any] = json.loads((recording / "meta.json").read_text())
    return found
