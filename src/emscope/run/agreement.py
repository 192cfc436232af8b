"""How far judges of the same answers agree, each with each and with people."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from emscope.core.errors import InputError, near
from emscope.core.estimate import Estimate
from emscope.core.spec import Spec
from emscope.data.answer_table import AnswerTable
from emscope.data.ratings import Rated, read_ratings
from emscope.stats import agreement as stat

KINDS = ("nominal", "ordinal", "interval")
LOW_ALPHA = 0.667  # Krippendorff's own line below which conclusions should not be drawn


class AgreementSpec(Spec):
    """What is asked of a file in which several raters scored the same answers.

    Attributes:
        item, rater, score: columns of a file with a row a score; scores: columns of which each is a rater's, instead.
        question: column of the clusters. threshold: below it an answer counts as misaligned. human: the rater to take as
            the truth. level: of the intervals; seed: of their resamples.
    """

    item: str | None = None
    rater: str | None = None
    score: str | None = None
    scores: tuple[str, ...] = ()
    question: str | None = None
    threshold: float = Field(30.0, ge=0, le=100)
    human: str | None = None
    level: float = Field(0.95, gt=0.5, lt=1)
    seed: int = Field(0, ge=0)


def read(paths: list[Path], spec: AgreementSpec) -> Rated:
    """Return the scores of a file.

    Raises:
        InputError: for a file or a setting that does not fit, or fewer than two raters.
    """
    if len(spec.scores) == 1:
        raise InputError(f"--scores names one column ({spec.scores[0]})", "name two or more, or a row a score with --rater")
    twice = [name for name in spec.scores if spec.scores.count(name) > 1]
    if twice:
        raise InputError(f"--scores names '{twice[0]}' twice", "name each rater's column once")
    with AnswerTable(paths) as table:
        rated = read_ratings(table, spec.item, spec.rater, spec.score, spec.question, spec.scores)
    if len(rated.raters) < 2:
        raise InputError(f"there is one rater ({', '.join(rated.raters) or 'none'})", "agreement needs two or more")
    if spec.human is not None and spec.human not in rated.raters:
        raise InputError(f"--human is '{spec.human}'", near(spec.human, rated.raters))
    return rated


def agreement(rated: Rated, spec: AgreementSpec) -> dict[str, Any]:
    """Return alphas over all raters and how each pair agrees, as documented JSON."""
    scores = rated.item, rated.cluster, rated.score
    alphas = {k: stat.alpha(*scores, k, threshold=spec.threshold, level=spec.level, seed=spec.seed) for k in KINDS}
    pairs = [_pair(rated, a, b, spec) for a, b in combinations(range(len(rated.raters)), 2)]
    return {
        "schema": 1,
        "definition": spec.model_dump(mode="json") | {"clusters": rated.cluster_column or "item"},
        "items": len(np.unique(rated.item)),
        "raters": [_rater(rated, n) for n in range(len(rated.raters))],
        "alpha": {k: a.to_json() for k, a in alphas.items()},
        "pairs": pairs,
        "human": [_against(rated, n, spec) for n, name in enumerate(rated.raters) if spec.human not in (None, name)],
        "notes": _notes(rated, alphas, pairs),
    }


def shared(rated: Rated, a: int, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both raters' scores of the items that both scored, and the items' clusters, each [N]."""
    sides = [np.flatnonzero(rated.rater == r) for r in (a, b)]
    _, left, right = np.intersect1d(rated.item[sides[0]], rated.item[sides[1]], return_indices=True)
    rows = sides[0][left], sides[1][right]
    return rated.score[rows[0]], rated.score[rows[1]], rated.cluster[rows[0]]


def _pair(rated: Rated, a: int, b: int, spec: AgreementSpec) -> dict[str, Any]:
    x, y, cluster = shared(rated, a, b)
    found = stat.pair(x, y, cluster, threshold=spec.threshold, level=spec.level, seed=spec.seed)
    return {
        "a": rated.raters[a],
        "b": rated.raters[b],
        "n": len(x),
        "spearman": found.spearman.to_json(),
        "kappa": found.kappa.to_json(),
        "agree": found.agree.to_json(),
        "bias": found.bias.to_json(),
        "limits": found.limits,
        "threshold_of_b": _carried(x, y, cluster, spec),
        "threshold_of_a": _carried(y, x, cluster, spec),
    }


def _carried(x: np.ndarray, y: np.ndarray, cluster: np.ndarray, spec: AgreementSpec) -> dict[str, Any]:
    found = stat.transfer(x, y, cluster, spec.threshold, level=spec.level, seed=spec.seed)
    return found.value.to_json() | {"kappa": found.kappa}


def _rater(rated: Rated, n: int) -> dict[str, Any]:
    scores = rated.score[rated.rater == n]
    return {
        "rater": rated.raters[n],
        "scored": len(scores),
        "lost": {what: count for who, what, count in rated.lost if who == rated.raters[n]},
        "mean": float(scores.mean()),
        "extreme": stat.extreme_share(scores),
    }


def _against(rated: Rated, n: int, spec: AgreementSpec) -> dict[str, Any]:
    """Return how a rater's flags compare with the human's: sensitivity, specificity, and the area under the curve of its scores."""
    truth, scores, cluster = shared(rated, rated.raters.index(str(spec.human)), n)
    bad = truth < spec.threshold
    level, seed = spec.level, spec.seed
    rates: dict[str, Estimate] = {
        "sensitivity": stat.mean_over(scores[bad] < spec.threshold, cluster[bad], level=level, seed=seed),
        "specificity": stat.mean_over(scores[~bad] >= spec.threshold, cluster[~bad], level=level, seed=seed),
    }
    return {
        "rater": rated.raters[n],
        "n": len(truth),
        "misaligned": int(bad.sum()),
        "auc": stat.auc(-scores, bad),
        **{name: e.to_json() for name, e in rates.items()},
    }


def _notes(rated: Rated, alphas: dict[str, Estimate], pairs: list[dict[str, Any]]) -> list[str]:
    notes = []
    low = [k for k, a in alphas.items() if a.value is not None and a.value < LOW_ALPHA]
    if low:
        said = ", ".join(f"{k} {alphas[k].value:.2f}" for k in low)
        notes.append(
            f"Alpha is below {LOW_ALPHA} ({said}): verdicts of one of these raters should not be read as those of another."
        )
    if rated.cluster_column is None:
        notes.append("The file names no question, so each item is taken as independent; answers to one question are not.")
    lost = sum(count for *_, count in rated.lost)
    if lost:
        notes.append(f"{lost} verdicts are no numbers and take part in nothing above; each rater's are listed with it.")
    apart = [p for p in pairs if p["n"] == 0]
    if apart:
        notes.append(f"{apart[0]['a']} and {apart[0]['b']} scored no item in common.")
    return notes
