"""The C libraries that write the ring inside the target, and where they are."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def library_path() -> Path | None:
    """The built library, or None where the package was installed without a compiler."""
    return _built("_ring")


def injection_path() -> Path | None:
    """What the CUDA driver is to load (injection.c), or None where it was not built."""
    return _built("_injection")


def _built(name: str) -> Path | None:
    folder = Path(__file__).resolve().parent
    for suffix in EXTENSION_SUFFIXES:
        candidate = folder / f"{name}{suffix}"
        if candidate.is_file():
            return candidate
    return None
