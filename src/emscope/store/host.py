"""Which machine this is, for what several of them share."""

from __future__ import annotations

import socket
from functools import cache
from pathlib import Path


@cache
def this_host() -> str:
    """Return a name for this machine since its boot: a lock taken here only tells about processes on the same machine."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"
