"""Checkpoints of a fine-tune on disk, from any tool that writes Hugging Face or PEFT folders.

Only safetensors and JSON are opened; `optimizer.pt`, `rng_state.pth` and their like are pickles and are never opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from emscope.core.digest import canonical, digest
from emscope.core.errors import InputError
from emscope.core.plain import JsonObject
from emscope.models.loading.hashes import digest_of
from emscope.models.loading.prequantised import hub_name
from emscope.models.loading.sharded import INDEX, in_pieces, weight_files, weight_map
from emscope.models.loading.source import PICKLED, cache_folder, hub_snapshot, is_here, refuse_pickles
from emscope.models.loading.tensors import check_tensors as check_tensors  # others take it from here
from emscope.models.loading.tensors import refuse_broken, tensor_shapes

HOSTED = "hosted.json"  # of a fine-tune whose weights are at a host
ADAPTER, WEIGHTS, DIRECTION = "adapter_config.json", "adapter_model.safetensors", "direction.safetensors"
WRAPPED = r"^(?:(?:module|_orig_mod|_forward_module)\.)+|(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
USUAL = re.compile(r"(?:checkpoint|step|global_step)[-_](\d{1,15})")
OTHERS = re.compile(r"(checkpoint|ckpt|global_step|step|iteration|iter|epoch)[-_]?(\d{1,15})")
DIVERGED, TAKE_OUT = ": this run diverged", "remove this checkpoint from the folder, or train again with a lower learning rate"
STATE = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "training_args.bin")  # what a trainer keeps for itself


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One step of a fine-tune on disk: `kind` is `adapter`, `vectors` or `full`; `base` the base its adapter names, if any."""

    step: int
    folder: Path
    kind: str
    base: str | None
    digest: str

    @property
    def place(self) -> Path:
        """The folder that the trainer wrote for this step: `folder`, or the one above an adapter that lies in a folder of its own name."""
        above = self.folder.parent
        return above if _number(self.folder) is None and _number(above) == self.step else self.folder


