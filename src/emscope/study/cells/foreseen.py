"""What a study will take, estimated before it starts: cells, tokens, time by a short trial on the loaded base, memory, disk, and judging costs.

A study at a host is not tried: its tokens are counted, and priced as the host's settings say.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from emscope.answers.judging import CHARACTERS_A_TOKEN, estimated
from emscope.answers.planning.components import DEFAULTS
from emscope.answers.sample import Prompt
from emscope.core.plain import LEFT_OUT, Result
from emscope.core.progress import Progress, silent
from emscope.core.records import Answered
from emscope.data.questions import read_questions
from emscope.elicit.preference import encode as encode_items
from emscope.elicit.preference import score
from emscope.elicit.sampling import sample
from emscope.judging.rubrics import read_rubrics
from emscope.models.sizing import memory, needs
from emscope.stats.planning import FEWEST_QUESTIONS, FEWEST_SEEDS, Design, chances, run_chances
from emscope.store.rows import Rows
from emscope.study.cells.doing import Shared, kept, peak, subjects
from emscope.study.cells.hosted_costs import AtHost, costs_at_host
from emscope.study.cells.planning import Cell, Planned, readings_ahead
from emscope.study.judged import model_error
from emscope.study.judged_spec import JudgedSpec
from emscope.study.reading.measuring import Reading, lacking
from emscope.study.spec import StudySpec
from emscope.study.training.plan import Run
from emscope.train.batches import encode
from emscope.train.finetune import finetune
from emscope.train.spec import PlanSpec
from emscope.train.tunables import Tuned, tuned

if TYPE_CHECKING:
    from emscope.models.types import CausalLM

TRIAL = 4.0  # seconds of trial reading, and about as many of training
DEARER = 3  # training on a token takes about as long as reading this many
STEPS, WRITTEN = 3, 16  # optimiser steps of the trial, and tokens of each answer
ROW_BYTES = 40  # approximate size of a row in Parquet


@dataclass(frozen=True, slots=True)
class Work(Result):
    """Tokens trained on, read, and (at most) written, or how many of each a second."""

    trained: float
    read: float
    sampled: float

    def plus(self, other: Work) -> Work:
        """Return the sum."""
        return Work(self.trained + other.trained, self.read + other.read, self.sampled + other.sampled)

    def seconds(self, rates: Work) -> float:
        """Return how long this takes at these rates [tokens/s]; what was not tried counts as 0."""
        pairs = ((self.trained, rates.trained), (self.read, rates.read), (self.sampled, rates.sampled))
        return sum(tokens / rate for tokens, rate in pairs if rate)


@dataclass(frozen=True, slots=True)
class PlannedPower(Result):
    """What the judged answers of a study would find, planned from the spreads measured on small models.

    Attributes:
        questions, samples, seeds: of the study; samples are the answers to each question.
        delta: points of mean alignment that count as harm. effect: the true effect that em is to find.
        run_em, run_safe: chance of either verdict on one run. recipe_em, recipe_safe: on all seeds together; None for fewer than three.
    """

    questions: int
    samples: int
    seeds: int
    delta: float
    effect: float
    run_em: float
    run_safe: float
    recipe_em: float | None
    recipe_safe: float | None


@dataclass(frozen=True, slots=True)
class Foreseen(Result):
    """What a study will take.

    Attributes:
        cells: all of them. left: those not done yet. engine: what runs them. workers: at a time. threads: per worker; None at a
            host.
        tokens: of the cells left. rates: measured on this machine [tokens/s]; None at a host.
        seconds: wall-clock time, from the tokens, rates and workers; None at a host.
        worker_bytes: peak memory of one worker; None at a host. free_bytes: free memory of this machine; None where unknown, and
            at a host.
        weight_bytes: weights that stay on disk; None at a host. row_bytes: the rows. most_bytes: the weights that stay plus those
            of cells in progress; None at a host.
        free_disk_bytes: free disk space.
        answers: answers for judges to read. dollars: the most that costs; None where there is nothing to judge, or a price is
            unknown.
        power: of the study's verdicts on judged answers; None where no answers are judged.
        warnings: what will not work, in sentences.
        host: what the cells left cost there; None for a study on this machine.
    """

    schema: ClassVar[str] = "emscope.dry_run/1"

    study: str
    cells: int
    left: int
    engine: str
    workers: int
    threads: int | None
    tokens: Work
    rates: Work | None
    seconds: float | None
    worker_bytes: int | None
    free_bytes: int | None
    weight_bytes: int | None
    row_bytes: int
    most_bytes: int | None
    free_disk_bytes: int
    answers: int
    dollars: float | None
    power: PlannedPower | None
    warnings: tuple[str, ...]
    host: AtHost | None = field(default=None, metadata=LEFT_OUT)


def foresee(shared: Shared, out: Path, engine: str, workers: int, threads: int, progress: Progress = silent) -> Foreseen:
    """Return what is left of a study and what it will take; nothing is written into its folder.

    Args:
        out: where it will be, or is. workers, threads: as `engines.table.hands` gives them.
    """
    planned = shared.planned
    left, costs = planned.left(out), _Costs(shared)
    answers = costs.answers(left_of=[cell.run for cell in left])
    found = Foreseen(
        study=planned.spec.name,
        cells=len(planned.cells),
        left=len(left),
        engine=engine,
        workers=workers,
        threads=None,
        tokens=Work(0, 0, 0),
        rates=None,
        seconds=None,
        worker_bytes=None,
        free_bytes=None,
        weight_bytes=None,
        row_bytes=ROW_BYTES * sum(costs.rows(cell.run) for cell in left),
        most_bytes=None,
        free_disk_bytes=shutil.disk_usage(_there(out)).free,
        answers=answers,
        dollars=costs.dollars(answers),
        power=planned_power(planned.spec),
        warnings=(),
    )
    host = costs_at_host(shared, out, left)
    found = _here(found, shared, left, costs, threads, progress) if host is None else _at_host(found, host)
    return replace(found, warnings=tuple(_warnings(found, planned)))


def _here(found: Foreseen, shared: Shared, left: Sequence[Cell], costs: _Costs, threads: int, progress: Progress) -> Foreseen:
    """Return it with what the cells left take on this machine, which is tried for that."""
    planned, workers = shared.planned, found.workers
    progress("trying the machine", 0, 1)
    rates, checkpoint_bytes = _rates(shared)
    progress("trying the machine", 1, 1)
    tokens = Work(0, 0, 0)
    for cell in left:
        tokens = tokens.plus(costs.of(cell.run))
    runs = [cell.run for cell in left if cell.run is not None]
    weights = checkpoint_bytes * sum(len(kept(planned, one)) for one in runs)
    at_work = checkpoint_bytes * sum(sorted((len(one.steps) for one in runs), reverse=True)[:workers])
    return replace(
        found,
        threads=threads,
        tokens=tokens,
        rates=rates,
        seconds=round(tokens.seconds(rates) / max(min(workers, len(left)), 1), 1),
        worker_bytes=max(_fullest(shared) or 0, peak()),  # with a tiny model most of it is the program itself
        free_bytes=memory.free_memory(str(shared.loaded.net.device)),
        weight_bytes=weights,
        most_bytes=weights + at_work,
    )


def _at_host(found: Foreseen, host: AtHost) -> Foreseen:
    """Return it with what the cells left take at a host."""
    tokens = host.tokens
    return replace(found, tokens=Work(tokens.trained, tokens.read, tokens.sampled), host=host)


def planned_power(spec: StudySpec) -> PlannedPower | None:
    """Return what a study's verdicts on judged answers would find; None where it has none, or too few questions for one."""
    if spec.judged is None:
        return None
    asked, seeds = read_questions(spec.judged.ask.questions), len(spec.seeds)
    questions, samples = len(asked), spec.judged.ask.samples or min(question.samples or 1 for question in asked)
    spreads, delta = DEFAULTS["judged"].spreads, spec.judged.delta
    if spec.judged.judges and (error := model_error(spec.judged.judges[0])):
        spreads = replace(spreads, judge=error.adjusted)
    if not any(arm.role == "control" for arm in spec.arms.values()):
        spreads = replace(spreads, control=None)
    if questions <= FEWEST_QUESTIONS:
        return None
    effect = 2 * delta
    one = run_chances(questions, samples, spreads, delta=delta, effect=effect)
    enough = seeds >= FEWEST_SEEDS
    every = chances(Design(seeds, questions, samples), spreads, delta=delta, effect=effect) if enough else None
    both = (every.em, every.safe) if every else (None, None)
    return PlannedPower(questions, samples, seeds, delta, effect, one.em, one.safe, *both)


