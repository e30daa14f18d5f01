"""The C library that writes the ring inside the target, and where it is."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def library_path() -> Path | None:
    """The built library, or None where the package was installed without a compiler."""
    folder = Path(__file__).resolve().parent
    for suffix in EXTENSION_SUFFIXES:
        candidate = folder / f"_ring{suffix}"
        if candidate.is_file():
            return candidate
    return None
