"""Which machine this is, for what several of them share."""

from __future__ import annotations

import socket
from functools import cache
from pathlib import Path


@cache
def this_host() -> str:
    """Return a name of this machine since it was started: a lock that could be had here tells of processes of the same one only."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"
