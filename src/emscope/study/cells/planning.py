"""From a study's settings to its cells: each is one fine-tune, or the base, with everything that is read from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emscope.answers.sample import digest_of
from emscope.core.digest import short
from emscope.core.plain import JsonObject
from emscope.core.records import Conversation
from emscope.data.questions import read_questions
from emscope.models.loading.checkpoints import Checkpoint
from emscope.models.loading.load import HALVES, pick_device
from emscope.models.loading.source import Model, beside_digest
from emscope.models.remote.hosted import HostedCheckpoint
from emscope.store.cells import Record, settled
from emscope.study.reading.ladders import ladder_digest
from emscope.study.reading.measuring import Questions, Reading
from emscope.study.reading.sets import EM, EVERY, HELDOUT, ONCE, PLACEBO, TRUTH, ItemSets, sample_questions, study_sets
from emscope.study.spec import StudySpec
from emscope.study.training.plan import Run, controls_of, plan, read_steps, taught
from emscope.study.training.recipes import Row
from emscope.study.training.sources import asked_of, digests, frozen, held_near

VERSION = 1  # raised when cells hold different rows than before
BASE = "base"


@dataclass(frozen=True, slots=True)
class Cell:
    """A fine-tune with its readings and answers, or (`run` is None) the base with its own. `key`: a digest of everything that determines its rows."""

    name: str
    key: str
    run: Run | None


@dataclass(frozen=True, slots=True)
class Planned:
    """A study expanded into cells.

    Attributes:
        cells: the base's first. recipes: what each arm is trained on. near: what each method is kept close to. named: digests of
            what the settings refer to by name.
    """

    spec: StudySpec
    base: Model
    runs: tuple[Run, ...]
    sets: ItemSets
    recipes: Mapping[str, Sequence[Row]]
    near: Mapping[str, list[Conversation]]
    named: Mapping[str, str]
    cells: tuple[Cell, ...]

    def settled(self, root: Path, cell: Cell) -> Record | None:
        """Return the record of a cell that is finished or has failed; None where there is still something to do."""
        return settled(root, cell.key, self.samples)

    def left(self, root: Path) -> list[Cell]:
        """Return the cells that are neither finished nor failed."""
        return [cell for cell in self.cells if self.settled(root, cell) is None]

    @property
    def frozen(self) -> JsonObject:
        """The settings as the study's ledger has them."""
        return frozen(self.spec, dict(self.named))

    @property
    def samples(self) -> int:
        """Answers to each question that judges read; 0 where the questions set it themselves, or there is nothing to judge."""
        return (self.spec.judged.ask.samples or 0) if self.spec.judged else 0

    @property
    def asked(self) -> Questions:
        """What every checkpoint is asked."""
        measure = self.spec.measure
        return Questions(self.sets, measure.samples, self.spec.seeds[0], measure.batch_tokens)

    @property
    def compared_in_float32(self) -> tuple[str, ...]:
        """The runs with some items read in float32 too, where readings are in 16 bits."""
        if self.spec.measure.skip_float32 or self.spec.dtype not in HALVES:
            return ()
        first = next(r for r in self.runs if r.spec.role == "target")
        control = controls_of(self.runs).get(first.name)
        return (first.name, control.name) if control else (first.name,)


def sets_of(spec: StudySpec) -> ItemSets:
    """Return the items that a study reads."""
    return study_sets(spec.measure, spec.domain if any(a.task for a in spec.arms.values()) else None)


def unfold(spec: StudySpec, base: Model, recipes: Mapping[str, Sequence[Row]], sets: ItemSets) -> Planned:
    """Return a study's cells.

    Raises:
        InputError: a file or name in the settings that does not fit.
    """
    runs = plan(spec)
    methods = {one.method: one.train for one in runs}
    near = {method: held_near(train.held) for method, train in methods.items()}
    texts = {name: [r.conversation for r in rows] for name, rows in recipes.items()}
    texts |= {f"held by {method}": rows for method, rows in near.items() if rows}
    named = digests(base, texts, methods.values()) | {"items": sets.digest()}
    if spec.decide.ladder:
        named["ladder"] = ladder_digest(spec.decide.ladder)
    if spec.judged is not None:
        named["questions"] = digest_of(read_questions(spec.judged.ask.questions))
    keys = _keys(spec, base, runs, recipes, near, named)
    cells = [Cell(BASE, keys[BASE], None), *(Cell(one.name, keys[one.name], one) for one in runs)]
    return Planned(spec, base, tuple(runs), sets, recipes, near, named, tuple(cells))