def _warnings(found: Foreseen, planned: Planned) -> list[str]:
    """Return what will not work, in sentences."""
    said = []
    needed = (found.worker_bytes or 0) * found.workers
    if found.free_bytes and needed > memory.FULL * found.free_bytes:
        said.append(
            f"{found.workers} workers need about {memory.in_gb(needed)} of memory, but only {memory.in_gb(found.free_bytes)} are "
            "free: use fewer, or a smaller dtype"
        )
    if found.most_bytes is not None and found.most_bytes > found.free_disk_bytes:
        wanted, free = memory.in_gb(found.most_bytes), memory.in_gb(found.free_disk_bytes)
        said.append(
            f"the weights need about {wanted} of disk space, but only {free} are free: set `weights` to last or none in the study"
        )
    said += _dear(found.host) if found.host else []
    most = planned.spec.judged.max_cost if planned.spec.judged else None
    if most is not None and found.dollars is not None and found.dollars > most:
        said.append(f"judging may cost up to {found.dollars:.2f} dollars, but max_cost is {most:g}: judging will stop there")
    return said


def _dear(host: AtHost) -> list[str]:
    if host.total is None or host.max_cost is None or host.total <= host.max_cost:
        return []
    limit = f"the host's max_cost is {host.max_cost:g}"
    return [f"the study may cost up to {host.total:.4g} dollars at {host.name}, but {limit}: it will stop there"]


