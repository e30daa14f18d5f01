"""Starts ranks of a script as torchrun does, without importing torch: `launch.py COUNT SCRIPT ARGUMENTS…`.

Its exit code is 0 where that of every rank is.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

if __name__ == "__main__":
    count = int(sys.argv[1])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1])}
    shared = os.environ | meeting | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv[2:]], env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(count)
    ]
    codes = [rank.wait() for rank in ranks]
    sys.exit(int(any(codes)))