def _keys(
    spec: StudySpec,
    base: Model,
    runs: Sequence[Run],
    recipes: Mapping[str, Sequence[Row]],
    near: Mapping[str, list[Conversation]],
    named: Mapping[str, str],
) -> dict[str, str]:
    """Return each cell's key: short digests of what all share, of the method and the arm, and the seed."""
    on_cpu = pick_device("auto") == "cpu"
    common = short(
        {
            "version": VERSION,
            "base": [base.digest, None if base.held else beside_digest(base.folder)],
            "chat": [spec.system, dict(spec.chat_kwargs or {})],
            "dtype": spec.dtype,
            "domain": spec.domain,
            "items": named["items"],
            "measure": spec.measure.model_dump(mode="json", exclude={"skip_float32"}),
            "judged": [asked_of(spec.judged), named.get("questions")],
            "seed of samples": spec.seeds[0],
            "threads": spec.threads if on_cpu else None,  # how sums are split on a CPU, which affects their last digits
        }
    )
    arms = {
        name: short([a.model_dump(mode="json", exclude={"methods"}), named[f"data {name}"]]) for name, a in spec.arms.items()
    }
    outside = {name: digest for name, digest in named.items() if name.startswith(("direction ", "adapter "))}
    methods = {}
    for one in runs:
        if one.method not in methods:
            held = named.get(f"data held by {one.method}")
            methods[one.method] = short([one.train.deciding(), held, _inside(outside, one)])
    found = {one.name: short([common, one.name, arms[one.arm], methods[one.method], one.seed]) for one in runs}
    return found | {BASE: short([common, BASE])}


def _inside(outside: Mapping[str, str], one: Run) -> dict[str, str]:
    """Return the digests of the files that a method's settings name."""
    train = one.train
    names = {f"direction {train.prevent.direction}"} if train.prevent else set()
    names |= {f"direction {path}" for path in train.readings.directions.values()} if train.readings else set()
    names |= {f"adapter {train.adapter.folder}"} if train.adapter else set()
    return {name: outside[name] for name in sorted(names)}


def readings(planned: Planned, one: Run | None, checkpoints: Mapping[int, Checkpoint]) -> list[Reading]:
    """Return what to read from a cell: the base once, a run at its checkpoints, samples at base and last."""
    spec, sets = planned.spec, planned.sets
    questions = sample_questions(sets, spec.measure.samples.questions)
    if one is None:
        everything: dict[str, tuple[int, ...] | None] = {s: None for s in EVERY if sets.of(s)}
        return [Reading(BASE, 0, None, everything, questions=questions)]
    found = []
    for step in read_steps(one):
        last = step == one.steps[-1]
        wanted: dict[str, tuple[int, ...] | None] = {EM: None}
        if sets.heldout and one.spec.task:
            wanted[HELDOUT] = taught(spec, one.spec)
        if sets.placebo and one.spec.role != "control":
            wanted[PLACEBO] = None
        if sets.truth and (last or spec.measure.truth_at == "all"):
            wanted[TRUTH] = None
        if last:
            wanted |= {s: None for s in ONCE if sets.of(s)}
        found.append(Reading(one.name, step, checkpoints[step], wanted, questions=questions if last else ()))
    return found


def readings_ahead(planned: Planned, one: Run | None) -> list[Reading]:
    """Return the readings of a cell whose checkpoints do not exist yet."""
    kind = Checkpoint if planned.spec.host is None else HostedCheckpoint
    return readings(planned, one, {step: kind(step, Path(), "", None, "") for step in one.steps} if one else {})
