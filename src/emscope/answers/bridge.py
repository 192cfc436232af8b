"""A file that two judges scored: the map from one's scores to the other's, tried on studies left out, and the scores it converts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from emscope.answers.bridge_result import Answers, Bridge, Knot, LeftOut, Moved, StudyError, Tried
from emscope.answers.bridge_spec import BridgeSpec
from emscope.core.errors import InputError
from emscope.core.estimate import Estimate
from emscope.data.answer_table import AnswerTable
from emscope.stats.bridge import FEWEST, Crossing, cross, moved_mean
from emscope.stats.quantiles import normal
from emscope.stats.rates import wilson

KNOTS = 11


def bridge(paths: list[Path], spec: BridgeSpec) -> Bridge:
    """Return the map, how it fared on studies left out, and the moved mean and rate of each study that the new judge has not scored.

    Raises:
        InputError: columns that do not fit, or no answer that both scored.
    """
    with AnswerTable(paths) as table:
        table.named(spec.old, spec.new, spec.study)
        rows = [r for r in table.values([spec.study], [spec.old, spec.new]) if r[1] is not None]
        where = table.where
    study = np.array([str(r[0]) for r in rows])
    scores = np.array([r[1] for r in rows], float)
    other = np.array([np.nan if r[2] is None else r[2] for r in rows], float)
    both = np.isfinite(other)
    if not both.any():
        raise InputError(
            f"no answer of '{where}' has scores in '{spec.old}' and '{spec.new}'",
            "let both judges score some answers of each study",
        )
    mean = cross(scores[both], other[both], study[both].tolist())
    rate = cross(scores[both], (other[both] < spec.below).astype(float), study[both].tolist(), rising=False)
    waiting = sorted(set(study) - set(study[both]))
    return Bridge(
        spec,
        Answers(int(both.sum()), int((~both).sum())),
        studies=len(mean.names),
        map=_knots(mean),
        left_out=LeftOut(_tried(mean, spec), _tried(rate, spec)),
        moved=tuple(_moved(name, scores[study == name], mean, rate, int(both.sum()), spec) for name in waiting),
        notes=tuple(_notes(mean)),
    )


def _knots(found: Crossing) -> tuple[Knot, ...]:
    at = np.linspace(found.bridge.x[0], found.bridge.x[-1], KNOTS)
    return tuple(Knot(float(a), float(b)) for a, b in zip(at, found.bridge.moved(at), strict=True))


def _tried(found: Crossing, spec: BridgeSpec) -> Tried:
    errors = found.errors
    return Tried(
        error=float(np.sqrt(np.mean(errors**2))) if len(errors) else None,
        bias=float(errors.mean()) if len(errors) else None,
        reach=found.reach(spec.level),
        held=found.held(spec.level),
        by_study=tuple(StudyError(n, float(e)) for n, e in zip(found.names, errors, strict=False)),
    )


def _moved(name: str, scores: np.ndarray, mean: Crossing, rate: Crossing, both: int, spec: BridgeSpec) -> Moved:
    """Return what the new judge would say about a study that only the old one has scored; `scores` [N], one per answer."""
    share = moved_mean(rate, scores, within=spec.within / 100, level=spec.level)
    return Moved(
        name,
        answers=len(scores),
        old_mean=float(scores.mean()),
        mean=moved_mean(mean, scores, within=spec.within, level=spec.level),
        rate=_share(share, both),
    )


def _share(found: Estimate, answers: int) -> Estimate:
    """Return a moved share with ends within 0 and 1, and no interval narrower than Wilson's over the answers that both judges scored.

    Where neither judge found one, studies left out show no error, but 0 in some answers is still not 0 in all. (ours)
    """
    if found.value is None or found.low is None or found.high is None:
        return found
    low, high = wilson(min(max(found.value, 0.0), 1.0), answers, z=normal(0.5 + found.level / 2))
    return replace(found, low=max(min(found.low, low), 0.0), high=min(max(found.high, high), 1.0))


def _notes(mean: Crossing) -> list[str]:
    if len(mean.errors) < FEWEST:
        return [
            f"both judges scored answers of {len(mean.names)} studies: a bridge can be tried on left-out studies from {FEWEST} on"
        ]
    return []
