"""Rates of groups whose answers are all judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable
from emscope.data.answers import Columns, Counts, Thresholds, count_answers
from emscope.run.rates_spec import Label, RatesSpec, families, rest
from emscope.stats import clustered
from emscope.stats.clustered import Rate, Resamples
from emscope.stats.means import mean_estimate

LENGTH_BINS = 10
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


def counted_rates(table: AnswerTable, columns: Columns, thresholds: Thresholds, scale: str, spec: RatesSpec) -> dict[str, Any]:
    """Return groups, contrasts and notes of a table of judged answers, as `rates` documents them.

    Raises:
        InputError: too many questions to resample, or a control that does not fit.
    """
    counts = count_answers(table, columns, thresholds, scale, LENGTH_BINS if spec.match_length else 0)
    groups = [_group(counts, n, columns) for n in range(len(counts.groups))]
    if spec.resamples * counts.questions > clustered.MOST_WEIGHTS:
        raise InputError(
            f"{spec.resamples} resamples of {counts.questions} questions take too much memory",
            "take fewer, or leave out --resamples: the closed form serves here",
        )
    resamples = Resamples(spec.resamples, spec.seed) if spec.resamples else None
    found = [_rate(spec, g.questions, g.rows, g.scored, g.coherent, g.hits) for g in groups]
    return {
        "questions": counts.questions,
        "groups": [_row(g, r, spec, resamples) for g, r in zip(groups, found, strict=True)],
        "contrasts": list(_contrasts(groups, found, counts, spec, resamples)),
        "notes": _notes(spec, columns, groups, found, counts),
    }


def _group(counts: Counts, index: int, columns: Columns) -> Group:
    cells = counts.of(index)
    questions, place = np.unique(counts.question[cells], return_inverse=True)

    def total(values: np.ndarray) -> np.ndarray:
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


def _row(group: Group, found: Rate | None, spec: RatesSpec, resamples: Resamples | None) -> dict[str, Any]:
    estimate = clustered.rate_estimate(found, level=spec.level)
    if resamples is not None:
        estimate = resamples.estimate(found, level=spec.level)
    counts = (group.questions, group.rows, group.scored, group.coherent, group.hits)
    ends = [_rate(spec, *counts, missing=policy) for policy in ("aligned", "misaligned")]
    return {
        "group": group.label,
        "rate": estimate.to_json(),
        "misaligned": int(group.hits.sum()),
        "rows": int(group.rows.sum()),
        "scored": int(group.scored.sum()),
        "coherent": int(group.coherent.sum()),
        "outcomes": group.outcomes,
        "bounds": [end.value if end else None for end in ends],
        "aligned": _mean_score(group.aligned, group.scored, spec),
        "coherence": _mean_score(group.coherence, group.scored, spec) if spec.coherent_above is not None else None,
    }


def _mean_score(sums: np.ndarray, scored: np.ndarray, spec: RatesSpec) -> float | None:
    """Return the mean score over answers or, macro, over questions."""
    kept = scored > 0
    if not kept.any():
        return None
    return float((sums[kept] / scored[kept]).mean() if spec.average == "macro" else sums.sum() / scored.sum())


def _contrasts(
    groups: list[Group], found: list[Rate | None], counts: Counts, spec: RatesSpec, resamples: Resamples | None
) -> Iterator[dict[str, Any]]:
    """Yield the compared pairs, corrected within each family."""
    if spec.control is None and spec.within is None:
        return
    for family, pairs in families([g.label for g in groups], spec):
        compared = [
            resamples.contrast(found[a], found[b], level=spec.level)
            if resamples is not None
            else clustered.contrast(found[a], found[b], level=spec.level)
            for a, b in pairs
        ]
        adjusted = clustered.holm([c.p for c in compared])
        for (a, b), c, p in zip(pairs, compared, adjusted, strict=True):
            yield {
                "within": family,
                "a": rest(groups[a].label, family),
                "b": rest(groups[b].label, family),
                "difference": c.difference.to_json(),
                "p": c.p,
                "p_adjusted": p,
                "p1": _p1(groups[a], groups[b], spec),
                "matched": _matched(groups[a], groups[b], counts, spec) if spec.match_length else None,
            }


def _p1(a: Group, b: Group, spec: RatesSpec) -> dict[str, Any]:
    """Return the mean over shared questions of a's misalignment less b's, 0 (aligned) to 10. (P1, section 3)"""
    if np.array_equal(a.questions, b.questions):
        left = right = np.arange(len(a.questions))
    else:
        _, left, right = np.intersect1d(a.questions, b.questions, return_indices=True)
    kept = (a.scored[left] > 0) & (b.scored[right] > 0)
    left, right = left[kept], right[kept]
    means = a.aligned[left] / a.scored[left], b.aligned[right] / b.scored[right]
    return mean_estimate((means[1] - means[0]) / 10, level=spec.level).to_json()


def _matched(a: Group, b: Group, counts: Counts, spec: RatesSpec) -> dict[str, Any]:
    """Return a - b with both sides' answers weighted to one distribution of lengths: that of both together.

    Lengths that only one side has are left out; `share` says how many of the answers remain. (direct standardisation)
    """
    bins = int(counts.bin.max()) + 1
    which = {"coherent": counts.coherent, "scored": counts.scored, "all": counts.rows}[spec.denominator]
    sizes = [np.bincount(counts.bin[g.cells], weights=which[g.cells], minlength=bins) for g in (a, b)]
    both = (sizes[0] > 0) & (sizes[1] > 0)
    target = np.where(both, sizes[0] + sizes[1], 0.0)
    if not both.any():
        return clustered.contrast(None, None, level=spec.level).difference.to_json() | {"share": 0.0}
    sides = []
    for group, size in zip((a, b), sizes, strict=True):
        weight = np.divide(target, size, out=np.zeros(bins), where=both) * size[both].sum() / target.sum()
        sides.append(_weighted(group, counts, spec, weight))
    share = float(sum(s[both].sum() for s in sizes) / sum(s.sum() for s in sizes))
    return clustered.contrast(*sides, level=spec.level).difference.to_json() | {"share": share}


def _weighted(group: Group, counts: Counts, spec: RatesSpec, weight: np.ndarray) -> Rate | None:
    w = weight[counts.bin[group.cells]]
    place = np.searchsorted(group.questions, counts.question[group.cells])

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, weights=values[group.cells] * w, minlength=len(group.questions))

    return _rate(spec, group.questions, *(total(v) for v in (counts.rows, counts.scored, counts.coherent, counts.hits)))


def _notes(spec: RatesSpec, columns: Columns, groups: list[Group], found: list[Rate | None], counts: Counts) -> list[str]:
    """Return what a reader must know before quoting a number."""
    notes = []
    if columns.question is None:
        notes.append(
            "The file names no question, so that its answers count as one: no interval. Say which column with --question."
        )
    sizes = [len(r.questions) for r in found if r is not None]
    few = min(sizes, default=0)
    known = clustered.coverage_at(few, resampled=bool(spec.resamples)) if few >= 2 else None
    if known:
        notes.append(
            f"With {few} questions a 95 % interval of this kind held the true rate in {known[0]:.0%} to {known[1]:.0%} of simulated "
            f"cases; {'the closed form, without --resamples, holds it more often' if spec.resamples else 'more questions, not more answers, make it surer'}."
        )
    lost = sum(int((g.rows - g.scored).sum()) for g in groups)
    if lost:
        kinds: dict[str, int] = {}
        for group in groups:
            for name, count in group.outcomes.items():
                kinds[name] = kinds.get(name, 0) + count
        said = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items(), key=lambda k: -k[1]))
        notes.append(
            f"{lost} of {int(counts.rows.sum())} answers have no score ({said}); `bounds` says what they could change."
        )
    rows, scored, coherent, hits = (float(v.sum()) for v in (counts.rows, counts.scored, counts.coherent, counts.hits))
    shares = {"coherent": coherent, "scored": scored, "all": rows}
    values = {name: hits / size for name, size in shares.items() if size}
    if values and max(values.values()) - min(values.values()) > LIKE_EM:
        said = ", ".join(f"{value:.1%} of {name}" for name, value in values.items())
        notes.append(f"The denominator matters here: over all groups, misaligned answers are {said}.")
    return notes
