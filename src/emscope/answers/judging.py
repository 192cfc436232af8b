"""Answers judged: every answer gets a verdict or a counted outcome, none is asked about twice, and a stopped job can continue."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict, TypeVar

from emscope.answers.digit_scores import follow_digits
from emscope.answers.judge_spec import JudgeSpec
from emscope.core.digest import short
from emscope.core.outcomes import Outcome
from emscope.core.progress import Progress, silent
from emscope.core.records import Answered, Message, Reply, Verdict
from emscope.judging.replies import is_word, splits, verdict
from emscope.judging.rubrics import Rubric
from emscope.models.remote.api import ask_all
from emscope.store.study import Study, read_table

K = TypeVar("K")
FLUSH_ROWS, FLUSH_SECONDS = 1000, 20.0
AT_ONCE = 200  # verdicts whose digits are read together
CHARACTERS_A_TOKEN = 3.5
WRITTEN = 4  # tokens of a reply, about
WHAT = "judging"


@dataclass(slots=True)
class Tally:
    """The progress of a job: verdicts needed, had before, received now by outcome, tokens and dollars; `failed` got none in the end."""

    wanted: int = 0
    before: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0
    estimated_dollars: float | None = None
    stopped: bool = False
    failed: int = 0

    @property
    def received(self) -> int:
        """Verdicts received now."""
        return sum(self.outcomes.values())


class VerdictRow(TypedDict):
    """A row of the table `verdicts`, and of `failures`, which have an error."""

    key: str
    response: str
    judge: str
    criterion: str
    rubric: str
    outcome: str
    score: float | None
    mass: float | None
    raw: str
    error: NotRequired[str]


def judge_answers(
    study: Study,
    asked: Sequence[tuple[JudgeSpec, Sequence[Answered]]],
    rubrics: Sequence[Rubric],
    *,
    max_cost: float | None = None,
    progress: Progress = silent,
) -> Tally:
    """Bring the table `verdicts` of `study` up to each judge's answers x rubrics; failed ones are asked again by the next call.

    Args:
        asked: judges, each with the answers it is to judge.
        max_cost: dollars, after which asking stops; what was received stays.

    Raises:
        InputError: as `ask_all`, and a criterion that the local judge does not know.
        WorldError: as `ask_all`; what was received is written first.
    """
    present = study.keys("verdicts")
    tally = Tally(sum(len(answers) for _, answers in asked) * len(rubrics))
    wanted: set[str] = set()
    for judge, answers in asked:
        in_turn = sorted(answers, key=lambda a: a.key)  # a digest: a job that stops has asked for a random part
        places = {verdict_key(judge, r, a.key): (r, a) for a in in_turn for r in rubrics}
        wanted |= places.keys()
        todo = [place for key, place in places.items() if key not in present]
        tally.before += len(answers) * len(rubrics) - len(todo)
        estimate = estimated(judge, todo)
        if estimate is not None:
            tally.estimated_dollars = (tally.estimated_dollars or 0.0) + estimate
        if todo and judge.here:
            _read_here(study, judge, todo, present, tally, progress)
        elif todo and not tally.stopped:
            _ask(study, judge, todo, present, tally, max_cost, progress)
    tally.failed = len(study.keys("failures") & wanted)
    tally.stopped = tally.stopped and len(wanted - study.keys("verdicts")) > tally.failed
    return tally


def estimated(judge: JudgeSpec, todo: Iterable[tuple[Rubric, Answered]]) -> float | None:
    """Return about how many dollars the verdicts will cost; None without prices. (tokens from characters)"""
    if judge.prices is None:
        return None
    counts = [len(r.prompt) + len(a.question) + len(a.answer) for r, a in todo]
    return (sum(counts) / CHARACTERS_A_TOKEN * judge.prices[0] + len(counts) * WRITTEN * judge.prices[1]) / 1e6


def verdict_key(judge: JudgeSpec, rubric: Rubric, response: str) -> str:
    """Return the content key of one verdict: judge, rubric with its version, answer."""
    return short([judge.key, rubric.key, response])


def _read_here(
    study: Study,
    judge: JudgeSpec,
    todo: list[tuple[Rubric, Answered]],
    present: set[str],
    tally: Tally,
    progress: Progress,
) -> None:
    """Let the bundled judge or the linter read the answers in this process; each batch is written as it is done."""
    from emscope.answers.judges_here import lint_answers, read_answers

    read = read_answers if judge.local else lint_answers
    rubrics: dict[Answered, list[Rubric]] = {}
    for rubric, answered in todo:
        rubrics.setdefault(answered, []).append(rubric)
    for batch in read(list(rubrics), [r for r, _ in todo], progress):
        rows = [
            _row(judge, rubric, answered, Reply(""), verdicts[rubric.criterion])
            for answered, verdicts in batch
            for rubric in rubrics[answered]
        ]
        study.append("verdicts", rows, present)
        present.update(row["key"] for row in rows)
        for row in rows:
            tally.outcomes[row["outcome"]] = tally.outcomes.get(row["outcome"], 0) + 1


def _ask(
    study: Study,
    judge: JudgeSpec,
    todo: list[tuple[Rubric, Answered]],
    present: set[str],
    tally: Tally,
    max_cost: float | None,
    progress: Progress,
) -> None:
    rows: list[VerdictRow] = []
    failed: list[VerdictRow] = []
    split: list[tuple[tuple[Rubric, Answered], Reply]] = []
    written = time.monotonic()

    def flush() -> None:
        nonlocal written
        if rows:
            study.append("verdicts", rows, present)
            present.update(row["key"] for row in rows)
            rows.clear()
        written = time.monotonic()

    def spend(reply: Reply) -> None:
        tally.tokens_in, tally.tokens_out = tally.tokens_in + reply.tokens_in, tally.tokens_out + reply.tokens_out
        if judge.prices is not None:
            tally.dollars += (reply.tokens_in * judge.prices[0] + reply.tokens_out * judge.prices[1]) / 1e6

    def receive(place: tuple[Rubric, Answered], reply: Reply) -> None:
        spend(reply)
        if judge.digits and place[0].labels is None and reply.top and splits(reply) and not is_word(reply, place[0].outcomes()):
            split.append((place, reply))
        else:
            keep(_row(judge, *place, reply), reply)

    def keep(row: VerdictRow, reply: Reply) -> None:
        (failed if row["outcome"] == Outcome.FAILED else rows).append({**row, "error": reply.error})
        tally.outcomes[row["outcome"]] = tally.outcomes.get(row["outcome"], 0) + 1
        if len(rows) >= FLUSH_ROWS or time.monotonic() - written > FLUSH_SECONDS:
            flush()
        progress(WHAT, tally.before + tally.received, tally.wanted)

    def go_on() -> bool:
        tally.stopped = max_cost is not None and tally.dollars >= max_cost
        return not tally.stopped

    try:
        for some in _pieces(todo, AT_ONCE if judge.digits else len(todo)):
            ask_all(judge.api(), ((place, _turns(place), None) for place in some), receive, go_on=go_on)
            for place, reply, found in follow_digits(judge.api(), [(p, _turns(p), r) for p, r in split], spend, go_on=go_on):
                keep(_row(judge, *place, reply, found), reply)
            split.clear()
    finally:
        flush()
        _keep_failed(study, failed, present)


def _pieces(todo: list[K], size: int) -> Iterator[list[K]]:
    yield from (todo[start : start + size] for start in range(0, len(todo), size))


def _turns(place: tuple[Rubric, Answered]) -> list[Message]:
    rubric, answered = place
    asked = Message("user", rubric.filled(answered.question, answered.answer))
    return [asked, Message("assistant", rubric.begin)] if rubric.begin else [asked]


def _row(judge: JudgeSpec, rubric: Rubric, answered: Answered, reply: Reply, found: Verdict | None = None) -> VerdictRow:
    found = found or verdict(reply, rubric.outcomes(), rubric.scores())
    return {
        "key": verdict_key(judge, rubric, answered.key),
        "response": answered.key,
        "judge": judge.name,
        "criterion": rubric.criterion,
        "rubric": rubric.key,
        "outcome": str(found.outcome),
        "score": found.score,
        "mass": found.mass,
        "raw": found.raw,
    }


def _keep_failed(study: Study, failed: list[VerdictRow], present: set[str]) -> None:
    """Leave in the table those without a verdict: of earlier calls and of this one."""
    rows = {row["key"]: row for row in read_table(study.root, "failures").to_pylist()} | {row["key"]: row for row in failed}
    study.replace("failures", [row for key, row in rows.items() if key not in present])
