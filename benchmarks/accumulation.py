"""What promotion to FP32 is worth: the emulated tensor core's error against the promotion interval, at K = 4096.

python -m benchmarks.accumulation

Operands are E4M3; the error is relative to the FP64 product of the very operands, so quantisation has no part in it.
"""

from __future__ import annotations

import time

import torch

from benchmarks.report import save
from moescope.instrumented_model.numerics.formats import E4M3, E4M3_MAX
from moescope.instrumented_model.numerics.tensor_core import INTERVALS, accumulate

K = 4096
ROWS = 128
"""Rows of each operand: as many dot products as its square."""

DISTRIBUTIONS = ("uniform [0, 1)", "uniform [0, 448)", "normal")


def _operand(distribution: str) -> torch.Tensor:
    """[ROWS, K] float8_e4m3fn"""
    if distribution == "normal":
        return torch.randn(ROWS, K).to(E4M3)
    return (torch.rand(ROWS, K) * (E4M3_MAX if "448" in distribution else 1.0)).to(E4M3)


def _table(distribution: str) -> list[dict[str, float | int | str | None]]:
    torch.manual_seed(0)
    a, b = _operand(distribution), _operand(distribution)
    exact = a.double() @ b.double().T
    rows: list[dict[str, float | int | str | None]] = []
    for interval in INTERVALS:
        start = time.perf_counter()
        error = (accumulate(a, b, interval).double() - exact).abs()
        rows.append(
            {
                "distribution": distribution,
                "interval": interval,
                # With signs a single dot product can be near 0, so errors are held against the whole.
                "relative_error": float(error.norm() / exact.norm()),
                # Of one dot product; where signs cancel it says nothing.
                "largest_relative_error": None if distribution == "normal" else float((error / exact).max()),
                "seconds": time.perf_counter() - start,
            }
        )
    return rows


def main() -> None:
    """Prints and keeps the table; stops where the error does not grow with the interval."""
    rows = [row for distribution in DISTRIBUTIONS for row in _table(distribution)]
    print(f"K = {K}, {ROWS * ROWS} dot products, error relative to FP64")
    print(f"{'promoted every':>14}" + "".join(f"{name:>20}" for name in DISTRIBUTIONS))
    for interval in INTERVALS:
        line = [row["relative_error"] for row in rows if row["interval"] == interval]
        print(f"{interval or 'never':>14}" + "".join(f"{error:20.1e}" for error in line))
    largest = [row["largest_relative_error"] for row in rows if row["distribution"] == "uniform [0, 448)"]
    print("largest of one dot product, uniform [0, 448): " + "  ".join(f"{error:.1e}" for error in largest))
    for name in DISTRIBUTIONS:
        errors = [row["relative_error"] for row in rows if row["distribution"] == name]
        if errors != sorted(errors, key=float):  # type: ignore[arg-type]
            raise SystemExit(f"{name}: the error does not grow with the promotion interval: {errors}")
    save("accumulation", "python -m benchmarks.accumulation", {"k": K, "dot_products": ROWS * ROWS, "table": rows})


if __name__ == "__main__":
    main()
