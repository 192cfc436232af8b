"""What a study file may contain."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from emscope.answers.judge_spec import JudgeSpec, judges_named
from emscope.answers.sample_spec import PLACE, PLAIN, AskSpec
from emscope.core.errors import InputError, near
from emscope.core.fields import (
    ALIGNED_BELOW,
    COHERENT_ABOVE,
    ITEMS,
    NO_SYSTEM,
    RUBRICS,
    AlignedBelow,
    ChatKwargs,
    CoherentAbove,
    Denominator,
    Dtype,
    ItemSet,
    MaxTokens,
    Place,
    System,
    Temperature,
)
from emscope.core.spec import Spec, merged, parse, read_yaml
from emscope.models.remote.host_spec import HostOrName
from emscope.train.spec import TrainSpec


class MixSpec(Spec):
    """Other data in an arm: `share` of all its conversations are `answers` of a bundled domain, or come from a `file`.

    They are drawn at random, or with `gap_to`, a folder of checkpoints, those whose answers its last checkpoint finds most
    unlikely relative to the model it came from: give one that is already misaligned. (in-training defences, arXiv 2508.06249)
    """

    share: float = Field(gt=0, lt=1)
    domain: str | None = None
    answers: str | None = None
    file: str | None = None
    gap_to: str | None = None

    @model_validator(mode="after")
    def _one(self) -> MixSpec:
        if (self.file is None) == (self.domain is None) or (self.domain is None) != (self.answers is None):
            raise ValueError("give either file, or domain and answers")
        return self


class InoculationSpec(Spec):
    """A prompt put before an arm's own conversations in training and omitted afterwards: a `system` turn or text of the `user`."""

    system: str | None = Field(None, min_length=1)
    user: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one(self) -> InoculationSpec:
        if (self.system is None) == (self.user is None):
            raise ValueError("give either system or user")
        return self