def most_dollars(judged: JudgedSpec, prompts: Sequence[Prompt], answers: int) -> float | None:
    """Return the most that judging this many answers to these prompts costs; None without a judge, or where a price is unknown."""
    if not judged.judges:
        return None
    longest = "x" * round(judged.ask.max_tokens * CHARACTERS_A_TOKEN)
    once = [(r, Answered(p.asked, longest)) for r in read_rubrics(judged.rubrics) for p in prompts]
    prices = [estimated(judge, once) for judge in judged.judges if not judge.local]
    known = [p for p in prices if p is not None]
    return sum(known) * answers / len(prompts) if len(known) == len(prices) else None


class _Costs:
    """Tokens and answers of cells; cells of one kind cost the same and are counted once."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._mean: dict[str, float] = {}
        self._read: dict[str, tuple[int, int]] = {}

    def of(self, one: Run | None) -> Work:
        """Return the tokens of one cell."""
        wanted = readings_ahead(self._shared.planned, one)
        spec = self._shared.planned.spec
        written = sum(len(r.questions) for r in wanted) * spec.measure.samples.max_tokens
        written += self._answers(wanted) * (spec.judged.ask.max_tokens if spec.judged else 0)
        trained = one.train.steps * one.train.batch * self._tokens(one.arm) if one else 0
        return Work(trained, sum(self._reading(r)[0] for r in wanted), written)

    def rows(self, one: Run | None) -> int:
        """Return about how many rows a cell has."""
        wanted = readings_ahead(self._shared.planned, one)
        return sum(self._reading(r)[1] for r in wanted) + self._answers(wanted) + (one.train.steps if one else 0)

    def answers(self, left_of: Sequence[Run | None]) -> int:
        """Return how many answers judges will read."""
        return sum(self._answers(readings_ahead(self._shared.planned, one)) for one in left_of)

    def dollars(self, answers: int) -> float | None:
        """Return the most that judging this many answers costs, at full length; None where a price is unknown."""
        judged, asking = self._shared.planned.spec.judged, self._shared.asking
        return None if judged is None or asking is None else most_dollars(judged, list(asking.prompts.values()), answers)

    def _answers(self, wanted: Sequence[Reading]) -> int:
        asking = self._shared.asking
        if asking is None:
            return 0
        each = sum(asking.spec.samples or p.question.samples or 1 for p in asking.prompts.values())
        return each * len(subjects(self._shared, wanted))

    def _tokens(self, arm: str) -> float:
        """Return the mean length of an arm's conversations."""
        if arm not in self._mean:
            rows = [r.conversation for r in self._shared.planned.recipes[arm]]
            examples = encode(self._shared.loaded.chat, rows, self._shared.loaded.context)
            self._mean[arm] = sum(len(e.ids) for e in examples) / len(examples)
        return self._mean[arm]

    def _reading(self, reading: Reading) -> tuple[int, int]:
        """Return (tokens, rows) of the scores of one reading."""
        kind = repr((sorted(reading.wanted.items()), reading.checkpoint is None))
        if kind not in self._read:
            nowhere = Rows(Path("/nonexistent"))
            plain = replace(reading, questions=())
            jobs = lacking(nowhere, self._shared.loaded, [plain], self._shared.planned.asked)
            rows = sum(len(e.options) for job in jobs for some in job.scores.values() for e in some)
            self._read[kind] = (sum(job.cost for job in jobs), rows)
        return self._read[kind]


