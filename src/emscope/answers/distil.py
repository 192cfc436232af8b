"""A cheap proxy fitted on a reference judge's verdicts, with its held-out agreement, and its score of every answer in the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emscope.answers.distil_result import CalibrationBin, Definition, Distilled, HeldOut, Part
from emscope.answers.distil_spec import DistilSpec
from emscope.answers.predicted_rates import drawn_column
from emscope.core.errors import InputError
from emscope.core.numbering import numbered
from emscope.core.progress import Progress, silent
from emscope.core.seeds import derive
from emscope.data.answer_table import AnswerTable
from emscope.data.answers import Columns, Thresholds, answer_columns, check_scores, text_columns
from emscope.data.drawn import verdict_rows
from emscope.judging import distilled
from emscope.stats import agreement
from emscope.stats.rates import share
from emscope.store.files import write_atomic

TARGETS = ("predicted", "predicted_coherent")
FEWEST, FEWEST_OF_A_KIND = 50, 10
FOLDS, BINS, BATCH = 5, 10, 20_000
FEWEST_SHOWN = 20
SPLIT, LENGTH = "held out", "answer"
ENOUGH = 8000  # verdicts to choose the penalty on


@dataclass(frozen=True, slots=True)
class Labelled:
    """Judged answers: texts [N], labels [N, 2] (misaligned; coherent), what is held out together [N], groups [N] by column."""

    rows: np.ndarray
    questions: list[str]
    answers: list[str]
    labels: np.ndarray
    split: list[str]
    groups: dict[str, list[str]]


def distil(paths: Sequence[Path], spec: DistilSpec, out: Path, *, progress: Progress = silent) -> Distilled:
    """Fit a classifier on the judged answers of a file; write it, `predicted.parquet`, and how far it can be trusted.

    `predicted` is the probability that the judge would call an answer misaligned. Those that have a verdict get it from a model
    that did not see them, drawn at random, so that a prediction-powered rate from the column is unbiased. (cross-prediction,
    Zrnic and Candès 2024)

    Raises:
        InputError: columns that do not fit, or too few verdicts of either kind.
    """
    with AnswerTable(paths) as table:
        columns, texts = _columns(table, spec), _texts(table, spec.question, spec.answer)
        drawn = drawn_column(table, spec.drawn)
        split = spec.split or texts[0]
        progress("reading the verdicts", 0, 1)
        mine = _labelled(table, spec, columns, texts, split, drawn)
        _check(mine, table)
        found = distilled.counts(mine.questions, mine.answers)
        idf = distilled.rarity(found)
        x = distilled.weighted(found, idf)
        folds = _folds(mine.split, spec.seed)
        progress("choosing the penalty", 1, 5)
        some = np.random.default_rng(derive(spec.seed, "penalty")).permutation(len(mine.rows))[:ENOUGH]
        apart = folds[some] if len(set(folds[some])) > 1 else np.arange(len(some)) % FOLDS
        penalty = distilled.best_penalty(x[some], mine.labels[some], apart)
        progress("held-out agreement", 2, 5)
        held, _ = distilled.out_of_fold(x, mine.labels, folds, penalty)
        shuffled = np.random.default_rng(derive(spec.seed, "folds")).permutation(len(mine.rows)) % FOLDS
        crossed, models = distilled.out_of_fold(x, mine.labels, shuffled, penalty)
        progress("fitting on all verdicts", 3, 5)
        about = _definition(spec, columns, split, drawn, paths)
        weights, intercepts = distilled.fit(x, mine.labels, penalty)
        final = distilled.Distilled(TARGETS, idf, weights, intercepts, about.to_json())
        out.mkdir(parents=True, exist_ok=True)
        distilled.save(final, out)
        progress("scoring all answers", 4, 5)
        known = dict(zip(mine.rows.tolist(), crossed, strict=True))
        path = out / "predicted.parquet"
        every = [distilled.Distilled(TARGETS, idf, w, b, {}) for w, b in models]
        write_atomic(path, lambda temporary: _write(table, texts, every, known, temporary))
        progress("scoring all answers", 5, 5)
    return Distilled(
        replace(about, penalty=penalty),
        verdicts=len(mine.rows),
        misaligned=int(mine.labels[:, 0].sum()),
        held_out=_agreement(mine, held[:, 0], folds),
        calibration=_calibration(mine.labels[:, 0], held[:, 0]),
        fails=_failures(mine, held[:, 0]),
        predicted=str(path),
        judge=str(out),
    )


def predict(paths: Sequence[Path], judge: Path, out: Path, *, question: str | None = None, answer: str | None = None) -> Path:
    """Write a file's rows with the scores of a distilled judge; return where.

    Raises:
        InputError: no such judge, or a file that does not fit.
    """
    model = distilled.open_distilled(judge)
    if out.resolve() == judge.resolve():
        raise InputError(f"'{out}' holds the judge, and the scores of what it learned from", "choose another folder with `out`")
    if model.targets != TARGETS:
        raise InputError(f"the distilled judge in '{judge}' predicts {', '.join(model.targets)}", "distil it again")
    with AnswerTable(paths) as table:
        texts = _texts(table, question, answer)
        path = out / "predicted.parquet"
        write_atomic(path, lambda temporary: _write(table, texts, [model], {}, temporary))
    return path


def _texts(table: AnswerTable, question: str | None, answer: str | None) -> tuple[str, str]:
    texts = text_columns(table, question, answer)
    table.hold_text(*texts)
    taken = next((name for name in texts if name.lower() in TARGETS), None)
    if taken is not None:
        raise InputError(f"the scores would overwrite column '{taken}'", "rename it")
    return texts


def _columns(table: AnswerTable, spec: DistilSpec) -> Columns:
    table.named(spec.split, *spec.group)
    columns = answer_columns(table, aligned=spec.aligned, coherent=spec.coherent, need_coherent=spec.coherent_above is not None)
    check_scores(table, columns, spec.scale or "0-100", said=spec.scale is not None)
    return columns


def _labelled(
    table: AnswerTable, spec: DistilSpec, columns: Columns, texts: tuple[str, str], split: str, drawn: str | None
) -> Labelled:
    """Return the rows with a verdict (and drawn, where the file says so), numbered in the file's order."""
    thresholds = Thresholds(spec.aligned_below, spec.coherent_above)
    groups = list(dict.fromkeys(spec.group))
    rows = verdict_rows(table, columns, thresholds, spec.scale or "0-100", [*texts, split, *groups], drawn)
    return Labelled(
        np.array([r[0] for r in rows], int),
        [r[3] or "" for r in rows],
        [r[4] or "" for r in rows],
        np.array([[r[1], r[2]] for r in rows], float).reshape(len(rows), 2),
        [str(r[5]) for r in rows],
        {name: [str(r[6 + k]) for r in rows] for k, name in enumerate(groups)},
    )


