"""One place that silences transformers; emscope shows its own progress."""

from __future__ import annotations


def quiet() -> None:
    """Silence the progress bars and warnings of transformers; emscope shows its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
