"""A run that is over within a fraction of a second shows operators, too, wherever its slices happen to lie."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.collectors.reading import rows
from tests.conftest import Moescope

PROCESSES = 3
SHORT = """
import time, torch
torch.set_num_threads(1)
model = torch.nn.Linear(256, 256)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
until = time.monotonic() + 0.4
while time.monotonic() < until:
    optimizer.zero_grad()
    model(torch.randn(64, 256)).sum().backward()
    optimizer.step()
"""


def test_short_runs_have_windows_with_operators_in_them(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(SHORT)
    one_after_another = " && ".join([f"{sys.executable} target.py"] * PROCESSES)
    done = moescope("run", "-o", "rec", "--", "sh", "-c", one_after_another)
    assert done.returncode == 0, done.stderr
    ranks = {row["rank"] for row in rows(tmp_path / "rec", "kernels")}
    assert len(ranks) == PROCESSES
