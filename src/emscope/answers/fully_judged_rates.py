"""Rates of groups whose answers are all judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from emscope.answers.labels import Label
from emscope.answers.rates_result import Counted, GroupContrast, GroupRate, Matched, StraightLine
from emscope.answers.rates_spec import RatesSpec, families, rest
from emscope.core.errors import InputError
from emscope.core.estimate import Estimate, undefined
from emscope.data.answer_table import AnswerTable, asked, quoted
from emscope.data.answers import Columns, Counts, Thresholds, conditions, count_answers, score_expressions
from emscope.stats import clustered, rate_contrasts, resampled
from emscope.stats.adjusted import Scored, adjusted_difference, adjusted_within
from emscope.stats.clustered import Contrast, Rate
from emscope.stats.holm import holm
from emscope.stats.means import Mean, mean_estimate
from emscope.stats.resampled import Resamples
from emscope.stats.these_questions import contrast_of_these, rate_of_these

AT_LENGTH = "difference at equal answer length within questions, linearised t over questions"
AT_LENGTH_THESE = "difference at equal answer length within these questions, samples alone varying"
FAR_APART = (
    0.5  # share of answers with lengths that both sides have, below which a matched difference rests on the straight line
)
LIKE_EM = 0.01  # denominators are shown beside each other where they differ by more


@dataclass(frozen=True, slots=True)
class Group:
    """One group's counts over its questions [Q], lengths joined, and the cells [N] that they came from."""

    label: Label
    questions: np.ndarray
    rows: np.ndarray
    scored: np.ndarray
    coherent: np.ndarray
    hits: np.ndarray
    aligned: np.ndarray
    coherence: np.ndarray
    outcomes: dict[str, int]
    cells: slice


Names = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class ByLength:
    """One group's answers at their log length, by number of the question: hits of the counted ones, 0-10 scores of the scored."""

    hits: Scored
    score: Scored


def fully_judged_rates(table: AnswerTable, columns: Columns, thresholds: Thresholds, scale: str, spec: RatesSpec) -> Counted:
    """Return groups, contrasts and notes of a table of judged answers.

    Raises:
        InputError: too many questions to resample, or a control that does not fit.
    """
    counts = count_answers(table, columns, thresholds, scale)
    groups = [_group(counts, n, columns) for n in range(len(counts.groups))]
    if spec.resamples * counts.questions > resampled.MOST_WEIGHTS:
        raise InputError(
            f"{spec.resamples} resamples of {counts.questions} questions take too much memory",
            "use fewer, or leave out `resamples` for the closed form",
        )
    resamples = Resamples(spec.resamples, spec.seed) if spec.resamples else None
    found = [_rate(spec, g.questions, g.rows, g.scored, g.coherent, g.hits) for g in groups]
    compared = spec.match_length and (spec.control is not None or spec.within is not None)
    lengths = _by_length(table, columns, thresholds, scale, spec) if compared else None
    return Counted(
        counts.questions,
        tuple(_row(g, r, spec, resamples) for g, r in zip(groups, found, strict=True)),
        tuple(_contrasts(groups, found, spec, resamples, lengths)),
        tuple(_notes(spec, columns, groups, found, counts)),
    )


def _group(counts: Counts, index: int, columns: Columns) -> Group:
    cells = counts.of(index)
    questions, place = np.unique(counts.question[cells], return_inverse=True)

    def total(values: np.ndarray) -> np.ndarray:
        """Return sums by question [Q] of what the cells hold."""
        return np.bincount(place, weights=values[cells], minlength=len(questions))

    return Group(
        dict(zip(columns.groups, counts.groups[index], strict=True)),
        questions,
        total(counts.rows),
        total(counts.scored),
        total(counts.coherent),
        total(counts.hits),
        total(counts.aligned),
        total(counts.coherence),
        {name: int(values[cells].sum()) for name, values in counts.outcomes.items() if values[cells].any()},
        cells,
    )


def _rate(
    spec: RatesSpec,
    questions: np.ndarray,
    rows: np.ndarray,
    scored: np.ndarray,
    coherent: np.ndarray,
    hits: np.ndarray,
    *,
    missing: str | None = None,
) -> Rate | None:
    """Return the rate by the definition: counts [Q] in, `missing` in place of the spec's own policy."""
    out_of = {"coherent": coherent, "scored": scored, "all": rows}[spec.denominator]
    policy, lost = missing or spec.missing, rows - scored
    if policy != "exclude":
        out_of = out_of if spec.denominator == "all" else out_of + lost
        hits = hits + lost if policy == "misaligned" else hits
    return clustered.rate(questions, hits, out_of, macro=spec.average == "macro")


