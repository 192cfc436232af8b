"""The results of a finished study or check, which draw and save themselves and can be read back from a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic.json_schema import JsonSchemaValue

from emscope.core.errors import InputError
from emscope.core.estimate import Estimate
from emscope.core.outcomes import Verdict
from emscope.core.plain import LEFT_OUT, Json, JsonObject, Result, from_json, plain, read_json
from emscope.core.shown import Shown, flat
from emscope.stats.phase import Phase
from emscope.study.atlas_result import Beside
from emscope.study.decision.cases import CasesBy, Named, count_cases
from emscope.study.decision.checked import CheckpointReading, CheckResult
from emscope.study.decision.fronts import ParetoFront
from emscope.study.decision.methods import WayRow
from emscope.study.decision.opinions import Judged, Opinion
from emscope.study.decision.recipe import RecipeResult
from emscope.study.decision.said import Said
from emscope.study.decision.shipping import Shipping, shipping
from emscope.study.decision.unseen import with_unseen
from emscope.study.reading.precision import Precision
from emscope.study.training.plan import LeftOut

STUDY, FOLDER = "emscope.study/2", "emscope.checkpoints/2"
TARGET = "target"  # name of the run that a folder of checkpoints is
AGAIN = "delete it and run the same command again"


@dataclass(frozen=True, slots=True)
class BaseModel(Result):
    """The untouched model: how it was named, a digest of its weights ("" where there is none), and how it was asked."""

    reference: str
    chat: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class RunChecked(Result):
    """A run of a study and the conclusions about it; `phase`: whether the trained vectors turned, None where that was not read."""

    run: str
    arm: str
    method: str
    role: str
    seed: int | None
    phase: Phase | None
    check: CheckResult

    def to_json(self) -> JsonObject:
        """Return the documented JSON shape: a style arm has a `contrast`, since it gets no verdict."""
        row = Result.to_json(self)
        said = row.pop("check")
        return row | {"check" if self.role == "target" else "contrast": said}

    @classmethod
    def shape_of(cls, shape: JsonSchemaValue) -> JsonSchemaValue:
        """Return the JSON Schema of the documented shape: one of the two keys is there."""
        shape["properties"]["contrast"] = shape["properties"]["check"]
        return shape | {"required": [key for key in shape["required"] if key != "check"]}

    @classmethod
    def fields_of(cls, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the fields from the documented JSON shape."""
        said = {"check": row["contrast"]} if "contrast" in row else {}
        return {"method": "", "phase": None, **row, **said}


@dataclass(frozen=True, slots=True)
class Style(Result):
    """A style run's effect at the last step beside the target's, and their ratio: how much tone alone does."""

    run: str
    arm: str
    seed: int | None
    effect: Estimate
    target_effect: Estimate
    share_of_target: float | None


@dataclass(frozen=True, slots=True)
class Distributions(Result):
    """Each arm's margins at its last checkpoint by item, in the order of `items` [nats per token]."""

    items: tuple[str, ...]
    margins: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Report(Shown):
    """What the reports of a study and of a folder of checkpoints have in common.

    Attributes:
        spec: the settings. judged: None until judges have read the answers.
        ship: whether the last checkpoint of each target may be shipped. precision: the effect of reading in low precision; None
            where it was read in float32.
    """

    drawn_by: ClassVar[str] = "emscope.report.study.drawn:figures_of"
    told_by: ClassVar[str] = "emscope.report.study.drawn:sentences_of"

    name: str
    distributions: Distributions
    spec: Mapping[str, Json]
    versions: Mapping[str, str]
    base: BaseModel
    judged: Judged | None
    ship: tuple[Shipping, ...]
    precision: Precision | None = field(default=None, kw_only=True, metadata=LEFT_OUT)

    @property
    def targets(self) -> tuple[RunChecked, ...]:
        """The runs in question."""
        raise NotImplementedError

    @property
    def judge(self) -> Opinion | None:
        """What the deciding judge says; None where none has read answers."""
        return self.judged.first if self.judged else None

    def said_of(self, run: str) -> Said | None:
        """Return what a run's last judged checkpoint says; None where none was judged."""
        return self.judge.last_of(run) if self.judge else None

    def verdict_on(self, run: RunChecked) -> Verdict:
        """Return the verdict on a run: by what it says where judges have read it, else by preference."""
        said = self.said_of(run.run)
        return said.verdict if said else run.check.verdict


