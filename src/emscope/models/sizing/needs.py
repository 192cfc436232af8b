"""The peak memory of reading answers, generating them and training, counted from a model's configuration alone.

Nothing is loaded: the real code runs on tensors without values (`models.simulated`), and the live tensors are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pydantic.json_schema import JsonSchemaValue

from emscope.core.plain import JsonObject, Result
from emscope.models.adapters.attached import unmergeable
from emscope.models.fast import batch_size as size
from emscope.models.fast import prefix_cache as kept
from emscope.models.loading.checkpoints import WEIGHTS, Checkpoint, adapter_settings, tensor_shapes
from emscope.models.loading.load import HALVES, QUANTISED
from emscope.models.sizing.depth import at_depth
from emscope.models.sizing.memory import BYTES, Counted, compute_dtype, counted, product

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from emscope.models.types import Adapted, CausalLM, Config

ADAM = 2  # states of a trained weight, the same size as the weight
HEAD_ROWS = 256  # logits that a reading has at once (`elicit.preference`)


@dataclass(frozen=True, slots=True)
class Need(Result):
    """The peak memory of one kind of work: bytes, by what they hold."""

    work: str
    dtype: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All bytes together."""
        return sum(self.parts.values())

    def to_json(self) -> JsonObject:
        """Return the parts with their sum."""
        return {"work": self.work, "dtype": self.dtype, "bytes": self.total, "parts": dict(self.parts)}

    @classmethod
    def shape_of(cls, shape: JsonSchemaValue) -> JsonSchemaValue:
        """Return the JSON Schema of the documented shape."""
        return {"properties": shape["properties"] | {"bytes": {"type": "integer"}}, "required": [*shape["required"], "bytes"]}


@dataclass(frozen=True, slots=True)
class Reading:
    """A packed pass: `tokens` distinct tokens in `sequences`, the longest with `longest`, and logits at `answers` of them.

    `kept` tokens of the stream are kept for later passes (`models.kept`), in all.
    """

    tokens: int
    sequences: int
    longest: int
    answers: int
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """`rows` answers of at most `most` tokens side by side, to `prompts` prompts of `prompt` tokens.

    `shrinks`: some end before others, and the rest are copied.
    """

    rows: int
    most: int
    prompts: int
    prompt: int
    shrinks: bool = True


class Trainable(Protocol):
    """What holds a model to train."""

    @property
    def model(self) -> Adapted:
        """The model."""
        ...


@dataclass(frozen=True, slots=True)
class Training:
    """A step: `micro` examples of `tokens` a pass, `answers` of each example's tokens learned, `passes` of them a step.

    Attributes:
        tune: from a model to a context manager whose value has the model to train as `model` (`train.tunables.tuned`).
        checkpointing: activations are computed twice rather than kept. autocast: computed in bfloat16.
        kept: tokens of all examples together whose lower blocks are computed once (`train.reuse`).
        layers: blocks that `tune` names by number, None where it names none.
    """

    micro: int
    tokens: int
    answers: int
    tune: Callable[[CausalLM], AbstractContextManager[Trainable]] = field(repr=False)
    passes: int = 1
    checkpointing: bool = False
    autocast: bool = False
    kept: int = 0
    layers: tuple[int, ...] | None = None


