"""`emscope doctor --model`: whether one model has what emscope relies on, what memory it needs, and what has been tested.

Where the weights fit, they are examined; otherwise a tiny random copy with the same structure, which shows everything that
depends on structure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypedDict

from pydantic.json_schema import JsonSchemaValue

from emscope.core.errors import EmscopeError, InputError
from emscope.core.plain import JsonObject, Result
from emscope.core.progress import Progress, silent
from emscope.models.fast.matmul_rate import matmul_gflops
from emscope.models.loading.carried import chat_of
from emscope.models.loading.checkpoints import Checkpoint, adapter_settings, discover
from emscope.models.loading.load import QUANTISED, Loaded, load_net, pick_device
from emscope.models.loading.source import Model, locate
from emscope.models.sizing import memory, needs
from emscope.models.sizing.memory import Counted
from emscope.models.sizing.needs import Need
from emscope.study.examining import (
    Finding,
    Passed,
    examine,
    examine_chat,
    examine_vocabulary,
    refused,
)
from emscope.study.examining_adapter import adapter_like, examine_adapter

if TYPE_CHECKING:
    from emscope.models.types import CausalLM, Config
    from emscope.train.tunables import Tuned

DTYPES = ("float32", "bfloat16", QUANTISED)
MARGIN = 1.2  # of the weights: room for small passes
EXAMPLES, TOKENS, LEARNED = 4, 256, 128  # the training pass whose memory is stated
WEIGHTS, COPY = "weights", "tiny copy"
MATRIX = "tested.json"
VERSIONS = ("torch", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Room(Result):
    """Whether one kind of work fits into `free` bytes; `need` is null, with the reason in `why`, where it cannot be counted."""

    work: str
    dtype: str
    need: Need | None
    fits: bool | None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Speed(Result):
    """The matrix-multiplication rate, and tokens per second that it allows at most; None where that was not measured."""

    gflops: float | None
    reading: float | None
    training: float | None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis(Result):
    """Everything found.

    Attributes:
        examined: `weights` or `tiny copy`, with `why`. counted: its weights. findings: what was tried.
        memory: room for each work and dtype on `device`, of which `free` bytes are free.
        untested: what is not in the bundled list of tested cases. works: what will work, in sentences.
    """

    schema: ClassVar[int] = 1

    model: str
    architecture: str
    examined: str
    why: str
    device: str
    free: int | None
    counted: Counted
    findings: tuple[Finding, ...]
    memory: tuple[Room, ...]
    speed: Speed
    untested: tuple[str, ...]
    works: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """True where a check failed."""
        return any(f.outcome == Passed.FAIL for f in self.findings)

    def to_json(self) -> JsonObject:
        """Return the documented JSON shape."""
        return {"schema": self.schema, "passed": not self.failed} | Result.to_json(self)

    @classmethod
    def shape_of(cls, shape: JsonSchemaValue) -> JsonSchemaValue:
        """Return the JSON Schema of the documented shape."""
        keys = {"schema": shape["properties"].pop("schema"), "passed": {"type": "boolean"}} | shape["properties"]
        return {"properties": keys, "required": ["passed", *shape["required"]]}


def diagnose(
    reference: str,
    *,
    adapter: str | None = None,
    tiny: bool = False,
    device: str = "auto",
    progress: Progress = silent,
) -> Diagnosis:
    """Examine a model, and an adapter on it.

    Args:
        reference: as `models.source.locate` takes it, or a folder with config.json (and a tokenizer) alone.
        adapter: its folder, of which the last checkpoint is taken. tiny: examine a tiny copy even if the weights would fit.

    Raises:
        InputError: no such model or adapter, a damaged one, or an architecture that transformers does not have.
    """
    model, weights = find(reference)
    checkpoint = discover(adapter)[-1] if adapter else None
    config = memory.read_config(model.folder)
    counted, where = memory.counted(config), pick_device(device)
    free = memory.free_memory(where)
    examined, why = _what_to_examine(model, counted, free, weights=weights, tiny=tiny)
    steps = _Steps(progress, 4)
    steps.next("loading")
    findings = list(_examined(model, config, checkpoint, examined, where, counted, steps))
    steps.next("counting memory")
    rooms = tuple(_rooms(config, counted, where, free, checkpoint))
    steps.next("measuring speed")
    return Diagnosis(
        model.reference,
        str(config.get_text_config().model_type),
        examined,
        why,
        where,
        free,
        counted,
        tuple(findings),
        rooms,
        _speed(config, counted, where),
        tuple(_untested(config, checkpoint)),
        tuple(_works(findings, rooms)),
    )


class _Steps:
    """Reports one step after another to a progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def next(self, what: str) -> None:
        """Begin a step."""
        self._progress("examining", self._done, self._total)
        self._done = min(self._done + 1, self._total)


