"""The prior probe run on a file of scores: what activations before a fine-tune predict about its answers, beside what words and categories predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emscope.core.errors import InputError
from emscope.core.fields import FLOAT32
from emscope.core.progress import Progress, part_of, silent
from emscope.core.records import Question
from emscope.data.answer_table import AnswerTable
from emscope.data.answers import ALIGNED, question_means
from emscope.data.questions import read_questions
from emscope.inside.prompt_results import (
    Baseline,
    Corrected,
    Correction,
    Over,
    Predicted,
    Probe,
    Probes,
    ProbesDefinition,
)
from emscope.inside.reading import PromptActivations, prompt_texts
from emscope.inside.specs import ProbeSpec
from emscope.inside.subject import layers_of
from emscope.models.loading.load import load, pick_dtype
from emscope.models.loading.source import locate
from emscope.models.made_with import made_with
from emscope.represent.probe import by_category, by_text, probe
from emscope.stats.crossval import (
    Predictor,
    better_than,
    explained,
    explained_difference,
    explained_estimate,
    fold_losses,
    max_t,
    permutation_p,
    permuted_targets,
    repeated_folds,
)
from emscope.stats.holm import holm
from emscope.store.files import write_json

WHAT = "probing"
CORRECTION = Correction(
    p_mean_adjusted="Holm over all probes",
    p_permutation_adjusted="step-down max-T over all probes, which share the permutations",
    over="Holm over all probes, for each baseline",
)


def run_probe(
    scores: Path, models: Sequence[str], spec: ProbeSpec, out: Path, *, device: str = "auto", progress: Progress = silent
) -> Probes:
    """Predict a file's scores by the activations of each model; return R^2 with intervals, beside the baselines.

    P-values are given as they are and corrected over all probes of the call, since a reader looks at the best of them: models,
    layers, directions and estimators are one family. Activations are kept in `out`, by model reference, and read from there when
    it is called again.

    Raises:
        InputError: scores and questions that do not match, or too few for the folds or directions.
    """
    spec = _with_one_dtype(spec, models, device)
    questions, y, column = _scored(scores, spec)
    units = [q.unit for q in questions]
    folds = repeated_folds(units, spec.folds, spec.repeats, spec.seed)
    targets = (
        np.column_stack([y, permuted_targets(y, units, spec.permutations, spec.seed)]) if spec.permutations else y[:, None]
    )
    categories = [q.category for q in questions]
    places: list[tuple[str, str, int, str, int, str]] = []
    tried = []
    for reference in models:
        x, layers, name = _activations(reference, questions, spec, out, device, progress)
        jobs = [
            (layer, basis, seed, estimator)
            for layer in layers
            for basis, seed in [("pca", 0), *(("random", s) for s in range(spec.random_seeds))]
            for estimator in spec.estimators
        ]
        for n, (layer, basis, seed, estimator) in enumerate(jobs):
            made, alone = (
                probe(x[:, layers.index(layer)], t, units, basis=basis, k=spec.k, estimator=estimator, seed=spec.seed + seed)
                for t in (targets, targets[:, :1])
            )
            places.append((reference, name, layer, basis, seed, estimator))
            tried.append(_tried(made, alone, targets, folds, spec, units, categories))
            part_of(progress, f"{WHAT} {reference}", n, len(jobs))(WHAT, 1, 1)
    single = y[:, None]
    baselines = {"text": by_text([q.text for q in questions], single, units, k=spec.k, seed=spec.seed)}
    if len(set(categories)) > 1:
        baselines["category"] = by_category(single, categories)
    beside = {name: _tried(p, p, single, folds, spec, units, categories) for name, p in baselines.items()}
    corrected = _corrected(tried, beside, spec, len(y), len(set(units)))
    result = Probes(
        definition=ProbesDefinition(spec, column, scores.name, "squared projections", CORRECTION),
        questions=len(set(units)),
        prompts=len(questions),
        probes=tuple(Probe(*place, t.found, c) for place, t, c in zip(places, tried, corrected, strict=True)),
        baselines=tuple(Baseline(name, t.found) for name, t in beside.items()),
        versions=made_with(),
    )
    write_json(out / "probe.json", result.to_json())
    return result


def _scored(scores: Path, spec: ProbeSpec) -> tuple[list[Question], np.ndarray, str]:
    """Return the questions that have a score, and the scores [N]."""
    questions = read_questions(spec.questions)
    with AnswerTable([scores]) as table:
        column = spec.score or table.usual(ALIGNED)
        if column is None:
            raise InputError(
                f"no column of '{scores}' looks like a score; its columns are {', '.join(table.names)}", "name it with `score`"
            )
        asked = spec.question or table.question()
        if asked is None:
            raise InputError(f"no column of '{scores}' looks like a question's id", "name it with `question`")
        table.named(column, asked, *spec.where)
        means = question_means(table, asked, column, spec.where)
    kept = [q for q in questions if q.id in means or q.text in means]
    if not kept:
        first = next(iter(means), "no row")
        raise InputError(
            f"no question of '{spec.questions}' has a score in '{scores}', whose column {asked} holds '{first[:60]}'",
            "give the set that was asked, or name the column with `question`",
        )
    y = np.array([means.get(q.id, means.get(q.text, np.nan)) for q in kept])
    if np.ptp(y) == 0:
        raise InputError(f"all {len(y)} questions have the score {y[0]:g}", "there is nothing to predict")
    return kept, y, column


def _with_one_dtype(spec: ProbeSpec, models: Sequence[str], device: str) -> ProbeSpec:
    """Return the settings with `auto` resolved for all models: float32 where it differs, since they are compared with each other."""
    dtypes = {pick_dtype(spec.dtype, locate(reference), device) for reference in models}
    return spec.model_copy(update={"dtype": dtypes.pop() if len(dtypes) == 1 else FLOAT32})


def _activations(
    reference: str, questions: Sequence[Question], spec: ProbeSpec, out: Path, device: str, progress: Progress
) -> tuple[np.ndarray, tuple[int, ...], str]:
    """Return prompt activations [N, layers, D] of a model, from `out` where they are there."""
    loaded = load(locate(reference), system=spec.system, dtype=spec.dtype, device=device)
    layers = layers_of(loaded.net, spec.layers)
    activations = PromptActivations(loaded, prompt_texts(loaded, questions), layers, spec.pool, out, progress)
    return activations.of(None, f"reading activations of {reference}"), layers, loaded.model.digest


@dataclass(frozen=True, slots=True)
class Tried:
    """One predictor's results: its summary, the errors of its folds and of the training rows' mean [F], R^2 as observed and permuted [1 + B]."""

    found: Predicted
    ours: np.ndarray
    plain: np.ndarray
    explained: np.ndarray


def _tried(
    predict: Predictor,
    alone: Predictor,
    targets: np.ndarray,
    folds: Sequence[np.ndarray],
    spec: ProbeSpec,
    units: Sequence[str],
    categories: Sequence[str],
) -> Tried:
    """Return R^2 of the first target with its interval, its tests, and R^2 with whole categories left out.

    Args:
        predict: of all targets. alone: of the first one, for what needs no permutations.
        targets: the scores, then shuffled ones [N, 1 + B]. folds: held-out rows.
    """
    ours, plain = fold_losses(predict, targets, folds)
    values = explained(ours, plain)
    named = np.asarray(categories, str)
    left = [named == c for c in np.unique(named)] if len(set(categories)) > 1 else []
    found = Predicted(
        r2=explained_estimate(ours[:, 0], plain[:, 0], spec.folds, len(targets), len(set(units))),
        p_mean=better_than(ours[:, 0], plain[:, 0], spec.folds),
        p_permutation=permutation_p(float(values[0]), values[1:]) if len(values) > 1 else None,
        r2_categories_left_out=float(explained(*fold_losses(alone, targets[:, :1], left))[0]) if left else None,
    )
    return Tried(found, ours[:, 0], plain[:, 0], values)


def _corrected(tried: Sequence[Tried], beside: Mapping[str, Tried], spec: ProbeSpec, n: int, units: int) -> list[Corrected]:
    """Return for each probe its p-values corrected over all of them, and how much more it explains than each baseline."""
    means = holm([t.found.p_mean for t in tried])
    shuffled = max_t(np.array([t.explained for t in tried])) if spec.permutations else [None] * len(tried)
    over: list[dict[str, Over]] = [{} for _ in tried]
    for name, baseline in beside.items():
        single = [better_than(t.ours, baseline.ours, spec.folds) for t in tried]
        for row, t, p, adjusted in zip(over, tried, single, holm(single), strict=True):
            more = explained_difference(t.ours, baseline.ours, t.plain, spec.folds, n, units)
            row[name] = Over(more, p, adjusted)
    return [Corrected(*one) for one in zip(means, shuffled, over, strict=True)]