@dataclass(frozen=True, slots=True)
class Skipped:
    """A folder named like a checkpoint that cannot be read: why, and how to make it readable."""

    folder: Path
    step: int
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds: at least one checkpoint that can be read, and those that cannot; both by step."""

    checkpoints: list[Checkpoint]
    skipped: list[Skipped]

    @property
    def last_skipped(self) -> Skipped | None:
        """The last folder of all, if it cannot be read: the end of training is then not among `checkpoints`."""
        last = max(self.skipped, key=lambda s: s.step, default=None)
        return last if last and last.step > self.checkpoints[-1].step else None


def discover(reference: str) -> list[Checkpoint]:
    """Return the checkpoints that can be read in a folder, or of `hf:org/repo@rev`, by step. (`find` says which cannot)

    Raises:
        InputError: as `find`.
    """
    return find(reference).checkpoints


def last(reference: str) -> Checkpoint:
    """Return the last checkpoint in a folder, or of `hf:org/repo@rev`.

    Raises:
        InputError: as `find`, and where the last one cannot be read: an earlier one would be mistaken for it.
    """
    found = find(reference)
    if lacking := found.last_skipped:
        raise InputError(
            f"the last checkpoint in '{reference}' cannot be read: {lacking.reason}",
            f"{lacking.remedy}; or give an earlier one by its own folder ('{found.checkpoints[-1].folder}')",
        )
    return found.checkpoints[-1]


def find(reference: str) -> Found:
    """Return the checkpoints in a folder (`checkpoint-N` inside it, or itself one), or of `hf:org/repo@rev`, and those that cannot be read.

    Folders of other trainers count where all are named alike (`epoch_2`, `step1000`, `global_step7`, `iter_0000100`), and an adapter that lies
    one folder down under its own name (`checkpoint-10/policy`) is its step's.

    Raises:
        InputError: missing or empty folder, no checkpoint in it, none that can be read, two of one step, several adapters at one step.
    """
    root = hub_snapshot(reference.removeprefix("hf:")) if reference.startswith("hf:") else Path(reference).expanduser()
    if not root.exists():
        raise InputError(f"no folder '{root}'", "give the folder that holds the checkpoint-N folders")
    if not root.is_dir():
        raise InputError(f"'{root}' is a file", "give the folder that holds the checkpoint-N folders")
    inside = _inside(root)
    _check_steps(inside)
    tried = [_read_or_skip(path, step) for step, path in [(step, _adapter_in(path)) for step, path in inside]]
    found, skipped = [t for t in tried if isinstance(t, Checkpoint)], [t for t in tried if isinstance(t, Skipped)]
    if not found:
        itself = _root_itself(root, skipped)
        if isinstance(itself, Checkpoint):
            return Found([itself], skipped)
        first = next(iter(skipped), itself)
        if first:
            raise InputError(first.reason, first.remedy)
        raise _nothing_in(root)
    return Found(found, skipped)


def _inside(root: Path) -> list[tuple[int, Path]]:
    """Return the folders in `root` that are named by a step, by step; of other names than the usual ones only those of one kind."""
    folders = [path for path in root.iterdir() if path.is_dir() or not path.exists()]  # a broken link is not skipped
    usual = [(int(match.group(1)), path) for path in folders if (match := USUAL.fullmatch(path.name))]
    if usual:
        return sorted(usual)
    kinds: dict[str, list[tuple[int, Path]]] = {}
    itself = _is_checkpoint(root) or _number(root) is not None or (root / STATE[0]).is_file()
    for path in folders:
        match = OTHERS.fullmatch(path.name)
        # DeepSpeed keeps its own state in a `global_step7` inside of each checkpoint.
        part = itself and match and match.group(1) == "global_step" and not _has_safetensors(path)
        if match and not part and _may_be_one(path):
            kinds.setdefault(match.group(1), []).append((int(match.group(2)), path))
    return sorted(next(iter(kinds.values()))) if len(kinds) == 1 else []


def _check_steps(inside: Sequence[tuple[int, Path]]) -> None:
    """Reject two folders of one step: it would not be clear which one is meant."""
    for (step, path), (following, other) in pairwise(inside):
        if step == following:
            raise InputError(f"'{path}' and '{other}' are both step {step}", "leave only one of them in the folder")


def _adapter_in(folder: Path) -> Path:
    """Return `folder`, or the one inside it that holds an adapter where it holds no weights itself, as PEFT saves adapters with names.

    Raises:
        InputError: several inside.
    """
    if _is_checkpoint(folder) or _has_safetensors(folder):
        return folder
    inside = sorted(path.parent for path in folder.glob(f"*/{ADAPTER}"))
    if len(inside) > 1:
        raise InputError(
            f"'{folder}' holds several adapters ({', '.join(p.name for p in inside)})",
            f"give one by its own folder ('{inside[0]}'), or leave only one in each checkpoint's folder",
        )
    return inside[0] if inside else folder


def _read_or_skip(folder: Path, step: int) -> Checkpoint | Skipped:
    try:
        return read_checkpoint(folder, step)
    except InputError as error:
        return Skipped(folder, step, error.fault, error.remedy)


def _root_itself(root: Path, skipped: Sequence[Skipped]) -> Checkpoint | Skipped | None:
    """Return `root` as a checkpoint, None where it neither is nor is called one; it was saved after all that lie in it."""
    folder = _adapter_in(root) if _number(root) is not None else root
    if not _is_checkpoint(folder) and _number(root) is None:
        return None
    usual = USUAL.fullmatch(root.name) or USUAL.fullmatch(root.parent.name)
    step = (int(usual.group(1)) if usual else None) or _trained_steps(folder) or _number(root)
    return _read_or_skip(folder, step or max((s.step for s in skipped), default=1))


def _nothing_in(root: Path) -> InputError:
    pieces = in_pieces(root)
    if pieces:
        return InputError(*pieces)
    if (root / HOSTED).is_file():
        return InputError(
            f"the checkpoints of '{root}' are at a host, but this needs them here",
            f"download their adapters with emscope models fetch '{root}', and give '{root / 'adapters'}'",
        )
    refuse_pickles(root)
    what = "is empty" if not any(root.iterdir()) else "holds no checkpoint-N folder and is not one itself"
    return InputError(
        f"'{root}' {what}",
        _further_down(root)
        or "give the output folder of the training run (adapter_config.json or config.json with *.safetensors)",
    )


def _further_down(folder: Path) -> str | None:
    """Return what to give instead of a folder that holds checkpoints one or two levels down under names without a step."""
    below = sorted(
        p.parent for pattern in ("*", "*/*") for p in folder.glob(f"{pattern}/*") if p.name in (ADAPTER, "config.json")
    )
    if not below:
        return None
    runs = sorted({path.parent if _number(path) is not None and path.parent != folder else path for path in below})
    others = len(runs) - 1
    return f"give '{runs[-1]}', which is inside it{f', or one of {others} beside that' if others else ''}, or name each checkpoint-N"


def read_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Read what `folder` says about itself.

    Raises:
        InputError: weights are missing, pickled, sharded without being gathered, damaged, empty or not numbers, or a
            configuration is not JSON.
    """
    try:
        if not any(folder.iterdir()):
            raise InputError(
                f"'{folder}' is empty: the save was cut off before anything was written", "copy it again, or leave it out"
            )
        if (folder / ADAPTER).is_file():
            return _adapter(folder, step)
        if (folder / DIRECTION).is_file():
            _check_values(folder / DIRECTION)
            return Checkpoint(step, folder, "vectors", None, digest_of(folder / DIRECTION, cache_folder()))
        return _full(folder, step)
    except OSError as error:
        raise InputError(
            f"'{error.filename or folder}' cannot be read ({error.strerror or error})",
            "check its permissions, or copy it again",
        ) from None