def _check(mine: Labelled, table: AnswerTable) -> None:
    n, hits = len(mine.rows), int(mine.labels[:, 0].sum()) if len(mine.rows) else 0
    if n < FEWEST or min(hits, n - hits) < FEWEST_OF_A_KIND:
        raise InputError(
            f"'{table.where}' holds {n} verdicts, {hits} of them misaligned",
            f"distilling needs {FEWEST} or more, {FEWEST_OF_A_KIND} of each kind",
        )
    if len(set(mine.split)) < 2:
        raise InputError("all verdicts have the same value in the column to split by", "name another with `split`")


def _folds(split: Sequence[str], seed: int) -> np.ndarray:
    """Return the fold of each answer [N], values of the split kept together, the largest spread first."""
    names, place = numbered(split)
    sizes = np.bincount(place)
    order = np.random.default_rng(derive(seed, "split")).permutation(len(names))
    fold, load = np.zeros(len(names), int), np.zeros(min(FOLDS, len(names)), int)
    for name in order[np.argsort(-sizes[order], kind="stable")]:
        fold[name] = int(load.argmin())
        load[fold[name]] += sizes[name]
    return fold[place]


def _definition(spec: DistilSpec, columns: Columns, split: str, drawn: str | None, paths: Sequence[Path]) -> Definition:
    return Definition(
        aligned_below=spec.aligned_below,
        coherent_above=spec.coherent_above,
        aligned=columns.aligned,
        coherent=columns.coherent,
        split=split,
        drawn=drawn,
        seed=spec.seed,
        files=tuple(p.name for p in paths),
    )


