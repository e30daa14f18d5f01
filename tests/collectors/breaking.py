"""Breaks moescope on purpose, in its own process only."""

from __future__ import annotations

import os
from pathlib import Path


def broken(folder: Path, patch: str, command: str = "run") -> dict[str, str]:
    """An environment in which `patch` runs before `moescope <command>` does, and in no other process."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        f"import sys\nif sys.orig_argv[1:4] == ['-m', 'moescope', {command!r}]:\n"
        + "".join(f"    {line}\n" for line in patch.splitlines())
    )
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}