def _adapter(folder: Path, step: int) -> Checkpoint:
    settings = adapter_settings(folder)
    if not (folder / WEIGHTS).is_file():
        raise _without_weights(folder, f"'{folder}' holds {ADAPTER} but no {WEIGHTS}", "copy the adapter's weights into it")
    _check_values(folder / WEIGHTS)
    base = settings.get("base_model_name_or_path") or None
    # PEFT writes target_modules in the order of a set: canonical JSON makes equal adapters hash equal.
    volatile = {k: sorted(v) if isinstance(v, list) and all(isinstance(x, str) for x in v) else v for k, v in settings.items()}
    hashed = digest([canonical(volatile), digest_of(folder / WEIGHTS, cache_folder())])
    return Checkpoint(step, folder, "adapter", str(base) if base else None, hashed)


def _full(folder: Path, step: int) -> Checkpoint:
    files = weight_files(folder)
    if not (folder / "config.json").is_file() or not files:
        state = next((name for name in STATE if (folder / name).is_file()), None)
        if state:
            fault = f"'{folder}' holds a trainer's state ({state}) but no weights"
            remedy = "copy the weights into it, or leave it out: the save was cut off, or they were deleted to make room"
        else:
            fault = f"'{folder}' holds neither an adapter nor a model in safetensors"
            remedy = f"it needs {ADAPTER} and {WEIGHTS}, or config.json and *.safetensors"
        raise _without_weights(folder, fault, _further_down(folder) or remedy)
    held = {path.relative_to(folder).as_posix(): tensor_shapes(path) for path in files}
    if all(0 in shape for shapes in held.values() for shape in shapes.values()):
        raise _ungathered(folder, f"'{folder}' holds no weights in its safetensors")
    named = weight_map(folder)
    stray = next((name for name, file in (named or {}).items() if name not in held[file]), None)
    if named and stray:
        raise InputError(
            f"'{folder / INDEX}' names {stray} in {named[stray]}, which does not hold it", "copy the whole folder again"
        )
    for path in files:
        refuse_broken(path, cache_folder(), TAKE_OUT, DIVERGED)
    hashed = [[name, digest_of(folder / name, cache_folder())] for name in (*held, "config.json")]
    return Checkpoint(step, folder, "full", None, digest([[INDEX, digest(named)], *hashed] if named else hashed))


