"""What a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from emscope.version import __version__

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "scipy", "pyarrow")


def versions() -> dict[str, str]:
    """Return versions of emscope, Python and the packages that decide numbers. No host names, no paths."""
    found = {"emscope": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
