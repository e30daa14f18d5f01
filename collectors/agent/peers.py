"""What the ranks of a host agree on: a window that only one of them has open slows down all that wait for it."""

from __future__ import annotations

import os
import time

SUFFIX = ".share"
FRESH_S = 3.0
"""A rank that has not told its share for so long does not record, or is gone."""
_FORM = "{:.9f}"


class Peers:
    """The least of the shares that the recorded ranks of this run want, by a small file of each beside the rings."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._own = os.path.join(folder, f"{os.getpid()}{SUFFIX}")

    def least(self, share: float, *, sure: bool = True) -> float:
        """Tells this rank's share, and returns the least of all; its own where files cannot be had.

        sure: whether it rests on windows with operators; a rank without any keeps no other from them
        """
        try:
            # As long each time: a reader finds one number or another.
            with open(self._own, "r+" if os.path.exists(self._own) else "w", encoding="ascii") as file:
                file.write(_FORM.format(share if sure else 1.0))
            return min([share, *self._others()])
        except OSError:
            return share

    def _others(self) -> list[float]:
        found = []
        since = time.time() - FRESH_S
        with os.scandir(self._folder) as entries:
            fresh = [
                entry.path
                for entry in entries
                if entry.name.endswith(SUFFIX) and entry.path != self._own and entry.stat().st_mtime >= since
            ]
        for path in fresh:
            with open(path, encoding="ascii") as file:
                text = file.read()
            try:
                found.append(float(text))
            except ValueError:
                continue  # it is being made
        return [share for share in found if 0 < share <= 1]
