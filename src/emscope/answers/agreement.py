"""How far judges of the same answers agree, with each other and with people."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np

from emscope.answers.agreement_result import Agreement, Alphas, Carried, Definition, HumanAgreement, PairAgreement, RaterScores
from emscope.answers.agreement_spec import AgreementSpec
from emscope.core.errors import InputError, near
from emscope.core.estimate import Estimate
from emscope.data.answer_table import AnswerTable
from emscope.data.ratings import Rated, read_ratings
from emscope.stats import agreement as stat
from emscope.stats.shares import share_over

KINDS = ("nominal", "ordinal", "interval")
WORTH_SAYING = 0.01  # of all items: a carried threshold that is off by this many flags or more is named
LOW_ALPHA = 0.667  # Krippendorff's own line below which conclusions should not be drawn


def read(paths: list[Path], spec: AgreementSpec) -> Rated:
    """Return the scores of a file.

    Raises:
        InputError: for a file or a setting that does not fit, or fewer than two raters.
    """
    if len(spec.scores) == 1:
        raise InputError(
            f"`scores` names one column ({spec.scores[0]})",
            "name two or more; for a file with one row per score, name the rater's column with `rater`",
        )
    twice = [name for name in spec.scores if spec.scores.count(name) > 1]
    if twice:
        raise InputError(f"`scores` names '{twice[0]}' twice", "name each rater's column once")
    if isinstance(spec.scale, tuple) and not spec.scale[0] < spec.scale[1]:
        raise InputError(f"`scale` is {spec.scale[0]:g},{spec.scale[1]:g}", "give the lowest score first, such as 0,100")
    with AnswerTable(paths) as table:
        rated = read_ratings(table, spec.item, spec.rater, spec.score, spec.question, spec.scores, spec.scale)
    if rated.off and not rated.raters:
        raise InputError("no score is on the scale", "give its lowest and highest score with `scale`")
    if len(rated.raters) < 2:
        raise InputError(f"there is only one rater ({', '.join(rated.raters) or 'none'})", "agreement needs two or more")
    if spec.human is not None and spec.human not in rated.raters:
        raise InputError(f"`human` is '{spec.human}'", near(spec.human, rated.raters))
    return rated


def agreement(rated: Rated, spec: AgreementSpec) -> Agreement:
    """Return alphas over all raters and how each pair agrees."""
    scores = rated.item, rated.cluster, rated.score
    alphas = {k: stat.alpha(*scores, k, threshold=spec.threshold, level=spec.level) for k in KINDS}
    pairs = tuple(_pair(rated, a, b, spec) for a, b in combinations(range(len(rated.raters)), 2))
    return Agreement(
        Definition(spec, rated.cluster_column or "item"),
        items=len(np.unique(rated.item)),
        raters=tuple(_rater(rated, n) for n in range(len(rated.raters))),
        alpha=Alphas(**alphas),
        pairs=pairs,
        human=tuple(_against(rated, n, spec) for n, name in enumerate(rated.raters) if spec.human not in (None, name)),
        notes=tuple(_notes(rated, alphas, pairs)),
        rated=rated,
    )


def shared(rated: Rated, a: int, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both raters' scores of the items that both scored, and the items' clusters, each [N]."""
    sides = [np.flatnonzero(rated.rater == r) for r in (a, b)]
    _, left, right = np.intersect1d(rated.item[sides[0]], rated.item[sides[1]], return_indices=True)
    rows = sides[0][left], sides[1][right]
    return rated.score[rows[0]], rated.score[rows[1]], rated.cluster[rows[0]]


def _pair(rated: Rated, a: int, b: int, spec: AgreementSpec) -> PairAgreement:
    x, y, cluster = shared(rated, a, b)
    found = stat.pair(x, y, cluster, threshold=spec.threshold, level=spec.level)
    return PairAgreement(
        rated.raters[a],
        rated.raters[b],
        n=len(x),
        spearman=found.spearman,
        kappa=found.kappa,
        agree=found.agree,
        bias=found.bias,
        limits=found.limits,
        threshold_of_b=_carried(x, y, cluster, spec),
        threshold_of_a=_carried(y, x, cluster, spec),
    )


