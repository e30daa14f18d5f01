"""`python -m moescope.profiler.recorded RECORDING NAME`: packs a recording, to ship with moescope."""

from __future__ import annotations

import sys
from pathlib import Path

from moescope.profiler.errors import MoescopeError
from moescope.profiler.recorded.archive import HERE, pack


def main() -> None:
    """Packs into NAME.zip beside this file, or where NAME is a path, there."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m moescope.profiler.recorded RECORDING NAME")
    name = Path(sys.argv[2])
    path = (name if len(name.parts) > 1 else HERE / name).with_suffix(".zip")
    try:
        size = pack(Path(sys.argv[1]), path)
    except MoescopeError as error:
        sys.exit(f"moescope: {error}")
    print(f"{path}: {size:,} bytes; tell how it was made in {path.with_suffix('.SOURCE.txt').name}")


if __name__ == "__main__":
    main()
