"""How much to compute at once: on a CPU little helps no further, a GPU starves on little."""

from __future__ import annotations

from typing import Any

CPU_TOKENS, CPU_ROWS = 3072, 400
GPU_TOKENS, GPU_ROWS, GPU_WIDTH = 49_152, 1600, 576  # measured on a model of that hidden width


def batch_tokens(net: Any) -> int:
    """Return how many tokens to read at once: on a GPU as many as take the memory that 49,152 take at a width of 576."""
    return _scaled(net, GPU_TOKENS, CPU_TOKENS)


def rows(net: Any) -> int:
    """Return how many answers to write side by side: on a GPU 1,600 at a width of 576, fewer for wider models."""
    return _scaled(net, GPU_ROWS, CPU_ROWS)


def _scaled(net: Any, most: int, least: int) -> int:
    if net.device.type == "cpu":
        return least
    width = int(getattr(net.config.get_text_config(), "hidden_size", None) or GPU_WIDTH)
    return max(least, min(most, most * GPU_WIDTH // width))