def find(reference: str) -> tuple[Model, bool]:
    """Return the model that a reference names, and whether its weights are there: a folder with a configuration alone is one too.

    Raises:
        InputError, WorldError: as `locate`.
    """
    folder = Path(reference).expanduser()
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        return Model(reference, folder.resolve(), ""), False
    return locate(reference), True


def _what_to_examine(model: Model, counted: Counted, free: int | None, *, weights: bool, tiny: bool) -> tuple[str, str]:
    """Return what is examined, and why."""
    needs = f"{memory.in_gb(counted.bytes_in('float32'))} in float32"
    if tiny:
        return COPY, "as asked"
    if not weights:
        return COPY, "the folder holds no weights"
    if free is not None and counted.bytes_in("float32") * MARGIN > free:
        return COPY, f"the weights need {needs}, but only {memory.in_gb(free)} are free"
    return WEIGHTS, f"they need {needs}" + (f" of {memory.in_gb(free)} free" if free is not None else "")


def _examined(
    model: Model, config: Config, checkpoint: Checkpoint | None, examined: str, where: str, counted: Counted, steps: _Steps
) -> Iterator[Finding]:
    """Yield every finding on a model, or on a tiny copy of it."""
    from emscope.models.sizing.tiny import tiny_model

    try:
        net = load_net(model.folder).to(where).eval().requires_grad_(False) if examined == WEIGHTS else tiny_model(config)
    except InputError as error:
        yield refused("loading", error)
        net = None
    steps.next("examining")
    if net is not None:
        yield from examine(net)
    yield from _asked(model, counted, checkpoint)
    if net is not None and checkpoint is not None:
        yield from _with_adapter(net, checkpoint, examined, counted)


