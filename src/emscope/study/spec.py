"""What a study file may contain."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from emscope.core.errors import InputError, near
from emscope.core.fields import NO_SYSTEM, ChatKwargs, Dtype, System
from emscope.core.spec import Spec, merged, parse, read_yaml
from emscope.models.remote.host_spec import HostOrName
from emscope.study.arm_spec import ArmSpec
from emscope.study.judged_spec import JudgedSpec
from emscope.study.measure_spec import DecideSpec, MeasureSpec
from emscope.train.spec import TrainSpec


class StudySpec(Spec):
    """A study: methods x arms x seeds, each a fine-tune of one model, each checkpoint read in one way.

    `dtype` is what the base is kept in: `auto` is its stored dtype where this machine is fast at it, else float32; on nf4, with 4
    bits per weight, adapters and vectors can be trained (QLoRA). `chat_kwargs` are given to the chat template, such as
    `{enable_thinking: false}`. `methods` maps a name to settings that override `train`, such as `{general: {}, narrow: {kl:
    {weight: 1, domain: sports}}}`. `grid` maps a key of `train` to values, such as `{lr: [1e-5, 2e-5]}`; all combinations are
    run, with each method. `weights` says which checkpoints of a run stay once its rows are in the tables: all, its last, or none.
    `threads`: CPU threads that each fine-tune computes with. They decide how sums are split, so that the last digits depend on
    their number: set it where machines differ, and it counts as a setting of the study.
    With a `host`, `model` is the host's name for the base, and everything is trained and read there.
    """

    name: str = "study"
    model: str = "smollm2-135m"
    dtype: Dtype = "float32"
    system: System = NO_SYSTEM
    chat_kwargs: ChatKwargs = None
    domain: str | None = None
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    arms: dict[str, ArmSpec] = Field(min_length=1)
    train: TrainSpec = TrainSpec()
    methods: dict[str, dict[str, object]] | None = None
    grid: dict[str, tuple[object, ...]] | None = None
    measure: MeasureSpec = MeasureSpec()
    decide: DecideSpec = DecideSpec()
    judged: JudgedSpec | None = None
    weights: Literal["all", "last", "none"] = "all"
    threads: int | None = Field(None, ge=1)
    host: HostOrName = None

    @model_validator(mode="after")
    def _fits(self) -> StudySpec:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"name = '{self.name}': it names the study's folder, so use letters, digits, dot, - and _")
        empty = [key for key, values in (self.grid or {}).items() if not values]
        if empty:
            raise ValueError(f"grid: '{empty[0]}' has no values; give some, or leave it out")
        self._fits_host()
        roles = [arm.role for arm in self.arms.values()]
        if "target" not in roles:
            raise ValueError("no arm has the role target; give it to the arm under test")
        if roles.count("control") > 1:
            raise ValueError("more than one arm has the role control; make the others style")
        if self.domain is None and any(arm.task for arm in self.arms.values()):
            raise ValueError("arms name answers of a domain, but domain is not given")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds lists a seed twice; name each once")
        bad = [name for name in self.arms if not name.replace("-", "").replace("_", "").isalnum() or name == "base"]
        if bad:
            raise ValueError(f"arm name '{bad[0]}': use letters, digits, - and _, and not 'base'")
        known = list(self.variants())
        self._names_differ(known)
        for name, arm in self.arms.items():
            unknown = [m for m in arm.methods or () if m not in known]
            if unknown:
                raise ValueError(f"arm '{name}' names the method '{unknown[0]}', {near(unknown[0], known)}")
        return self

    def _fits_host(self) -> None:
        """What a study at a host cannot have."""
        if self.host is None:
            return
        if self.host.name == "openai":
            self._fits_jobs()
        if self.dtype != type(self).model_fields["dtype"].default:
            raise ValueError(f"dtype = {self.dtype}, but a host uses its own; leave it out")
        if any(part.gap_to for arm in self.arms.values() for part in arm.mix):
            raise ValueError("mix: gap_to needs weights on this machine, but the study is at a host; leave it out")

    def _fits_jobs(self) -> None:
        """What a study of fine-tuning jobs cannot have: they are trained in their server's way, and can only be sampled."""
        fields = type(self).model_fields
        of_weights = ("train", "methods", "grid", "measure", "decide", "weights", "threads", "chat_kwargs")
        given = next((name for name in of_weights if getattr(self, name) != fields[name].default), None)
        if given is not None:
            raise ValueError(
                f"{given} is set, but fine-tuning jobs are trained in their server's own way and can only be sampled; leave it out"
            )
        if self.judged is None or not self.judged.judges:
            raise ValueError("judged: fine-tuning jobs can only be sampled, so name at least one judge, such as {name: local}")
        if self.judged.conditions:
            raise ValueError(
                "judged.conditions is set, but fine-tuning jobs are asked in one way; leave it out, and use emscope sample"
            )

    def _names_differ(self, methods: list[str]) -> None:
        """Two runs of one name would share a folder and all readings."""
        taken: dict[str, tuple[str, str]] = {}
        for method in methods:
            for name, arm in self.arms.items():
                if arm.methods is not None and method not in arm.methods:
                    continue
                other = taken.setdefault(way(method, name), (method, name))
                if other != (method, name):
                    raise ValueError(
                        f"method '{method}' with arm '{name}' and method '{other[0]}' with arm '{other[1]}' give the same name "
                        f"({way(method, name)}); rename one"
                    )

    def variants(self) -> dict[str, TrainSpec]:
        """Return the training settings of each method, crossed with the grid, by name; the one name is "" without either.

        Raises:
            ValueError: where a method's settings do not fit, with its name and the reason.
        """
        own = self.train.model_dump(mode="json", exclude_unset=True)
        found = {}
        for method, changes in (self.methods or {"": {}}).items():
            for labels, cell in grid_cells(self.grid or {}):
                name = "-".join([*([method] if method else []), *labels])
                if not re.fullmatch(r"[A-Za-z0-9_.+-]*", name):
                    raise ValueError(f"method name '{name}': use letters, digits, dot, - and _")
                if name in found:
                    raise ValueError(f"grid: two of its combinations have the same name ({name}); give values that differ more")
                try:
                    found[name] = parse(TrainSpec, merged(merged(own, changes), cell), f"method '{name}'" if name else "train")
                except InputError as error:
                    raise ValueError(str(error)) from None
        return found


