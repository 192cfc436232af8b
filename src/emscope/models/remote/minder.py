"""Runs a command and ends it, with everything it started, when the parent of this process ends, even by kill -9.

    python minder.py COMMAND...

Standard input is a pipe that only the parent holds: when it closes, the parent has ended. Nothing from emscope is imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 10.0  # seconds to end on its own


def main() -> int:
    """Run the command; return its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the command, which is in the same group
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_watch, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
