"""The command line. One command a file; nothing heavy is imported before a command needs it."""

from __future__ import annotations

from emscope.cli.app import main

__all__ = ["main"]