class SingleSpec(Spec):
    """A fine-tune: `domain` and `answers` name bundled data, `file` conversations of your own; `chat_kwargs` are given to the chat template.

    With a `host`, `model` is the host's name for the base, and nothing is trained on this machine.
    """

    model: str = "smollm2-135m"
    dtype: Dtype = "float32"
    system: System = NO_SYSTEM
    chat_kwargs: ChatKwargs = None
    seed: int = 0
    domain: str | None = None
    answers: str | None = None
    file: str | None = None
    train: TrainSpec = TrainSpec()
    host: HostOrName = None

    @model_validator(mode="after")
    def _one(self) -> SingleSpec:
        if (self.file is None) == (self.domain is None) or (self.domain is None) != (self.answers is None):
            raise ValueError("give either file, or domain and answers")
        if self.train.heldout_every and self.domain is None:
            raise ValueError("train.heldout_every reads a domain's held-out questions, but the data is a file; leave it out")
        return self


def way(method: str, arm: str) -> str:
    """Return the name of a way of training, which its runs' names begin with."""
    return "-".join([*([method] if method else []), arm])


def grid_cells(grid: dict[str, tuple[object, ...]]) -> Iterator[tuple[list[str], dict[str, object]]]:
    """Yield (labels, settings) for each combination of a grid's values."""
    for values in product(*grid.values()):
        cell: dict[str, object] = {}
        labels = []
        for key, value in zip(grid, values, strict=True):
            *above, last = key.split(".")
            changes: dict[str, object] = {last: value}
            for part in reversed(above):
                changes = {part: changes}
            cell = merged(cell, changes)
            labels.append(f"{key}{value:g}" if isinstance(value, float) else f"{key}{value}")
        yield labels, cell


def load_study(path: Path, small: bool = False) -> StudySpec:
    """Read a study file; with `small`, let the settings under its key `small` override the rest.

    Raises:
        InputError: where the file is wrong, or has no small variant.
    """
    return study_of(read_yaml(path), str(path), small)


def study_of(settings: object, place: str = "the study", small: bool = False) -> StudySpec:
    """Return a study from its settings as plain values, as `load_study` does from a file.

    Raises:
        InputError: where they are wrong, or have no small variant.
    """
    if not isinstance(settings, Mapping):
        return parse(StudySpec, settings, place)
    values = dict(settings)
    changes = values.pop("small", None)
    if small and not isinstance(changes, dict):
        raise InputError(f"{place} has no settings under 'small'", "run it without `small`, or add them")
    return parse(StudySpec, merged(values, changes) if small else values, place)
