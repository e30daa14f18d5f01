"""An emulated wire behind the real exchange, so that hiding communication can be seen on one machine.

Gloo between processes of one machine copies with the very cores that compute; nothing can hide behind anything. So
after an exchange the communication thread sleeps until `latency + bytes/bandwidth` have passed since the exchange
began. Events of such waits carry `evidence="modelled"`.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from moescope.collectors import emit
from moescope.instrumented_model.config import ConfigError

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_LINK = re.compile(r"(\d+(?:\.\d+)?)([kMG]?)B/s(?::(\d+(?:\.\d+)?)(us|ms))?")

DEFAULT_LINK = "20MB/s:300us"
"""Gives size tiny about 1:1 of communication to computation before overlap, as the report has (section 3.2.1)."""

DEFAULT_INTRA_LINK = "64MB/s:100us"
"""3.2 times as fast, as NVLink's 160 GB/s are to InfiniBand's 50 (section 3.2.2)."""


@dataclass(frozen=True)
class Link:
    """bytes_per_s: in one direction, 0 for no emulation; latency_ns: of one exchange"""

    bytes_per_s: float
    latency_ns: int

    def wire_ns(self, sent_bytes: int, received_bytes: int) -> int:
        """Time on a full-duplex wire; 0 where nothing travels."""
        busier = max(sent_bytes, received_bytes)
        return self.latency_ns + int(busier / self.bytes_per_s * 1e9) if self.bytes_per_s and busier else 0

    def hold(self, op: str, start_ns: int, sent_bytes: int, received_bytes: int) -> None:
        """Sleep for what is left of the wire's time, on the calling (communication) thread, and say so."""
        now_ns = emit.clock_ns()
        left_ns = start_ns + self.wire_ns(sent_bytes, received_bytes) - now_ns
        if left_ns <= 0:
            return
        time.sleep(left_ns / 1e9)
        # The wire is free when its time is over, not when this thread gets the interpreter back.
        emit.kernel(
            name=f"emulated_link:{op}",
            kind="comm",
            bytes=sent_bytes,
            start_ns=now_ns,
            dur_ns=left_ns,
            evidence="modelled",
        )

    def __str__(self) -> str:
        if not self.bytes_per_s:
            return "none (gloo's own time only)"
        return f"emulated, {self.bytes_per_s / 1e6:g} MB/s each way, {self.latency_ns / 1000:g} us latency"


NO_LINK = Link(0, 0)


def parse_link(text: str) -> Link:
    """`1GB/s:50us`, `20MB/s`, `none`. Raises ConfigError for anything else."""
    if text == "none":
        return NO_LINK
    match = _LINK.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"link {text!r} is not understood: write BANDWIDTH:LATENCY such as 1GB/s:50us, or none")
    latency_ns = float(match[3] or 0) * (1_000_000 if match[4] == "ms" else 1000)
    return Link(float(match[1]) * _UNITS[match[2]], int(latency_ns))