def usual_reading(config: Config, device: str = "cpu") -> Reading:
    """Return a full batch of two-answer items like the bundled ones: 25 tokens of question, two answers of 30."""
    tokens = size.batch_tokens(_standing_in(config, device))
    items = max(1, tokens // 85)
    return Reading(tokens, 2 * items, 55, 60 * items)


def usual_sampling(config: Config, device: str = "cpu") -> Sampling:
    """Return as many answers side by side as suit the device, of at most 200 tokens, ten to a question of 40."""
    rows = size.rows(_standing_in(config, device))
    return Sampling(rows, 200, max(1, rows // 10), 40)


@dataclass(frozen=True, slots=True)
class _StandIn:
    """A model's device and configuration, without the model."""

    device: torch.device
    config: Config


def _standing_in(config: Config, device: str) -> _StandIn:
    import torch

    return _StandIn(torch.device(device), config)


def reading(
    config: Config,
    work: Reading | None = None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
    scale: float = 1.0,
    weights: Counted | None = None,
) -> Need:
    """Return the memory needed to score fixed answers.

    Args:
        work: None for `usual_reading`.
        checkpoint: a fine-tune applied to the base; scale: its update's factor (`amplify`).
        weights: from `counted`, if known.
    """
    import torch

    from emscope.models.fast.head import output_head
    from emscope.models.fast.packed import hidden_states, pack, packed_attention
    from emscope.models.sizing.simulated import Ledger, simulated

    work, on_cpu, found = work or usual_reading(config, device), device == "cpu", weights or counted(config)
    running = compute_dtype(dtype, on_cpu=on_cpu)
    fits = True

    def taken(one: Config) -> tuple[int, ...]:
        nonlocal fits
        with simulated(one, running, lean=on_cpu) as net, torch.inference_mode(), Ledger(net) as ledger:
            output_head(net)
            extra = _put_on(net, checkpoint, dtype, scale) if checkpoint else 0
            with packed_attention(net, work.longest) as fits:
                joined = ledger.mark()
                if fits:
                    out = hidden_states(net, pack(_sequences(work)))
                else:
                    out = net(input_ids=torch.ones(1, work.longest, dtype=torch.long), use_cache=False).logits
                return joined, extra, ledger.peak - joined, out.nbytes

    joined, extra, body, stream = taken(config) if checkpoint else at_depth(config, taken)
    shared = _weights(found, dtype, on_cpu) | {
        "joined projections": joined,
        "fine-tune": extra,
        "kept streams": min(work.kept * found.width * BYTES[running], kept.LIMIT),
    }
    rows = min(HEAD_ROWS, work.answers) if fits else work.longest
    logits = rows * found.vocabulary * (BYTES[running] if running in HALVES else 0) + rows * found.vocabulary * 4
    return _most("reading", dtype, shared, {"activations": body}, {"activations": stream, "logits": logits})


def sampling(
    config: Config, work: Sampling | None = None, *, dtype: str = "float32", device: str = "cpu", weights: Counted | None = None
) -> Need:
    """Return the memory needed to generate answers. Args: as `reading`."""
    import torch

    from emscope.models.fast.decoding import CachedDecoding, Decoding, Recomputed
    from emscope.models.fast.head import output_head
    from emscope.models.fast.packed import packed_attention, turns_alike
    from emscope.models.sizing.simulated import Ledger, simulated

    work, on_cpu, found = work or usual_sampling(config, device), device == "cpu", weights or counted(config)
    running = compute_dtype(dtype, on_cpu=on_cpu)
    longest = work.prompt + work.most
    asked_of = max(2, work.prompts)  # which prompt a row answers is a value, so one is assumed
    of = [n * asked_of // work.rows for n in range(work.rows)]
    prompts = [[(n + 7 * k) % 97 for k in range(work.prompt)] for n in range(asked_of)]

    def taken(one: Config) -> tuple[int, ...]:
        with simulated(one, running, lean=on_cpu) as net, torch.inference_mode(), Ledger(net) as ledger:
            head = output_head(net)
            with packed_attention(net, longest) as fits:
                joined = ledger.mark()
                way: type[Decoding | CachedDecoding | Recomputed] = (
                    Decoding if fits else CachedDecoding if turns_alike(net, longest) else Recomputed
                )
                rows = way(net, head, prompts, of, work.most)
                asked = ledger.peak - joined
                if not fits:  # transformers' cache grows a token at a time: assume it nearly full
                    del rows
                    rows = way(net, head, [[*p, *[1] * (work.most - 2)] for p in prompts], of, work.most)
                rows.write(torch.ones(work.rows, dtype=torch.long))  # the room for all tokens to come is allocated here
                held = ledger.mark()
                rows.write(torch.ones(work.rows, dtype=torch.long))
                writing, logits = ledger.peak - held, rows.logits.nbytes
                ledger.mark()
                rows.keep(torch.ones(max(1, work.rows * 7 // 8), dtype=torch.long))
                return joined, asked, held - joined - logits, writing, logits, ledger.peak - joined

    joined, asked, held, writing, logits, shrinking = at_depth(config, taken)
    shared = _weights(found, dtype, on_cpu) | {"joined projections": joined}
    kept_part = {"keys and values": held}
    # Sampling holds probabilities beside the logits, then their exponentials, each in float32.
    wide = work.rows * found.vocabulary * 4 * (3 if running in HALVES else 2)
    return _most(
        "sampling",
        dtype,
        shared,
        {"activations": asked},
        kept_part | {"activations": writing, "logits": logits},
        kept_part | {"logits": logits + wide},
        {"keys and values": shrinking} if work.shrinks else {},
    )


def training(
    config: Config, work: Training, *, dtype: str = "float32", device: str = "cpu", weights: Counted | None = None
) -> Need:
    """Return the memory needed by a step of training, AdamW's two states included. Args: as `reading`."""

    from emscope.models.sizing.simulated import Ledger, simulated

    on_cpu, found = device == "cpu", weights or counted(config)
    running = compute_dtype(dtype, on_cpu=on_cpu)

    def taken(one: Config) -> tuple[int, ...]:
        with simulated(one, running, lean=False) as net, Ledger(net) as ledger, work.tune(net) as made:
            trained = [p for p in made.model.parameters() if p.requires_grad]
            own = ledger.mark()
            made.model.train()
            if work.checkpointing:
                made.model.gradient_checkpointing_enable({"use_reentrant": False})
            for _ in range(min(work.passes, 2)):
                _step(net, made.model, work)
            gradients, largest = sum(p.nbytes for p in trained), max(p.nbytes for p in trained)
            return own, ledger.peak - own, gradients, largest

    whole = isinstance(work.layers, tuple)
    own, peak, gradients, largest = taken(config) if whole else at_depth(config, taken)
    # On a CPU weights are stepped one by one, on a GPU all at once, with a square root of each at hand.
    stepping = gradients + (2 * largest if on_cpu else gradients)
    shared = _weights(found, dtype, on_cpu) | {
        "trained, and what it was": own,
        "optimiser": ADAM * gradients,
        "kept streams": work.kept * found.width * 4,
    }
    return _most("training", dtype, shared, {"activations and gradients": peak}, {"activations and gradients": stepping})


def _step(net: CausalLM, model: Adapted, work: Training) -> None:
    """Run one pass and its gradients as `train.trainer` does: the logits of the learned tokens alone."""
    import torch

    learned = work.micro * work.answers

    def choose(_: Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].flatten(0, -2).index_select(0, torch.zeros(learned, dtype=torch.long)), *args[1:])

    ids = torch.ones(work.micro, work.tokens, dtype=torch.long)
    handle = net.get_output_embeddings().register_forward_pre_hook(choose)
    cast = torch.autocast("cpu", torch.bfloat16) if work.autocast else nullcontext()
    try:
        with cast:
            out = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                position_ids=torch.ones_like(ids),
                logits_to_keep=work.tokens,
                use_cache=False,
            )
            logits = out.logits.float()
            loss = torch.nn.functional.cross_entropy(logits, torch.ones(learned, dtype=torch.long), reduction="sum")
        del out, logits
        loss.backward()
    finally:
        handle.remove()


def _sequences(work: Reading) -> list[list[int]]:
    """Return token sequences whose trie has about as many distinct tokens as `work` says: pairs share a beginning."""
    items = max(1, work.sequences // 2)
    apart = max(1, min(work.longest - 1, work.tokens // items - work.longest)) if work.sequences > 1 else 0
    shared = work.longest - apart
    rows = [
        [10_000 + n * work.longest + k for k in range(shared)] + [(n * 2 + o) * 1000 + k for k in range(apart)]
        for n in range(items)
        for o in range(2)
    ]
    return rows[: work.sequences]


def in_four_bits(need: Need, weights: Counted, *, on_cpu: bool = True) -> Need:
    """Return the need of the same work on 4-bit weights, from its need in the dtype that they are unpacked to."""
    return Need(need.work, QUANTISED, dict(need.parts) | _weights(weights, QUANTISED, on_cpu))


def _weights(found: Counted, dtype: str, on_cpu: bool) -> dict[str, int]:
    parts = {"weights": found.bytes_in(dtype, on_cpu=on_cpu)}
    if dtype == QUANTISED:
        parts["one matrix unpacked"] = found.largest * BYTES[compute_dtype(dtype, on_cpu=on_cpu)]
    return parts


def _most(work: str, dtype: str, shared: Mapping[str, int], *moments: Mapping[str, int]) -> Need:
    """Return what is always there together with the peak."""
    fullest = max(moments, key=lambda parts: sum(parts.values()))
    return Need(work, dtype, {name: n for name, n in (dict(shared) | dict(fullest)).items() if n})


def _put_on(net: CausalLM, checkpoint: Checkpoint, dtype: str, scale: float) -> int:
    """Return the bytes that a checkpoint takes on top of its base when `models.applied` applies it."""
    from emscope.models.adapters.lora import is_plain_lora, renamed

    item = BYTES.get(dtype, 0)
    if checkpoint.kind == "full":
        return sum(p.nbytes for p in net.parameters())
    if checkpoint.kind != "adapter":
        return 0
    settings, shapes = adapter_settings(checkpoint.folder), tensor_shapes(checkpoint.folder / WEIGHTS)
    held = 4 * sum(product(shape) for shape in shapes.values())
    modules = dict(net.named_modules())
    places = {m for name in renamed(net, shapes).values() if (m := _module_of(name, modules))}
    adapted = sum(w.numel() for m in places if (w := getattr(modules[m], "weight", None)) is not None)
    if dtype == QUANTISED or unmergeable(checkpoint) is not None:
        return held
    if is_plain_lora(net, settings, list(shapes)):
        return adapted * item + held  # in float32 the sum beside the weight; in 16 bits [W, sB] beside it
    if item >= 4:
        return adapted * 4 + held
    return held if scale == 1.0 else adapted * 2 * item + held


def _module_of(name: str, modules: Collection[str]) -> str | None:
    """Return the longest beginning of a tensor's name that names a module."""
    parts = name.removeprefix("base_model.model.").split(".")
    return next((m for n in range(len(parts), 0, -1) if (m := ".".join(parts[:n])) in modules), None)
