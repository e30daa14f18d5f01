"""Which backend multiplies: probed and chosen once, at start-up, and told with the reasons against the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moescope.collectors import emit
from moescope.instrumented_model.config import ConfigError
from moescope.instrumented_model.gemm import products
from moescope.instrumented_model.gemm.arithmetic import Arithmetic
from moescope.instrumented_model.gemm.backend import Backend
from moescope.instrumented_model.gemm.backends.cpu import Cpu
from moescope.instrumented_model.gemm.backends.deepgemm import DeepGemm
from moescope.instrumented_model.gemm.backends.emulated import Emulated
from moescope.instrumented_model.gemm.backends.reference import Reference
from moescope.instrumented_model.gemm.backends.scaled_mm import ScaledMm
from moescope.instrumented_model.gemm.backends.triton_kernels import Triton
from moescope.instrumented_model.numerics.quantise import quantise_blocks, quantise_columns, quantise_tiles, transposed

PREFERRED: tuple[Backend, ...] = (DeepGemm(), Triton(), ScaledMm(), Cpu())
"""Tried in this order where none is named; the last works everywhere."""
BY_NAME: tuple[Backend, ...] = (Emulated(), Reference())
"""Only taken where they are named."""
NAMES = tuple(backend.name for backend in PREFERRED + BY_NAME)

_TOLERANCE = 2.0**-7
"""Relative error of a probe: twice the rounding to BF16, far below what a wrong scale or tile would do."""


@dataclass(frozen=True)
class Choice:
    """The backend, what is asked of it, and why each one before it in the order was not taken."""

    backend: Backend
    arithmetic: Arithmetic
    rejected: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        reasons = "; ".join(f"not {name}: {reason}" for name, reason in self.rejected)
        what = f"{self.backend.name}: {self.backend.arithmetic}; {self.arithmetic}"
        return f"{what} ({reasons})" if reasons else what


def choose(
    name: str | None = None, device: torch.device | str = "cpu", arithmetic: Arithmetic = Arithmetic()
) -> Choice:
    """Choose for tensors on `device`, have all products use the choice, and tell the recording.

    name: the backend to take, or None for the first of `PREFERRED` that works
    arithmetic: what products will ask for; it is probed with that
    raises: ConfigError where there is none of that name, or it does not work here
    """
    device = torch.device(device)
    choice = _first(device, arithmetic) if name is None else _named(name, device, arithmetic)
    products.use(choice.backend)
    emit.note("gemm", str(choice))
    return choice


def _first(device: torch.device, arithmetic: Arithmetic) -> Choice:
    rejected: list[tuple[str, str]] = []
    for backend in PREFERRED:
        # Kernels that an interpreter runs on the CPU are for checks.
        reason = "only by name on the CPU" if _interpreted(backend, device) else unusable(backend, device, arithmetic)
        if reason is None:
            return Choice(backend, arithmetic, tuple(rejected))
        rejected.append((backend.name, reason))
    raise ConfigError("no backend multiplies here: " + "; ".join(f"{name}: {reason}" for name, reason in rejected))


def _interpreted(backend: Backend, device: torch.device) -> bool:
    return backend.name == "triton" and device.type == "cpu" and backend.why_not(device) is None


def _named(name: str, device: torch.device, arithmetic: Arithmetic) -> Choice:
    for backend in PREFERRED + BY_NAME:
        if backend.name == name:
            reason = unusable(backend, device, arithmetic)
            if reason is not None:
                raise ConfigError(f"backend {name} does not work here: {reason}; leave it out to have one chosen")
            return Choice(backend, arithmetic, ())
    raise ConfigError(f"no backend {name!r}: choose one of {', '.join(NAMES)}")


def unusable(backend: Backend, device: torch.device, arithmetic: Arithmetic = Arithmetic()) -> str | None:
    """Why `backend` cannot be used for such products on `device`: its own reason, or how its probe failed."""
    reason = backend.why_not(device)
    if reason is not None:
        return reason
    try:
        return _probed(backend, device, arithmetic.interval)
    except Exception as error:  # noqa: BLE001  whatever a library raises is the reason that is told
        return f"a small product failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def _probed(backend: Backend, device: torch.device, interval: int | None) -> str | None:
    """Small products of all three forms and both results, held against FP64. returns: what is wrong, or None"""
    random = torch.Generator().manual_seed(0)
    rows = [70, 0, 130]
    x = torch.randn(sum(rows), 320, generator=random)
    w = torch.randn(len(rows), 192, 320, generator=random)
    dy = torch.randn(sum(rows), 192, generator=random)
    xq, wq = quantise_tiles(x.to(device)), quantise_blocks(w.to(device))
    x_t, dy_t = (transposed(quantise_columns(t.to(device), groups=rows)) for t in (x, dy))
    one = quantise_blocks(w[0].to(device))
    for out_dtype in (torch.float32, torch.bfloat16):
        for form, got, want in (
            ("dense", products.dense, (xq, one)),
            ("grouped M", products.grouped_m, (xq, wq, rows)),
            ("grouped K", products.grouped_k, (dy_t, x_t, rows)),
        ):
            exact = got(*want, out_dtype=torch.float32, backend=Reference())
            result = got(*want, interval=interval, out_dtype=out_dtype, backend=backend).float()
            error = float((result - exact).norm() / exact.norm())
            if not error < _TOLERANCE:
                return f"a {form} product into {out_dtype} is off by {error:.1e} of its FP64 reference"
    return None
