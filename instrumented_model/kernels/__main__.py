"""python -m moescope.instrumented_model.kernels [WORD…]: what the kernels compile to, and whether they run here.

WORD: only kernels with one of these in their name
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence

from moescope.instrumented_model.kernels import why_not


def main(words: Sequence[str]) -> int:
    """Print the table of compiled kernels whose names hold one of `words`. returns: 0, or 2 where triton is missing"""
    os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported; the table needs its compiler
    if "triton" not in sys.modules and "TRITON_CACHE_DIR" not in os.environ:
        with tempfile.TemporaryDirectory(prefix="moescope-kernels-") as cache:
            os.environ["TRITON_CACHE_DIR"] = cache
            return _print_table(words)
    return _print_table(words)


def _print_table(words: Sequence[str]) -> int:
    try:
        import triton
    except ImportError:
        print("error: triton is not installed: pip install 'moescope[model]'", file=sys.stderr)
        return 2
    from moescope.instrumented_model.kernels.ahead import TARGET, table

    print(f"triton {triton.__version__}, compiled ahead of time for sm_{TARGET.arch}")
    print(table(*words))
    here = why_not()
    print(f"Kernels can run here: {'yes' if here is None else 'no, ' + here}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