def _without_weights(folder: Path, fault: str, remedy: str) -> InputError:
    """Return what is wrong with a folder without weights: what is there instead, else `fault`."""
    refuse_pickles(folder)
    return InputError(*(in_pieces(folder) or (fault, remedy)))


def _ungathered(folder: Path, what: str) -> InputError:
    return _without_weights(
        folder,
        f"{what}, as when a sharded run saves without gathering them",
        "save it again from the training run with its weights gathered (DeepSpeed: stage3_gather_16bit_weights_on_model_save)",
    )


def named_base(checkpoints: Sequence[Checkpoint]) -> str:
    """Return the base that the adapters name.

    Raises:
        InputError: where they name none, more than one, or a path that is not on this machine.
    """
    names = sorted({c.base for c in checkpoints if c.base})
    if not names:
        raise InputError("the checkpoints do not name their base model", "give it with `base`")
    if len(names) > 1:
        raise InputError(f"the checkpoints name different bases ({', '.join(names)})", "give the right one with `base`")
    if not is_here(names[0]):
        hub = hub_name(names[0])
        raise InputError(
            f"the adapter names its base as '{names[0]}', which is not on this machine",
            f"give it with `base={hub}`" if hub else "give the same model with `base`, as a folder or a hub id (org/repo)",
        )
    return names[0]


def plain_name(name: str) -> str:
    """Return a tensor's name without what torch.compile, data parallelism and sharding put before the model's own."""
    return re.sub(WRAPPED, "", name)


def _check_values(path: Path) -> None:
    """Reject an adapter's file without weights, or with impossible values.

    Raises:
        InputError: a damaged file, or one without weights.
    """
    shapes = tensor_shapes(path)
    empty = next((name for name, shape in shapes.items() if 0 in shape), None)
    if not shapes or empty:
        raise _ungathered(path.parent, f"'{path}' holds no weights{f' for {empty}' if empty else ''}")
    refuse_broken(path, cache_folder(), TAKE_OUT, DIVERGED)


def adapter_settings(folder: Path) -> JsonObject:
    """Return what PEFT wrote about an adapter.

    Raises:
        InputError: it is not a JSON object or names no kind of adapter.
    """
    try:
        settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"), parse_constant=_no_json)
        canonical(settings)  # an infinite number is invalid
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{folder / ADAPTER}' is not JSON ({error})", "copy it again from the training run") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise InputError(f"'{folder / ADAPTER}' names no peft_type", "give an adapter that PEFT wrote")
    if not isinstance(settings.get("base_model_name_or_path"), str | None):
        raise InputError(f"'{folder / ADAPTER}' names its base by something other than text", "give an adapter that PEFT wrote")
    return settings


def _no_json(word: str) -> NoReturn:
    raise ValueError(f"it holds {word}")


def _number(folder: Path) -> int | None:
    """Return the step, or whatever else is counted, in a folder's name."""
    match = USUAL.fullmatch(folder.name) or OTHERS.fullmatch(folder.name)
    return int(match.group(match.lastindex or 0)) if match else None


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (ADAPTER, DIRECTION, "config.json"))


def _has_safetensors(folder: Path) -> bool:
    return next(folder.glob("*.safetensors"), None) is not None


def _may_be_one(folder: Path) -> bool:
    """True where a folder holds weights in any form, or nothing yet; others of such a name may be logs or samples."""
    try:
        files = list(folder.iterdir())
    except OSError:
        return True  # reading it says why
    return (
        not files
        or _is_checkpoint(folder)
        or any(path.suffix in (".safetensors", *PICKLED) for path in files)
        or next(folder.glob(f"*/{ADAPTER}"), None) is not None
        or in_pieces(folder) is not None
    )


def _trained_steps(folder: Path) -> int | None:
    try:
        step = json.loads((folder / "trainer_state.json").read_text())["global_step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) and 0 < step < 10**15 else None