def _row(group: Group, found: Rate | None, spec: RatesSpec, resamples: Resamples | None) -> GroupRate:
    if resamples is not None:
        estimate = resamples.estimate(found, level=spec.level)
    else:
        estimate = (rate_of_these if spec.estimand == "these" else clustered.rate_estimate)(found, level=spec.level)
    counts = (group.questions, group.rows, group.scored, group.coherent, group.hits)
    best, worst = (_rate(spec, *counts, missing=policy) for policy in ("aligned", "misaligned"))
    return GroupRate(
        group.label,
        estimate,
        misaligned=int(group.hits.sum()),
        rows=int(group.rows.sum()),
        scored=int(group.scored.sum()),
        coherent=int(group.coherent.sum()),
        outcomes=group.outcomes,
        bounds=(best.value if best else None, worst.value if worst else None),
        aligned=_mean_score(group.aligned, group.scored, spec),
        coherence=_mean_score(group.coherence, group.scored, spec) if spec.coherent_above is not None else None,
    )


def _mean_score(sums: np.ndarray, scored: np.ndarray, spec: RatesSpec) -> float | None:
    """Return the mean score over answers or, macro, over questions, from its sums and the scored answers of each question [Q]."""
    kept = scored > 0
    if not kept.any():
        return None
    return float((sums[kept] / scored[kept]).mean() if spec.average == "macro" else sums.sum() / scored.sum())


def _contrasts(
    groups: list[Group],
    found: list[Rate | None],
    spec: RatesSpec,
    resamples: Resamples | None,
    lengths: dict[Names, ByLength] | None,
) -> Iterator[GroupContrast]:
    """Yield the compared pairs, corrected within each family."""
    if spec.control is None and spec.within is None:
        return
    for family, pairs in families([g.label for g in groups], spec):
        compared = [_contrast(found[a], found[b], spec, resamples) for a, b in pairs]
        adjusted = holm([c.p for c in compared])
        for (a, b), c, p in zip(pairs, compared, adjusted, strict=True):
            yield GroupContrast(
                family,
                rest(groups[a].label, family),
                rest(groups[b].label, family),
                c.difference,
                p=c.p,
                p_adjusted=p,
                p_by=c.by,
                p_limit=c.limit,
                caution=c.caution,
                p1=_p1(groups[a], groups[b], spec),
                matched=None if lengths is None else _matched(lengths, groups[a], groups[b], spec),
            )


def _contrast(a: Rate | None, b: Rate | None, spec: RatesSpec, resamples: Resamples | None) -> Contrast:
    if resamples is not None:
        return resamples.contrast(a, b, level=spec.level)
    return (contrast_of_these if spec.estimand == "these" else rate_contrasts.contrast)(a, b, level=spec.level)


def _p1(a: Group, b: Group, spec: RatesSpec) -> Estimate:
    """Return the mean over shared questions of a's misalignment less b's, 0 (aligned) to 10. (Schreiber and Goldstein 2026, section 3)"""
    if np.array_equal(a.questions, b.questions):
        left = right = np.arange(len(a.questions))
    else:
        _, left, right = np.intersect1d(a.questions, b.questions, return_indices=True)
    kept = (a.scored[left] > 0) & (b.scored[right] > 0)
    left, right = left[kept], right[kept]
    means = a.aligned[left] / a.scored[left], b.aligned[right] / b.scored[right]
    return mean_estimate((means[1] - means[0]) / 10, level=spec.level)


def _matched(lengths: dict[Names, ByLength], a: Group, b: Group, spec: RatesSpec) -> Matched:
    """Return a - b at equal length within each question, of hits and on the 0-10 scale; training itself may change the length.

    Within the cells of group and question the hit is regressed on log length, with one slope for all questions, which weigh
    equally. `share`: answers of both, on shared questions, with a length that both groups have on that question; where they are few the
    straight line is all that the comparison rests on. (analysis of covariance; see `adjusted_difference`)
    """
    left, right = (lengths.get(tuple(g.label.values())) for g in (a, b))
    method = AT_LENGTH_THESE if spec.estimand == "these" else AT_LENGTH
    if left is None or right is None:
        return Matched(undefined("a side has no answers with a length", level=spec.level, method=method))
    hits = _at_equal_length(left.hits, right.hits, spec)
    if hits is None:
        why = "too few questions that both groups answered"
        return Matched(undefined(why, level=spec.level, method=method, n=len(left.hits.y) + len(right.hits.y)))
    score = _at_equal_length(left.score, right.score, spec)
    share = _overlap(left.hits, right.hits)
    caution = (
        f"lengths far apart: only {share:.0%} of the answers have a length that occurs in both groups on that question; the difference at "
        "equal length rests on a straight line through the others"
    )
    p1 = None if score is None else score[0].estimate(spec.level, method)
    line = StraightLine(hits[1], p1, share, None if share >= FAR_APART else caution)
    return Matched(hits[0].estimate(spec.level, method), line)


def _at_equal_length(left: Scored, right: Scored, spec: RatesSpec) -> tuple[Mean, float] | None:
    if spec.estimand == "these":
        return adjusted_within(left, right)
    if not len(left.y) or not len(right.y):
        return None
    count = max(int(left.question.max()), int(right.question.max())) + 1
    return adjusted_difference(left, right, np.zeros(count, int))