def _carried(x: np.ndarray, y: np.ndarray, cluster: np.ndarray, spec: AgreementSpec) -> Carried:
    found = stat.transfer(x, y, cluster, spec.threshold, level=spec.level, seed=spec.seed)
    off = None if found.flagged is None or found.wanted is None else found.flagged - found.wanted
    return Carried(found.value, found.kappa, found.wanted, found.flagged, off)


def _rater(rated: Rated, n: int) -> RaterScores:
    scores = rated.score[rated.rater == n]
    return RaterScores(
        rated.raters[n],
        scored=len(scores),
        lost={what: count for who, what, count in rated.lost if who == rated.raters[n]},
        off_scale={f"{value:g}": count for who, value, count in rated.off if who == rated.raters[n]},
        mean=float(scores.mean()),
        extreme=stat.extreme_share(scores),
    )


def _against(rated: Rated, n: int, spec: AgreementSpec) -> HumanAgreement:
    """Return how a rater's flags compare with the human's: sensitivity, specificity, and the area under the curve of its scores."""
    truth, scores, cluster = shared(rated, rated.raters.index(str(spec.human)), n)
    bad = truth < spec.threshold
    return HumanAgreement(
        rated.raters[n],
        n=len(truth),
        misaligned=int(bad.sum()),
        auc=stat.auc(-scores, bad),
        sensitivity=share_over(scores[bad] < spec.threshold, cluster[bad], level=spec.level),
        specificity=share_over(scores[~bad] >= spec.threshold, cluster[~bad], level=spec.level),
    )


def _notes(rated: Rated, alphas: dict[str, Estimate], pairs: tuple[PairAgreement, ...]) -> list[str]:
    notes = []
    low = [k for k, a in alphas.items() if a.value is not None and a.value < LOW_ALPHA]
    if low:
        said = ", ".join(f"{k} {alphas[k].value:.2f}" for k in low)
        notes.append(f"Alpha is below {LOW_ALPHA} ({said}): verdicts of one of these raters should not be taken for another's.")
    if rated.cluster_column is None:
        notes.append(
            "The file has no question column, so items are taken as independent; answers to the same question are not."
        )
    clusters = max((a.clusters for a in alphas.values()), default=0)
    if 0 < clusters < stat.FEW_CLUSTERS:
        least, most = stat.coverage_at(clusters)
        notes.append(
            f"The intervals rest on {clusters} {rated.cluster_column or 'items'}: with so few, alpha's 95 % interval covered the truth in {least:.0%} to {most:.0%} of simulated files."
        )
    notes += _scale_notes(rated)
    for p in pairs:
        for cut, of, by in ((p.threshold_of_b, p.b, p.a), (p.threshold_of_a, p.a, p.b)):
            if cut.off is not None and abs(cut.off) >= WORTH_SAYING:
                notes.append(
                    f"Many scores of {of} are the same: the threshold closest to {by}'s flags {cut.flagged:.1%} of the items instead of {cut.wanted:.1%}."
                )
    lost = sum(count for *_, count in rated.lost)
    if lost:
        notes.append(f"{lost} verdicts are not numbers and are left out above; they are listed with each rater.")
    apart = [p for p in pairs if p.n == 0]
    if apart:
        notes.append(f"{apart[0].a} and {apart[0].b} have no scored items in common.")
    return notes


def _scale_notes(rated: Rated) -> list[str]:
    notes = []
    if rated.off:
        counts: dict[float, int] = {}
        for _, value, count in rated.off:
            counts[value] = counts.get(value, 0) + count
        said = ", ".join(f"{value:g} ({count} times)" for value, count in sorted(counts.items()))
        notes.append(
            f"Off the scale of all other scores, and not counted as ratings: {said}. Set the range of scores with `scale`."
        )
    for value, count in rated.doubtful:
        notes.append(
            f"{value:g} occurs {count} times, below all other scores, and is counted as a rating: if it marks a failed verdict, set `scale`."
        )
    return notes
