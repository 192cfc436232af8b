"""Model references: what a user may write, and the folder that it stands for.

Accepted: a local folder, a hub id (`org/repo` or `org/repo@revision`, also `hf:org/repo@revision`), `gguf:FILE`, an alias
of the bundled list (`smollm2-135m`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.digest import digest, file_digest
from emscope.core.errors import InputError, WorldError, near
from emscope.models.loading.hashes import digest_of
from emscope.models.loading.prequantised import instead, refuse_unreadable_name, unquantised
from emscope.models.loading.sharded import weight_files, weight_map
from emscope.models.loading.tensors import refuse_broken

if TYPE_CHECKING:
    from emscope.models.types import CausalLM, Tokenizer

TEXT_FILES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
NOT_READ = (
    "config.json",
    "trainer_state.json",
    "emscope-converted.json",
    "tokens.json",
)  # of these; config.json is in the model's own digest
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class Model:
    """A model on this machine: `reference` as the user wrote it, `folder` in Hugging Face layout, `digest` of its weights.

    `held` is (net, tokenizer) of one that is already in memory.
    """

    reference: str
    folder: Path
    digest: str
    held: tuple[CausalLM, Tokenizer] | None = field(default=None, repr=False, compare=False)


def cache_folder() -> Path:
    """Return emscope's cache: $EMSCOPE_CACHE, else the user's cache folder."""
    if named := os.environ.get("EMSCOPE_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "emscope"


def locate(reference: str | Model) -> Model:
    """Return the model that `reference` names, fetching or converting it if needed; a located model is returned as it is.

    Raises:
        InputError: it names nothing, holds no weights, only pickled weights or not all shards, or is quantised in a way that
            nothing here reads.
        WorldError: it must be fetched and cannot be.
    """
    from emscope.models.loading import aliases

    if isinstance(reference, Model):
        return reference
    if not reference.strip():
        raise InputError("the model reference is empty", "give a folder, a hub id, gguf:FILE or an alias such as smollm2-135m")
    if reference.startswith("gguf:"):
        return _folder(reference, aliases.converted(Path(reference.removeprefix("gguf:")), cache_folder()))
    if reference in aliases.ALIASES:
        return _folder(reference, aliases.fetched(reference, cache_folder()))
    path = Path(reference).expanduser()
    if path.exists():
        return _folder(reference, path)
    if is_hub_id(reference):
        name = reference.removeprefix("hf:")
        refuse_unreadable_name(name)
        return _folder(reference, hub_snapshot(name))
    raise InputError(
        f"no model '{reference}'",
        f"give an existing folder, a hub id like org/repo, or an alias ({near(reference, aliases.ALIASES)})",
    )


def is_hub_id(reference: str) -> bool:
    """True where a reference can be the name of a model on the hub, whether there is one or not."""
    return reference.removeprefix("hf:").count("/") == 1 and not reference.startswith((".", "/", "~")) and "\\" not in reference


def is_here(reference: str) -> bool:
    """True where a reference is an alias, a path on this machine, or may be a name on the hub."""
    from emscope.models.loading import aliases

    if reference.startswith("gguf:"):
        return Path(reference.removeprefix("gguf:")).expanduser().exists()
    return reference in aliases.ALIASES or is_hub_id(reference) or Path(reference).expanduser().exists()


def hub_snapshot(name: str, *, weights: bool = True) -> Path:
    """Return the local snapshot of `org/repo[@revision]`, from the hub's own cache or downloaded (safetensors only, or no weights at all).

    Raises:
        InputError: where the hub says that it has no such model.
        WorldError: where it is neither cached nor reachable.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    repo, _, revision = name.partition("@")
    wanted = [*(["*.safetensors"] if weights else []), "*.json", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=wanted))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise InputError(
            f"'{name}' is not a folder here, and the hub has no such model or revision that you can access",
            "check the name, log in with `hf auth login` if it is not public, or give a local folder",
        ) from None
    except Exception as error:  # the hub client raises a dozen kinds; all mean "not available"
        with suppress(Exception):  # some versions do not look for a commit in their cache when the hub cannot be reached
            return Path(snapshot_download(repo, revision=revision or None, allow_patterns=wanted, local_files_only=True))
        raise WorldError(
            f"hub model '{name}' is not cached and could not be fetched ({type(error).__name__})",
            f"connect to the network, download it beforehand, or {instead(name) if unquantised(name) else 'give a local folder'}",
        ) from None


def _folder(reference: str, folder: Path) -> Model:
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder", "give the folder that holds config.json and *.safetensors")
    if not (folder / "config.json").is_file():
        raise InputError(f"'{folder}' has no config.json", "give a model folder in Hugging Face layout")
    if not weight_files(folder):
        refuse_pickles(folder)
        raise InputError(f"'{folder}' holds no *.safetensors", "give a folder with the weights in it")
    for path in weight_files(folder):
        refuse_broken(path, cache_folder(), "copy the model again, or give another base")
    return Model(reference, folder.resolve(), weights_digest(folder))


def refuse_pickles(folder: Path) -> None:
    """Raise InputError where `folder` has weights only as pickles, with the way to convert them."""
    pickled = sorted(
        p.name
        for p in folder.iterdir()
        if p.suffix in PICKLED and p.stem.startswith(("pytorch_model", "adapter_model", "model"))
    )
    if pickled:
        raise InputError(
            f"'{folder}' holds pickled weights ({pickled[0]}), which can run code when read",
            "convert them only if you trust them: load them with the tool that wrote them and call save_pretrained(..., safe_serialization=True)",
        )


def beside_digest(folder: Path) -> str:
    """Return a digest of everything read from a model's folder besides configuration and weights: tokenizer, templates, index, shards further down.

    It is kept apart from the model's own digest, since another version of transformers may save the tokenizer again.
    """
    named = weight_map(folder) if (folder / "config.json").is_file() else None
    below = {folder / name for name in (named or {}).values() if "/" in name}
    inside = {p for p in folder.iterdir() if p.suffix in TEXT_FILES and p.name not in NOT_READ}
    found = sorted(p for p in (*inside, *below, *folder.glob("additional_chat_templates/*.jinja")) if p.is_file())
    return digest([[p.relative_to(folder).as_posix(), digest_of(p, cache_folder())] for p in found])


def weights_digest(folder: Path) -> str:
    """Return a digest of the safetensors and the configuration in `folder`.

    Large files are hashed in full, once for as long as they stay the same (`hashes`): 0.5 GB takes about half a second.
    """
    cache = cache_folder()
    names = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name == "config.json")
    return digest([[p.name, digest_of(p, cache) if p.suffix == ".safetensors" else file_digest(p)] for p in names])