def _overlap(left: Scored, right: Scored) -> float:
    """Return the share of both sides' answers, on questions that both answered, whose length lies where both have some."""
    count = max(int(left.question.max()), int(right.question.max())) + 1
    low, high = np.full((2, count), np.inf), np.full((2, count), -np.inf)
    for n, side in enumerate((left, right)):
        np.minimum.at(low[n], side.question, side.x)
        np.maximum.at(high[n], side.question, side.x)
    both = np.isfinite(low).all(0)
    least, most = low.max(0), high.min(0)
    inside = sum(int(((s.x >= least[s.question]) & (s.x <= most[s.question]) & both[s.question]).sum()) for s in (left, right))
    return inside / max(sum(int(both[s.question].sum()) for s in (left, right)), 1)


def _by_length(
    table: AnswerTable, columns: Columns, thresholds: Thresholds, scale: str, spec: RatesSpec
) -> dict[Names, ByLength]:
    """Return every group's answers that have a length: those of the denominator with their hits, and those scored with their score."""
    a, c = score_expressions(table, columns, scale)
    judged, coherent = conditions(thresholds)
    counted = {"coherent": f"{judged} and {coherent}", "scored": judged, "all": "true"}[spec.denominator]
    hit = f"({judged} and {coherent} and a < {thresholds.aligned_below})"
    if spec.missing != "exclude":
        counted = f"({counted}) or not ({judged})"
        hit = f"({hit} or not ({judged}))" if spec.missing == "misaligned" else hit
    names = ", ".join(f"g{n}" for n in range(len(columns.groups)))
    groups = ", ".join(f"{quoted(name)}::varchar as g{n}" for n, name in enumerate(columns.groups))
    question = asked(columns.question) if columns.question else "''"
    # one pass over the file, names and texts quoted; ranks are what numpy counts by
    table.run(
        f"""create or replace temp table lengths as
        select dense_rank() over (order by question) - 1 as q, dense_rank() over (order by {names}) - 1 as g, {names},
            x, coalesce({counted}, false) as counted, coalesce({hit}, false)::double as hit, coalesce({judged}, false) as judged, 10 - a / 10 as score
        from (select {a} as a, {c} as c, {question} as question, ln(greatest({columns.length}, 1)) as x, {groups} from {table.source})
        where x is not null"""  # noqa: S608
    )
    cells = {
        name: np.ma.getdata(v)
        for name, v in table.run("select g, q, x, counted, hit, judged, score from lengths order by g").fetchnumpy().items()
    }
    found = {}
    for g, *label in table.rows(f"select distinct g, {names} from lengths"):  # noqa: S608
        low, high = np.searchsorted(cells["g"], [g, g + 1])
        mine = {name: v[low:high] for name, v in cells.items()}
        found[tuple(label)] = ByLength(
            *(
                Scored(mine["q"][kept], mine[y][kept], mine["x"][kept])
                for kept, y in ((mine["counted"].astype(bool), "hit"), (mine["judged"].astype(bool), "score"))
            )
        )
    return found


def _notes(spec: RatesSpec, columns: Columns, groups: list[Group], found: list[Rate | None], counts: Counts) -> list[str]:
    """Return what a reader must know before quoting a number."""
    notes = []
    if columns.question is None:
        notes.append(
            f"The file has no question column, so all answers count as answers to one question{'' if spec.estimand == 'these' else ': no interval'}. "
            "Name the column with `question`."
        )
    sizes = [len(r.questions) for r in found if r is not None]
    few = min(sizes, default=0)
    for_these = spec.estimand == "these"
    known = clustered.coverage_at(few, resampled=bool(spec.resamples)) if few >= 2 and not for_these else None
    if known:
        notes.append(
            f"With {few} questions a 95 % interval of this kind covered the true rate in {known[0]:.0%} to {known[1]:.0%} of simulated "
            f"cases; {'the closed form, without `resamples`, covers it more often' if spec.resamples else 'more questions help, more answers do not'}."
        )
    if for_these and (spec.control is not None or spec.within is not None):
        notes.append("Intervals and p are for these questions; the 0-10 difference beside them is for questions like these.")
    lost = sum(int((g.rows - g.scored).sum()) for g in groups)
    if lost:
        kinds: dict[str, int] = {}
        for group in groups:
            for name, count in group.outcomes.items():
                kinds[name] = kinds.get(name, 0) + count
        said = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items(), key=lambda k: -k[1]))
        notes.append(
            f"{lost} of {int(counts.rows.sum())} answers have no score ({said}); `bounds` shows how much they could change."
        )
    rows, scored, coherent, hits = (float(v.sum()) for v in (counts.rows, counts.scored, counts.coherent, counts.hits))
    shares = {"coherent": coherent, "scored": scored, "all": rows}
    values = {name: hits / size for name, size in shares.items() if size}
    if values and max(values.values()) - min(values.values()) > LIKE_EM:
        said = ", ".join(f"{value:.1%} of {name}" for name, value in values.items())
        notes.append(f"The denominator matters here: over all groups, misaligned answers are {said}.")
    return notes
