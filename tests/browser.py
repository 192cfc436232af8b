"""Pages opened in a real browser, all of whose requests go to a proxy here that counts them."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--virtual-time-budget=8000", "--dump-dom"),
)


def dom(page: Path, folder: Path, where: str = "", *flags: str) -> str:
    """Return a page as a browser has it after its scripts, opened at `#where`; `folder` is the browser's own."""
    words = ["chromium", *FLAGS, f"--user-data-dir={folder}", *flags, page.as_uri() + (f"#{where}" if where else "")]
    return subprocess.run(words, capture_output=True, text=True, timeout=180, check=True).stdout


@contextmanager
def counting_proxy() -> Iterator[tuple[str, list[str]]]:
    """Yield the flag that sends a browser's requests here, and the requests."""
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            asked.append(self.raw_requestline.decode(errors="replace").strip())
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"--proxy-server=http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
