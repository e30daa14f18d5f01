"""Builds the C libraries in place, for a plain checkout: `python -m moescope.collectors.native.build`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

_FLAGS: Final = ("-std=c11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")


def build(folder: Path | None = None) -> list[Path]:
    """The libraries, made from the sources beside this file with the C compiler that `cc` is.

    folder: where to put them, beside the sources unless given
    raises: FileNotFoundError where there is no compiler, RuntimeError with the compiler's words where it fails
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("no C compiler (cc, gcc or clang): install one")
    here = Path(__file__).resolve().parent
    # Python's headers are wanted for the faster of two ways into the ring, and done without.
    headers = f"-I{sysconfig.get_paths()['include']}"
    made = []
    for name, sources in (
        ("_ring", [path for path in sorted(here.glob("*.c")) if path.name != "injection.c"]),
        ("_injection", [here / "injection.c"]),
    ):
        target = (folder or here) / f"{name}{EXTENSION_SUFFIXES[0]}"
        # Made beside it and moved: a process may have the old one open.
        part = target.with_suffix(".part")
        command = [compiler, *_FLAGS, headers, *map(str, sources), "-o", str(part), "-ldl", "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler}: {done.stderr.strip()}")
        part.replace(target)
        made.append(target)
    return made


if __name__ == "__main__":
    try:
        print(*build(), sep="\n")
    except (OSError, RuntimeError) as error:
        sys.exit(str(error))
