"""One place that silences transformers; emscope shows its own progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial


def quiet() -> None:
    """Silence the progress bars and warnings of transformers; emscope shows its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def no_gguf_bar() -> Iterator[None]:
    """Silence the bar of transformers' GGUF reader inside the block; that one listens to no setting."""
    from transformers import modeling_gguf_pytorch_utils as reader

    before = reader.tqdm
    reader.tqdm = partial(before, disable=True)
    try:
        yield
    finally:
        reader.tqdm = before
