"""A fine-tune whose weights are at a host: what its folder says about it, and the base that its readings are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Never, cast

from emscope.core.digest import short
from emscope.core.errors import InputError, WorldError
from emscope.core.plain import Json, Result, from_json, read_json
from emscope.models.loading import aliases
from emscope.models.loading.carried import chat_of
from emscope.models.loading.checkpoints import HOSTED, Checkpoint
from emscope.models.loading.load import Loaded
from emscope.models.loading.source import Model, hub_snapshot, is_hub_id, locate

if TYPE_CHECKING:
    from emscope.models.types import CausalLM

SCHEMA, JOB_SCHEMA, KIND = "emscope.hosted/1", "emscope.job/1", "hosted"
REMEDY = "delete it and train again, or choose a new folder with `out`"
PATH = "tinker://"


@dataclass(frozen=True, slots=True)
class HostedStep(Result):
    """An optimiser step at a host: loss in nats per answer token; `tokens_seen` as in a training here; norms where the host gives them."""

    step: int
    loss: float
    lr: float
    tokens_seen: int
    seconds: float
    grad_norm: float | None = None


@dataclass(frozen=True, slots=True)
class HostedSave(Result):
    """Weights that a host keeps: `sampler` to read and sample at (planned checkpoints only), `state` to resume training from and to download."""

    step: int
    state: str
    sampler: str | None = None


@dataclass(frozen=True, slots=True)
class Spent(Result):
    """Tokens trained on, read and sampled at a host."""

    trained: int = 0
    read: int = 0
    sampled: int = 0

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.trained - other.trained, self.read - other.read, self.sampled - other.sampled)

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.trained + other.trained, self.read + other.read, self.sampled + other.sampled)

    def __mul__(self, times: int) -> Spent:
        return Spent(self.trained * times, self.read * times, self.sampled * times)


@dataclass(frozen=True, slots=True)
class HostedRun(Result):
    """The content of `hosted.json`. It contains no key.

    Attributes:
        base: the host's name for it. tokenizer: reference of the tokenizer that prompts are rendered with. system: the system
            prompt.
        settings: digest of what decides the numbers. tokens: digest of the rendered conversations. order: digest of all batches.
        steps: of the whole training. saves: by step. log: one row per step, up to the last save.
    """

    schema: ClassVar[str] = SCHEMA

    host: str
    base: str
    tokenizer: str
    system: str
    chat_kwargs: Mapping[str, Json] | None
    settings: str
    tokens: str
    order: str
    steps: int
    saves: tuple[HostedSave, ...] = ()
    log: tuple[HostedStep, ...] = ()
    spent: Spent = Spent()

    @property
    def done(self) -> int:
        """The last step that is saved, 0 before the first."""
        return self.saves[-1].step if self.saves else 0


@dataclass(frozen=True, slots=True)
class HostedCheckpoint(Checkpoint):
    """One step of a fine-tune at a host: `path` is for reading, `state` for resuming training."""

    path: str = ""
    state: str = ""


def read_hosted(folder: Path) -> HostedRun | None:
    """Return what a folder says about a fine-tune at a host; None for another kind of folder.

    Raises:
        InputError: it is damaged, or of another version, or of a fine-tuning job, whose weights nobody has.
    """
    file = folder / HOSTED
    if not file.is_file():
        return None
    found = read_json(file, REMEDY)
    if isinstance(found, Mapping) and found.get("schema") == JOB_SCHEMA:
        raise InputError(
            f"'{folder}' belongs to a fine-tuning job, whose models can be sampled but not looked into",
            "sample them with emscope check or emscope sample",
        )
    if not isinstance(found, Mapping) or found.get("schema") != SCHEMA:
        raise InputError(f"'{file}' does not have version {SCHEMA}", REMEDY)
    run = from_json(HostedRun, found, str(file), REMEDY)
    for save in run.saves:
        for path in (save.state, save.sampler):
            if path is not None and not (path.startswith(PATH) and path.isprintable() and " " not in path):
                raise InputError(f"'{file}' is damaged (a path is not of the form tinker://RUN/KIND/NAME)", REMEDY)
    return run


def hosted_checkpoints(folder: Path, run: HostedRun) -> list[HostedCheckpoint]:
    """Return the checkpoints of a fine-tune at a host, by step.

    Raises:
        InputError: none was saved yet.
    """
    found = [
        HostedCheckpoint(
            s.step, folder.resolve() / f"checkpoint-{s.step}", KIND, run.base, short([run.host, s.sampler]), s.sampler, s.state
        )
        for s in run.saves
        if s.sampler is not None
    ]
    if not found:
        raise InputError(f"the fine-tune in '{folder}' has saved no checkpoint yet", "continue it with emscope train")
    return found


class Elsewhere:
    """Stands for weights that are not on this machine; computing with them raises an error."""

    def __init__(self, base: str) -> None:
        self._base = base

    def __getattr__(self, name: str) -> Never:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputError(
            f"the weights of '{self._base}' are at its host, but this needs them here",
            "download the adapter with emscope models fetch, and give the base as a folder or hub id",
        )


@dataclass(slots=True)
class Hosted(Loaded):
    """A base at a host: its tokenizer and chat format are here, its weights are not."""

    longest: int = 1 << 20

    @property
    def context(self) -> int:
        """Longest sequence that the host takes [tokens]."""
        return self.longest


def tokenizer_folder(reference: str) -> Path:
    """Return a folder with the tokenizer that a reference names; no weights are fetched for it.

    Raises:
        InputError: there is none.
        WorldError: it must be fetched and cannot be.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return path.resolve()
    if reference in aliases.ALIASES or reference.startswith("gguf:"):
        return locate(reference).folder
    if not is_hub_id(reference):
        raise InputError(f"no tokenizer '{reference}'", "give its folder or hub id as `tokenizer` of the host")
    try:
        return hub_snapshot(reference.removeprefix("hf:"), weights=False)
    except (InputError, WorldError) as error:
        raise type(error)(f"no tokenizer: {error.fault}", "give its folder as `tokenizer` of the host") from None


def model_at(host: str, base: str, tokenizer: str) -> Model:
    """Return the local stand-in for a base at a host: its name, with the folder of its tokenizer.

    Raises:
        InputError, WorldError: as `tokenizer_folder`.
    """
    return Model(base, tokenizer_folder(tokenizer), short([host, base]))


def hosted_base(
    host: str,
    base: str,
    tokenizer: str,
    *,
    system: str,
    chat_kwargs: Mapping[str, Json] | None = None,
    context: int | None = None,
    checkpoints: Sequence[Checkpoint] = (),
) -> Hosted:
    """Return a base at a host, ready to be asked.

    Raises:
        InputError: no usable tokenizer or template.
    """
    model = model_at(host, base, tokenizer)
    chat = chat_of(model, system, chat_kwargs, checkpoints)
    chat = replace(chat, note=", ".join(one for one in (chat.note, f"read at {host}") if one))
    longest = {"longest": context} if context else {}
    return Hosted(cast("CausalLM", Elsewhere(base)), chat.tokenizer, chat, model, host, **longest)
