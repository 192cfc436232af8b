"""GGUF to a Hugging Face folder in safetensors, once, with the tokenizer that the file really means.

transformers reads GGUF weights correctly but ignores the pre-tokenizer that `tokenizer.ggml.pre` names: it splits digits and
blank lines as GPT-2 does whatever the file says. The name is read here and the pre-tokenizer set, or the file is rejected.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from emscope.core.digest import file_digest
from emscope.core.errors import InputError
from emscope.core.limits import bounded, strangers
from emscope.models.loading.quiet import no_gguf_bar, quiet

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

    from emscope.models.types import CausalLM, FastTokenizer, Tokenizer

DONE = "emscope-converted.json"
REMEDY = "use the model's Hugging Face folder"
SECONDS = 15.0  # of processor time to read the header of a small file
SECONDS_A_BYTE = (
    1e-7  # more for a larger one: 150,000 tokens with their merges take 9 on a slow machine, and lie in 400 MB and more
)


def converted(file: Path, cache: Path) -> Path:
    """Return the converted folder of a GGUF file, converting it the first time; keyed by the file's SHA-256.

    Raises:
        InputError: the file is not GGUF, or names a pre-tokenizer emscope does not know.
    """
    with file.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise InputError(f"{file} is not a GGUF file", "give a file that llama.cpp can read")
    target = cache / "models" / f"gguf-{file_digest(file)[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(str(cache / f"{target.name}.lock")):
        if not (target / DONE).is_file():
            convert(file, target)
    return target


def convert(file: Path, target: Path, *, dtype: str = "float32", check: Callable[[Tokenizer], None] | None = None) -> None:
    """Write `target` (config, safetensors in `dtype`, tokenizer) from `file`; appears whole or not at all.

    Args:
        check: gets the tokenizer before anything is written, and raises if it is wrong.

    Raises:
        InputError: where the architecture or the pre-tokenizer is unknown.
    """
    with strangers(f"{file.name} is damaged", REMEDY), bounded(SECONDS + SECONDS_A_BYTE * file.stat().st_size):
        pre, tensors = _header(file)
    if pre not in PRE_TOKENIZERS:
        raise InputError(
            f"{file.name} names the pre-tokenizer '{pre}', which emscope cannot rebuild (known: {', '.join(sorted(PRE_TOKENIZERS))})",
            "use the model's original Hugging Face folder, which has the right tokenizer",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # Leftovers of a killed conversion; one process at a time holds the lock.
    for left in target.parent.glob(f".converting-{target.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".converting-{target.name}-"))
    try:
        with strangers(f"{file.name} cannot be converted", REMEDY):
            tokenizer = _tokenizer(file, pre)
            if check:
                check(tokenizer)
            tokenizer.save_pretrained(str(work))
            _write_weights(file, work, dtype, tensors)
        (work / DONE).write_text(json.dumps({"source": file.name, "sha256": file_digest(file), "pre": pre}) + "\n")
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _header(file: Path) -> tuple[str, int]:
    """Return `tokenizer.ggml.pre` of a GGUF file, "default" where it names none, and how many tensors it holds."""
    from gguf import GGUFReader

    reader = GGUFReader(str(file))  # reads every token, so once
    field = reader.get_field("tokenizer.ggml.pre")
    return str(field.contents()) if field is not None else "default", len(reader.tensors)


def _write_weights(file: Path, folder: Path, dtype: str, tensors: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from emscope.models.sizing.plausible import refuse_implausible

    quiet()
    config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    refuse_implausible(config, tensors, file.stat().st_size, str(file))
    with no_gguf_bar():
        loaded: CausalLM = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=getattr(torch, dtype)
        )
    # The model loaded from GGUF refuses save_pretrained, so its tensors move into an ordinary empty one.
    with torch.device("meta"):
        plain: CausalLM = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(str(folder))


def _tokenizer(file: Path, pre: str) -> Tokenizer:
    from transformers import AutoTokenizer

    quiet()
    tokenizer: FastTokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    rebuilt = PRE_TOKENIZERS[pre]()
    if rebuilt is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = rebuilt
    return tokenizer


def _smollm() -> PreTokenizer:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def _gpt2() -> PreTokenizer:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _as_read() -> None:
    """transformers' own reader builds this one correctly (checked against stored ids)."""


PRE_TOKENIZERS: dict[str, Callable[[], PreTokenizer | None]] = {
    "smollm": _smollm,
    "gpt-2": _gpt2,
    "gpt2": _gpt2,
    "qwen2": _as_read,
}