def _asked(model: Model, counted: Counted, checkpoint: Checkpoint | None) -> Iterator[Finding]:
    """Yield the findings on the chat template and the vocabulary."""
    if not any((model.folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        for check in ("chat template", "vocabulary"):
            yield Finding(check, Passed.NOT_APPLICABLE, "The folder holds no tokenizer.")
        return
    try:
        chat = chat_of(model, checkpoints=[checkpoint] if checkpoint else [])
    except InputError as error:
        yield refused("chat template", error)
        return
    yield from examine_chat(chat)
    yield examine_vocabulary(chat.tokenizer, counted.vocabulary)


def _with_adapter(net: CausalLM, checkpoint: Checkpoint, examined: str, counted: Counted) -> Iterator[Finding]:
    if checkpoint.kind != "adapter":
        yield Finding("adapter", Passed.NOT_APPLICABLE, f"'{checkpoint.folder}' holds no adapter ({checkpoint.kind}).")
        return
    free = memory.free_memory(str(net.device))
    second = counted.bytes_in("float32")
    if examined == WEIGHTS and free is not None and second * MARGIN > free:
        said = f"A second model for PEFT to change needs {memory.in_gb(second)}, but only {memory.in_gb(free)} are free: give `tiny`."
        yield Finding("adapter", Passed.NOT_APPLICABLE, said)
        return
    try:
        if examined == WEIGHTS:
            yield from examine_adapter(net, checkpoint)
            return
        with adapter_like(net, checkpoint) as made:
            yield from examine_adapter(net, made)
    except InputError as error:
        yield refused("adapter", error, Passed.NOT_APPLICABLE)


def _rooms(config: Config, counted: Counted, device: str, free: int | None, checkpoint: Checkpoint | None) -> Iterator[Room]:
    """Yield what each kind of work needs in each dtype, and whether it fits."""
    kind = device.partition(":")[0]

    def training(dtype: str, *, checkpointing: bool) -> Need:
        work = needs.Training(EXAMPLES, TOKENS, LEARNED, _default_lora, checkpointing=checkpointing)
        return needs.training(config, work, dtype=dtype, device=kind, weights=counted)

    works: dict[str, Callable[[str], Need]] = {
        "reading": lambda dtype: needs.reading(config, dtype=dtype, checkpoint=checkpoint, device=kind, weights=counted),
        "sampling": lambda dtype: needs.sampling(config, dtype=dtype, device=kind, weights=counted),
        "training": lambda dtype: training(dtype, checkpointing=False),
        "training, checkpointing": lambda dtype: training(dtype, checkpointing=True),
    }
    on_cpu = kind == "cpu"
    found: dict[tuple[str, str], Need] = {}
    for dtype in DTYPES:
        for work, count in works.items():
            if dtype == QUANTISED and find_spec("bitsandbytes") is None:
                yield Room(work, dtype, None, None, "4-bit weights need bitsandbytes: pip install 'emscope[qlora]'")
                continue
            try:
                same = found.get((work, memory.compute_dtype(dtype, on_cpu=on_cpu))) if checkpoint is None else None
                need = needs.in_four_bits(same, counted, on_cpu=on_cpu) if same and dtype == QUANTISED else count(dtype)
                found[work, dtype] = need
            except Exception as error:  # what cannot run without values, or PEFT refuses to train, is reported and not guessed
                first = error.fault if isinstance(error, EmscopeError) else str(error)
                why = next((line.strip() for line in first.splitlines() if line.strip()), type(error).__name__)
                yield Room(work, dtype, None, None, why[:300])
                continue
            yield Room(work, dtype, need, None if free is None else need.total <= memory.FULL * free)


def _default_lora(net: CausalLM) -> AbstractContextManager[Tuned]:
    """Return what trains the default adapters on a model."""
    from emscope.train.spec import LoraSpec
    from emscope.train.tunables import tuned

    return tuned(Loaded(net, None, None, Model("", Path(), "")), LoraSpec(), 0)  # type: ignore[arg-type]


def _speed(config: Config, counted: Counted, device: str) -> Speed:
    """Return the machine's rate and the most tokens per second that it allows.

    A token costs two operations a weight, and four where adapters are trained.
    """
    if device != "cpu":
        return Speed(None, None, None, f"rates are measured on CPUs, but this is {device}")
    rate = matmul_gflops()
    active = _active(config, counted)
    return Speed(rate, rate * 1e9 / (2 * active), rate * 1e9 / (4 * active))


def _active(config: Config, counted: Counted) -> int:
    """Return the weights that a token is multiplied with, head aside: of experts those it is sent to."""
    text = config.get_text_config()
    many = next(
        (int(n) for name in ("num_experts", "num_local_experts", "n_routed_experts") if (n := getattr(text, name, None))), 0
    )
    few = int(getattr(text, "num_experts_per_tok", None) or many)
    if many <= 1 or few >= many:
        return counted.blocks
    experts = max(0, counted.blocks - counted.linear)  # experts have tensors of their own, which are nearly all of the weights
    return counted.blocks - experts + experts * few // many


class TestedArchitecture(TypedDict):
    """A kind of model, as config.json names it."""

    model_type: str


class TestedAdapter(TypedDict):
    """A kind of adapter, as PEFT names it."""

    peft_type: str


class Matrix(TypedDict):
    """What tests run on."""

    architectures: list[TestedArchitecture]
    adapters: list[TestedAdapter]
    versions: dict[str, str]


def matrix() -> Matrix:
    """Return the bundled list of what tests run on: architectures, kinds of adapters, library versions."""
    found: Matrix = json.loads((files("emscope.study") / "files" / MATRIX).read_text(encoding="utf-8"))
    return found


def _untested(config: Config, checkpoint: Checkpoint | None) -> Iterator[str]:
    """Yield what is not in the bundled list."""
    listed = matrix()
    kind = str(config.get_text_config().model_type)
    if kind not in {a["model_type"] for a in listed["architectures"]}:
        yield f"the architecture {kind}"
    if checkpoint is not None and checkpoint.kind == "adapter":
        peft = str(adapter_settings(checkpoint.folder)["peft_type"])
        if peft not in {a["peft_type"] for a in listed["adapters"]}:
            yield f"adapters of the kind {peft}"
    yield from _other_versions(listed["versions"])


def _other_versions(listed: Mapping[str, str]) -> Iterator[str]:
    for name in VERSIONS:
        try:
            here = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
        if here != listed[name]:
            yield f"{name} {here} (tested: {listed[name]})"


def _works(findings: Sequence[Finding], rooms: Sequence[Room]) -> Iterator[str]:
    """Yield what will work, in sentences."""
    by = {f.check: f for f in findings}
    for name, what in (("reading", "Reading fixed answers"), ("writing", "Writing answers")):
        if name in by:
            fits = [r.dtype for r in rooms if r.work == {"writing": "sampling"}.get(name, name) and r.fits]
            room = f" in {', '.join(fits)}" if fits else " on a larger machine" if any(r.fits is False for r in rooms) else ""
            yield f"{what} works{room}." if by[name].outcome == Passed.PASS else f"{what} does NOT work."
    sites = [f.check.removeprefix("site ") for f in findings if f.check.startswith("site ") and f.outcome == Passed.PASS]
    if sites:
        yield f"Activations can be read at {', '.join(sites)}, and directions added after blocks."
    training = [r for r in rooms if r.work.startswith("training")]
    fits = sorted({f"{r.dtype}{' with gradient_checkpointing' if ',' in r.work else ''}" for r in training if r.fits})
    why = next((r.why for r in training if r.why), None)
    if why:
        yield f"Training the default LoRA does not work: {why}."
    elif fits:
        yield f"Training a LoRA ({EXAMPLES} examples of {TOKENS} tokens a pass) fits in {', '.join(fits)}."
    elif any(r.fits is False for r in training):
        yield "Training a LoRA does not fit here."
    if "what else" in by:
        yield f"With this adapter: {by['what else'].sentence}"
