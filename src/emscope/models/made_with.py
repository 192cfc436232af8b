"""What numbers that a model computed here were made with."""

from __future__ import annotations

from emscope.core.versions import versions
from emscope.models.fast.float32_products import is_exact


def made_with() -> dict[str, str]:
    """Return the versions that decide numbers, and which library multiplies float32 matrices on this processor."""
    return versions() | {"float32 products": "oneDNN" if is_exact() else "torch's default"}