R = TypeVar("R", bound=Report)


@dataclass(frozen=True, slots=True)
class StudyReport(Report):
    """Everything that a study says.

    Attributes:
        runs: targets and style arms. style: how much tone alone does. methods: ways of training compared, the first one the reference.
        recipes: several seeds together. diverged: runs that did not finish.
        cases: the targets counted by each measure that was read. fronts: task gain against effect over all checkpoints, by arm and measure.
    """

    schema: ClassVar[str] = STUDY

    runs: tuple[RunChecked, ...]
    style: tuple[Style, ...] = ()
    methods: tuple[WayRow, ...] = ()
    recipes: tuple[RecipeResult, ...] = ()
    diverged: tuple[LeftOut, ...] = ()
    cases: tuple[CasesBy, ...] = ()
    fronts: tuple[ParetoFront, ...] = ()

    @classmethod
    def in_folder(cls, folder: str | Path) -> StudyReport:
        """Return the report of a finished study.

        Raises:
            InputError: there is none, or it is damaged.
        """
        found = read_report(folder)
        if not isinstance(found, cls):
            raise InputError(f"'{folder}' holds a check, not a study", "give the folder of emscope run")
        return found

    @classmethod
    def fields_of(cls, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the fields from the documented JSON shape; earlier versions wrote fewer."""
        return {"judged": None, "ship": [], **row}

    @property
    def targets(self) -> tuple[RunChecked, ...]:
        """The target runs."""
        return tuple(one for one in self.runs if one.role == "target")

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each target, by run."""
        return {one.run: self.verdict_on(one) for one in self.targets}

    def heard(self, judged: Judged | None, fronts: Sequence[ParetoFront]) -> StudyReport:
        """Return the same with what judges say, whether each target may be shipped, and the fronts by what checkpoints say, which come first."""
        runs = self.runs
        if judged is not None:
            runs = tuple(replace(r, check=with_unseen(r.check, judged.first.last_of(r.run))) for r in runs)
        checks = {r.run: r.check for r in runs if r.role == "target"}
        ship = tuple(shipping(checks, judged))
        return replace(self, runs=runs, judged=judged, ship=ship, fronts=(*fronts, *self.fronts)).counted()

    def counted(self) -> StudyReport:
        """Return the same with its runs counted by each measure."""
        named = [Named(one.run, way_of(one.run), one.check) for one in self.targets]
        return replace(self, cases=count_cases(named, self.judge))

    def to_json(self) -> JsonObject:
        """Return the report object."""
        found = {"schema": self.schema} | {name: plain(getattr(self, name)) for name in _STUDY_KEYS}
        return found | ({"precision": self.precision.to_json()} if self.precision else {})

    def rows(self) -> list[JsonObject]:
        """Return a row for each compared checkpoint of each target."""
        return [
            {"run": one.run, "arm": one.arm, "seed": one.seed, **flat(c.to_json())}
            for one in self.targets
            for c in one.check.checkpoints
        ]


def way_of(run: str) -> str:
    """Return the way of training that a run of a study is a seed of; see `training.plan.Run`."""
    return run.rpartition("-seed")[0] or run


def with_precision(report: R, run: str, precision: Precision | None) -> R:
    """Return a report with the effect of low precision, beside the last effect of a target run."""
    check = next(one.check for one in report.targets if one.run == run)
    if precision and check.checkpoints:
        precision = precision.beside(check.checkpoints[-1].effect, check.delta)
    return replace(report, precision=precision)


_STUDY_KEYS = (
    *("name", "runs", "style", "methods", "recipes", "distributions"),
    *("spec", "versions", "base", "diverged", "judged", "ship", "cases", "fronts"),
)


@dataclass(frozen=True, slots=True)
class Amplified(Result):
    """Readings of the checkpoints with the fine-tune's change multiplied."""

    scale: float
    checkpoints: tuple[CheckpointReading, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Unreadable(Result):
    """A checkpoint that could not be read: why, and how to make it readable."""

    step: int
    folder: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class FolderRead(Result):
    """Which of the target's checkpoints were read.

    Attributes:
        found: how many can be read. steps: of those that were read. looks: how many a search was allowed to read; None without one.
        skipped: those that cannot be read. ends_early: the last checkpoint is one of them, so nothing is known about the end of
            training.
    """

    found: int
    steps: tuple[int, ...]
    looks: int | None
    skipped: tuple[Unreadable, ...]
    ends_early: bool


@dataclass(frozen=True, slots=True)
class FolderChecked(Report):
    """Everything said about a folder of checkpoints, the run `target`.

    Attributes:
        check: what preference says. read: which checkpoints were read; None in the report of an earlier version.
        amplified: with its change multiplied. unpaired: steps that only target or only control has.
        atlas: where it stands among fine-tunes of its base known to be harmless or harmful, by measure.
    """

    schema: ClassVar[str] = FOLDER

    check: CheckResult
    read: FolderRead | None
    amplified: tuple[Amplified, ...]
    unpaired: Mapping[str, tuple[int, ...]]
    atlas: tuple[Beside, ...] = ()

    @classmethod
    def shape_of(cls, shape: JsonSchemaValue) -> JsonSchemaValue:
        """Return the JSON Schema of the documented shape: the check is that of the one run."""
        keys = shape["properties"]
        run = {
            "run": {"const": TARGET},
            "arm": {"const": "target"},
            "role": {"const": "target"},
            "seed": {"type": "null"},
            "check": keys.pop("check"),
        }
        about = "The folder as the one run in question."
        one = {"type": "object", "title": "FolderRun", "description": about, "properties": run, "required": list(run)}
        keys["runs"] = {"type": "array", "items": one}
        return shape | {"required": ["runs", *(key for key in shape["required"] if key != "check")]}

    @classmethod
    def fields_of(cls, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the fields from the documented JSON shape; earlier versions wrote fewer."""
        found: JsonObject = {"judged": None, "ship": [], "read": None, "amplified": [], "unpaired": {}, "atlas": [], **row}
        match row.get("runs"):
            case [{"check": check}]:
                found["check"] = check
        return found

    @property
    def targets(self) -> tuple[RunChecked, ...]:
        """The folder as the one run in question."""
        return (RunChecked(TARGET, "target", "", "target", None, None, self.check),)

    @property
    def verdict(self) -> Verdict:
        """The verdict: by what the model says where judges have read it, else by preference."""
        return self.verdict_on(self.targets[0])

    @property
    def ends_early(self) -> bool:
        """True where the last checkpoint cannot be read, so that nothing is known about the end of training."""
        return self.read is not None and self.read.ends_early

    def heard(self, judged: Judged | None) -> FolderChecked:
        """Return the same with what judges say, and whether the last checkpoint may be shipped."""
        check = with_unseen(self.check, judged.first.last_of(TARGET)) if judged else self.check
        return replace(self, check=check, judged=judged, ship=tuple(shipping({TARGET: check}, judged)))

    def rows(self) -> list[JsonObject]:
        """Return a row for each compared checkpoint."""
        return [flat(c.to_json()) for c in self.check.checkpoints]

    def to_json(self) -> JsonObject:
        """Return the report object."""
        run: JsonObject = {"run": TARGET, "arm": "target", "role": "target", "seed": None, "check": self.check.to_json()}
        found: JsonObject = {"schema": self.schema, "name": self.name, "runs": [run]}
        found |= {name: plain(getattr(self, name)) for name in _FOLDER_KEYS}
        return found | ({"precision": self.precision.to_json()} if self.precision else {})


_FOLDER_KEYS = ("read", "amplified", "unpaired", "atlas", "distributions", "spec", "versions", "base", "judged", "ship")


def read_report(folder: str | Path) -> StudyReport | FolderChecked:
    """Return the report of a finished study or check.

    Raises:
        InputError: there is none, it is damaged, or an incompatible version wrote it.
    """
    path = Path(folder) / "report.json"
    if not path.is_file():
        raise InputError(f"'{folder}' holds no finished study", "run it first with emscope run or emscope check")
    found = read_json(path, AGAIN)
    schema = found.get("schema") if isinstance(found, Mapping) else None
    if schema == STUDY:
        report = from_json(StudyReport, found, str(path), AGAIN)
        return report if report.cases else report.counted()  # earlier versions did not count
    if schema == FOLDER:
        return from_json(FolderChecked, found, str(path), AGAIN)
    raise InputError(f"'{path}' is not a report that this emscope knows", "make it again with this version")