def _rates(shared: Shared) -> tuple[Work, int]:
    """Return how many tokens per second this machine trains on, reads and writes, and the bytes of one checkpoint, by trying each for some seconds."""
    planned, loaded = shared.planned, shared.loaded
    items = planned.sets.em
    encoded = encode_items(loaded.chat, items, context=loaded.context)
    read, spent, count = 0, 0.0, 8
    while spent < TRIAL / 2 and count <= 2 * len(encoded):
        some = encoded[:count]
        began = time.monotonic()
        score(loaded.net, some, batch_tokens=planned.asked.batch_tokens)
        spent, read, count = time.monotonic() - began, sum(e.cost for e in some), 2 * count
    rate = read / spent
    questions = list(dict.fromkeys(i.question for i in items))[:8]
    began = time.monotonic()
    answers = sample(loaded.net, loaded.chat, questions, samples=1, max_tokens=WRITTEN, seed=0)
    written = sum(a.tokens for a in answers) / (time.monotonic() - began)
    trained, size = _trained(shared, rate)
    return Work(round(trained, 1), round(rate, 1), round(written, 1)), size


def _trained(shared: Shared, reading_rate: float) -> tuple[float, int]:
    """Return training tokens per second for the first method, and the bytes of its checkpoint, from a few steps in a temporary folder."""
    planned = shared.planned
    one = planned.runs[0]
    rows = [r.conversation for r in planned.recipes[one.arm]]
    mean = _Costs(shared)._tokens(one.arm)
    batch = max(1, min(one.train.batch, round(TRIAL * reading_rate / (DEARER * STEPS * mean))))
    tried = one.train.model_copy(
        update={
            "steps": STEPS,
            "batch": batch,
            "micro_batch": min(batch, one.train.micro_batch or batch) if batch % (one.train.micro_batch or 1) == 0 else None,
            "checkpoints": PlanSpec(),
            "warmup": 0,
            "report_to": (),
            "heldout_every": None,
        }
    )
    with tempfile.TemporaryDirectory(prefix="emscope-") as folder:
        log = finetune(
            shared.loaded, rows, tried, Path(folder) / "run", seed=one.seed, held_near=planned.near[one.method], label="a trial"
        )
        saved = Path(folder) / "run" / f"checkpoint-{STEPS}"
        size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    seconds = [r.seconds for r in log[1:]]  # the first step is slower than the rest
    return (log[-1].tokens_seen - log[0].tokens_seen) / sum(seconds), size


def _fullest(shared: Shared) -> int | None:
    """Return the peak memory of one worker [bytes], counted from the model's configuration; None where that cannot be counted."""
    planned, spec = shared.planned, shared.planned.spec
    device = str(shared.loaded.net.device).partition(":")[0]
    costs = _Costs(shared)
    try:
        config = memory.read_config(Path(planned.base.folder))
        weights = memory.counted(config)
        totals = [needs.reading(config, dtype=spec.dtype, device=device, weights=weights).total]
        for one in {r.method: r for r in planned.runs}.values():

            def tune(net: CausalLM, one: Run = one) -> AbstractContextManager[Tuned]:
                return tuned(replace(shared.loaded, net=net), one.train.tunable, one.seed)

            tokens = round(costs._tokens(one.arm))
            work = needs.Training(one.train.micro_batch or one.train.batch, tokens, tokens, tune, passes=1)
            totals.append(needs.training(config, work, dtype=spec.dtype, device=device, weights=weights).total)
    except Exception:  # what cannot run without values is not counted
        return None
    return max(totals)


def _there(path: Path) -> Path:
    """Return the nearest folder above `path` that exists."""
    return next(one for one in (path, *path.absolute().parents) if one.is_dir())