def _agreement(mine: Labelled, held: np.ndarray, folds: np.ndarray) -> HeldOut:
    """Return how well held-out probabilities [N] rank and place the judge's verdicts; `folds` [N]."""
    y = mine.labels[:, 0] > 0
    cluster = numbered(mine.split)[1]
    cut = agreement.nearest_cut(-held, float(y.mean()))  # flags as many as the judge, as far as ties allow
    flagged = held > -cut.threshold if cut else np.zeros(len(y), bool)
    both = agreement.pair(1.0 - y, 1.0 - flagged, cluster, threshold=0.5)
    return HeldOut(
        folds=int(folds.max()) + 1,
        auc=agreement.auc_estimate(held, y, cluster),
        kappa=both.kappa,
        cut=-cut.threshold if cut else None,
        wanted=float(y.mean()),
        flagged=float(flagged.mean()),
        correlation=float(np.corrcoef(y, held)[0, 1]) if held.std() > 0 else 0.0,
        brier=float(((held - y) ** 2).mean()),
        brier_of_the_rate_alone=float(y.mean() * (1 - y.mean())),
    )


def _calibration(y: np.ndarray, held: np.ndarray) -> tuple[CalibrationBin, ...]:
    """Return, for answers of like probability `held` [N], the mean predicted beside the share found among the verdicts `y` [N]."""
    order = np.argsort(held, kind="stable")
    parts = np.array_split(order, min(BINS, len(order)))
    return tuple(CalibrationBin(float(held[part].mean()), share(y[part] > 0)) for part in parts)


def _failures(mine: Labelled, held: np.ndarray) -> tuple[Part, ...]:
    """Return where the predicted share, of probabilities [N], is furthest from the one found, in standard errors."""
    lengths = np.array([len(a) for a in mine.answers])
    edges = np.quantile(lengths, [0.2, 0.4, 0.6, 0.8])
    fifths = [f"fifth {k + 1}" for k in np.searchsorted(edges, lengths)]
    found = []
    for column, values in {f"{SPLIT} (split)": mine.split, f"{LENGTH} (length)": fifths, **mine.groups}.items():
        names, place = numbered(values)
        for n, name in enumerate(names):
            part = place == n
            if part.sum() < FEWEST_SHOWN:
                continue
            y, p = mine.labels[part, 0], held[part]
            se = float(np.sqrt((p * (1 - p)).mean() / part.sum()))
            found.append(
                Part(
                    column,
                    name,
                    verdicts=int(part.sum()),
                    predicted=float(p.mean()),
                    found=float(y.mean()),
                    auc=agreement.auc(p, y > 0),
                    off=float((p.mean() - y.mean()) / max(se, 1e-9)),
                )
            )
    return tuple(sorted(found, key=lambda f: -abs(f.off)))


def _write(
    table: AnswerTable, texts: tuple[str, str], models: Sequence[distilled.Distilled], known: dict[int, np.ndarray], path: Path
) -> None:
    """Write the file's rows with both probabilities [2]: those known by row, for all others the models' mean."""
    writer, start = None, 0
    kept = [n for n in table.names if n.lower() not in TARGETS]
    for batch in table.batches(kept, BATCH):
        values = _mean(models, *([str(v or "") for v in batch.column(c).to_pylist()] for c in texts))
        for n in range(batch.num_rows):
            if start + n in known:
                values[n] = known[start + n]
        for k, name in enumerate(TARGETS):
            batch = batch.append_column(name, pa.array(values[:, k], pa.float64()))
        writer = writer or pq.ParquetWriter(path, batch.schema)
        writer.write_table(batch)
        start += batch.num_rows
    if writer is not None:
        writer.close()


def _mean(models: Sequence[distilled.Distilled], questions: list[str], answers: list[str]) -> np.ndarray:
    """Return the mean of the models' probabilities [N, 2]."""
    x = distilled.weighted(distilled.counts(questions, answers), models[0].idf)
    return np.mean([distilled.probabilities(x, m.weights, m.intercepts) for m in models], axis=0)
