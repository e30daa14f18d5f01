"""The device of these tests. Under `TRITON_INTERPRET=1` they rehearse on the CPU."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def device() -> Any:
    """torch.device of the GPU; without one the test is left out with the reason."""
    from moescope.instrumented_model.kernels import interpreted, why_not

    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    import torch

    return torch.device("cpu" if interpreted() else "cuda:0")
