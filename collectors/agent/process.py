"""What this process was started for."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any


def is_spawned() -> bool:
    """Whether multiprocessing started this process: RANK in its environment is then its parent's."""
    return any("multiprocessing" in word for word in getattr(sys, "orig_argv", [])[1:4])


def is_data_worker(torch: Any) -> bool:
    """Whether this process feeds a DataLoader: it is no rank.

    Told by what the process was started for: torch itself says so only once the worker has set itself up.
    """
    target = getattr(multiprocessing.current_process(), "_target", None)
    return getattr(target, "__name__", "") == "_worker_loop" or torch.utils.data.get_worker_info() is not None