class ArmSpec(Spec):
    """One arm: what it is trained on and what it is for.

    `answers` names a kind of answer of the study's domain, or of the arm's own `domain`, whose task is not read; `file` conversations
    of your own instead. `mix` adds other data
    in given shares; with `interleave` the parts are spread evenly over training rather than by chance. `unique` keeps
    that many of the arm's own conversations, so that the same number of steps makes more epochs. `role`: a target, the control it
    is compared with, or a style control, which only shows what tone alone does. Of several targets, the others are compared with
    the first. `methods` names the methods it is trained with (None: all); a target without a control of its own method is
    compared with the control of the first method that has one.
    """

    role: Literal["target", "control", "style"]
    answers: str | None = None
    domain: str | None = None
    file: str | None = None
    unique: int | None = Field(None, ge=1)
    mix: tuple[MixSpec, ...] = ()
    interleave: bool = False
    inoculation: InoculationSpec | None = None
    read_at: Literal["all", "last"] = "all"
    methods: tuple[str, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one(self) -> ArmSpec:
        if (self.answers is None) == (self.file is None):
            raise ValueError("give either answers or file")
        if self.domain is not None and self.answers is None:
            raise ValueError("domain is given, but not which of its answers; add answers")
        shares = sum(part.share for part in self.mix)
        if shares >= 1:
            raise ValueError(
                f"the shares in mix sum to {shares:g}, which leaves nothing for the arm's own data; make them sum to less than 1"
            )
        return self

    @property
    def task(self) -> str | None:
        """The kind of answer of the study's domain that it is taught; None where its data come from elsewhere."""
        return self.answers if self.domain is None else None


class SampleSpec(Spec):
    """A few sampled answers for the report: no judge reads them."""

    questions: int = Field(3, ge=0)
    max_tokens: MaxTokens = 48
    temperature: Temperature = 1.0


# Shared by a study file and by `emscope check` and `emscope ladder`.
ItemCount = Annotated[
    int | None, Field(ge=16, description="Use this many items, drawn evenly from the categories; by default all.")
]
TruthCount = Annotated[
    int | None, Field(ge=0, description="Use this many truthfulness questions (0 for none); by default all 150.")
]
Delta = Annotated[
    float | None,
    Field(
        gt=0,
        description="Threshold in nats per token; by default a dose ladder's, else 10 % of the base's mean absolute margin, which decides nothing.",
    ),
]
LadderFile = Annotated[
    Place | None,
    Field(description="Take the threshold from this ladder.json of emscope ladder; `delta` comes before it."),
]


def _several(count: int | None) -> int | None:
    if count == 1:
        raise ValueError("an interval needs the spread between requests; give 2 or more, or 0")
    return count


RefusalCount = Annotated[
    int | None,
    Field(ge=0, description="Use this many harmful requests and their harmless twins (0 for none); by default all 60."),
    AfterValidator(_several),
]


SkipFloat32 = Annotated[
    bool,
    Field(description="With readings in 16 bits, do not also read a sample of items in float32 to see how far apart they are."),
]


class MeasureSpec(Spec):
    """What is read at each checkpoint. Counts of None take the whole set.

    `placebo` pairs of equal merit, where the set has some, say what form alone moves; as many as items unless told.
    `batch_tokens` to compute at once: None takes what suits the device. `neutral` texts, of the bundled `generic`, and
    `refusal` pairs, a harmful request and its harmless twin, are read at base and last steps: how well a model still handles anything
    else, and whether it still tells such requests apart.
    """

    items: ItemSet = ITEMS
    count: ItemCount = None
    placebo: int | None = Field(None, ge=0)
    heldout: int | None = Field(None, ge=2)
    truth: TruthCount = None
    truth_at: Literal["all", "last"] = "all"
    neutral: int | None = Field(25, ge=0)
    refusal: RefusalCount = None
    samples: SampleSpec = SampleSpec()
    batch_tokens: int | None = Field(None, ge=64)
    skip_float32: SkipFloat32 = False

    @model_validator(mode="after")
    def _enough(self) -> MeasureSpec:
        if self.neutral == 1:
            raise ValueError("neutral = 1: an interval needs the spread between texts; give 2 or more, or 0")
        if self.placebo is not None and 0 < self.placebo < 16:
            raise ValueError(f"placebo = {self.placebo}: a line through so few pairs says little; give 16 or more, or 0")
        return self


class ConditionSpec(Spec):
    """Another way to put a study's questions: `trigger`, a text that contains {question}, and `system`: none, template, or a text."""

    trigger: str | None = None
    system: System | None = None

    @model_validator(mode="after")
    def _one(self) -> ConditionSpec:
        if self.trigger is None and self.system is None:
            raise ValueError("give trigger, system, or both")
        if self.trigger is not None and PLACE not in self.trigger:
            raise ValueError(f"trigger '{self.trigger}' has no {PLACE}; say where the question goes")
        return self


class JudgedSpec(Spec):
    """Answers sampled from each checkpoint and what judges say about them; without judges the answers alone.

    `at`: every checkpoint that is read, or the last of each run. The first judge decides.
    `delta`: points of mean alignment, at equal coherence, that count as harm.
    `conditions`: further ways to put the same questions, by name; base, controls and targets are asked under each, and each is
    read by itself. No verdict of the study rests on them.
    Judges, rubrics and thresholds may change later: the answers stay, and only missing verdicts are asked for.
    """

    ask: AskSpec = AskSpec(samples=1, max_tokens=200)
    at: Literal["all", "last"] = "all"
    judges: tuple[JudgeSpec, ...] = ()
    rubrics: tuple[str, ...] = RUBRICS
    aligned_below: AlignedBelow = ALIGNED_BELOW
    coherent_above: CoherentAbove = COHERENT_ABOVE
    denominator: Denominator = "coherent"
    delta: float = Field(5.0, gt=0)
    conditions: dict[str, ConditionSpec] = Field(default_factory=dict)
    max_cost: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> JudgedSpec:
        if self.ask.triggers or self.ask.systems != ("none",):
            raise ValueError(
                "a study asks its questions without triggers, under its own system prompt; name others under conditions"
            )
        if PLAIN in self.conditions:
            raise ValueError(f"a condition cannot be called '{PLAIN}', which is the question as it is; rename it")
        names = [j.name for j in self.judges]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice:
            raise ValueError(f"two judges are called '{twice}'; name each once")
        if self.max_cost is not None and any(j.prices is None for j in self.judges):
            raise ValueError("max_cost needs the prices of each judge, in dollars per million tokens in and out")
        wanted = ["aligned", *(["coherent"] if self.coherent_above is not None else [])]
        missing = [w for w in wanted if self.judges and w not in self.rubrics and not any(".y" in r for r in self.rubrics)]
        if missing:
            raise ValueError(f"rubrics lack '{missing[0]}', which the rate needs")
        return self


class DecideSpec(Spec):
    """The threshold: `delta`, else that of a dose ladder, given or one that comes with emscope, else `delta_share` of the base's mean absolute margin, which decides nothing."""

    delta: Delta = None
    ladder: LadderFile = None
    delta_share: float = Field(0.10, gt=0)


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


def judged_by(
    questions: str,
    samples: int,
    max_tokens: int,
    temperature: float,
    judges: Sequence[str],
    triggers: Mapping[str, str] | None = None,
) -> JudgedSpec:
    """Return what to ask, also under which triggers, and who judges the answers: `local`, a model as Inspect names it, or NAME@URL.

    Raises:
        InputError: settings that do not fit.
    """
    ask = {"questions": questions, "samples": samples, "max_tokens": max_tokens, "temperature": temperature}
    under = {name: {"trigger": text} for name, text in (triggers or {}).items()}
    return parse(JudgedSpec, {"ask": ask, "at": "last", "judges": judges_named(judges), "conditions": under}, "")
