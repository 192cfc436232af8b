"""A small classifier trained on a judge's verdicts: cheap enough to score every answer, and only as good as shown.

Words and pairs of words of the answer and words of the question, hashed, weighted by rarity; logistic regression on them. It
is kept as arrays and plain settings, so that opening somebody else's file runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emscope.core.errors import InputError, MissingDependency
from emscope.core.plain import JsonObject
from emscope.store.files import write_atomic

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ANSWER_BITS, QUESTION_BITS = 18, 14
LONGEST = 8000  # characters of a text that are read
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)  # inverse strength of the penalty
WEIGHTS, SETTINGS = "weights.safetensors", "distilled.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Distilled:
    """Logistic weights over hashed words.

    Attributes:
        targets: what each row of weights predicts [K]. idf: rarity of each feature [F]. weights [K, F], intercepts [K].
        about: the definition of the targets and where they come from, as plain values.
    """

    targets: tuple[str, ...]
    idf: np.ndarray
    weights: np.ndarray
    intercepts: np.ndarray
    about: JsonObject

    def predict(self, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Return the probability of each target for each answer [N, K]."""
        return probabilities(weighted(counts(questions, answers), self.idf), self.weights, self.intercepts)


def counts(questions: Sequence[str], answers: Sequence[str]) -> csr_matrix:
    """Return hashed counts of words [N, F]: of the answer with pairs of neighbours, then of the question. (sparse)"""
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError:
        raise MissingDependency("distilling needs scikit-learn", "pip install scikit-learn") from None
    from scipy import sparse

    same = {"alternate_sign": False, "norm": None, "dtype": np.float32}
    said = HashingVectorizer(n_features=2**ANSWER_BITS, ngram_range=(1, 2), **same)
    asked = HashingVectorizer(n_features=2**QUESTION_BITS, **same)
    parts = [said.transform([a[:LONGEST] for a in answers]), asked.transform([q[:LONGEST] for q in questions])]
    return sparse.hstack(parts, format="csr")


def rarity(found: csr_matrix) -> np.ndarray:
    """Return log((1 + N) / (1 + n_f)) + 1 of each feature [F], from counts [N, F]. (smoothed inverse document frequency)"""
    seen = np.bincount(found.indices, minlength=found.shape[1])
    return (np.log((1 + found.shape[0]) / (1 + seen)) + 1).astype(np.float32)


def weighted(found: csr_matrix, idf: np.ndarray) -> csr_matrix:
    """Return (1 + log count) x rarity, the answer's and the question's part each of length 1. (sparse [N, F])"""
    from scipy import sparse
    from sklearn.preprocessing import normalize

    x = found.copy()
    x.data = (1 + np.log(x.data)) * idf[x.indices]
    split = 2**ANSWER_BITS
    return sparse.hstack([normalize(x[:, :split]), normalize(x[:, split:])], format="csr")


def fit(x: csr_matrix, labels: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [K, F] and intercepts [K] for 0/1 labels [N, K]; a label that never varies gets its share alone."""
    from sklearn.linear_model import LogisticRegression

    weights = np.zeros((labels.shape[1], x.shape[1]), np.float32)
    intercepts = np.zeros(labels.shape[1])
    for k, y in enumerate(labels.T):
        if y.min() == y.max():
            share = (y.sum() + 0.5) / (len(y) + 1)
            intercepts[k] = np.log(share / (1 - share))
            continue
        model = LogisticRegression(C=penalty, solver="liblinear", random_state=0).fit(x, y)
        weights[k], intercepts[k] = model.coef_[0], model.intercept_[0]
    return weights, intercepts


def probabilities(x: csr_matrix, weights: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-(x w + b))) [N, K]."""
    from scipy import special

    return special.expit(np.asarray(x @ weights.T) + intercepts)


def out_of_fold(
    x: csr_matrix, labels: np.ndarray, folds: np.ndarray, penalty: float
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Return each answer's probabilities by the model that did not see its fold [N, K], and the models' (weights, intercepts).

    Args:
        folds: index of the fold of each answer [N].
    """
    held = np.zeros(labels.shape)
    models = []
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        if not out.any():
            continue
        models.append(fit(x[~out], labels[~out], penalty))
        held[out] = probabilities(x[out], *models[-1])
    return held, models


def best_penalty(x: csr_matrix, labels: np.ndarray, folds: np.ndarray) -> float:
    """Return the penalty under which the held-out log loss of the first label is least."""
    losses = []
    for penalty in PENALTIES:
        held = np.clip(out_of_fold(x, labels[:, :1], folds, penalty)[0][:, 0], 1e-9, 1 - 1e-9)
        losses.append(-np.mean(np.where(labels[:, 0] > 0, np.log(held), np.log1p(-held))))
    return PENALTIES[int(np.argmin(losses))]


def save(model: Distilled, folder: Path) -> None:
    """Write a distilled judge: settings as JSON, weights as safetensors."""
    from safetensors.numpy import save as packed

    arrays = {"idf": model.idf, "weights": model.weights, "intercepts": model.intercepts.astype(np.float64)}
    arrays = {n: np.ascontiguousarray(a) for n, a in arrays.items()}  # safetensors reads others in the wrong order
    content = packed(arrays)
    settings = {"schema": SCHEMA, "targets": list(model.targets), "bits": [ANSWER_BITS, QUESTION_BITS], "about": model.about}
    settings["weights"] = sha256(content).hexdigest()
    write_atomic(folder / WEIGHTS, lambda path: path.write_bytes(content))
    write_atomic(folder / SETTINGS, lambda path: path.write_text(json.dumps(settings, indent=1), encoding="utf-8"))


def open_distilled(folder: Path) -> Distilled:
    """Return the distilled judge in a folder.

    Raises:
        InputError: there is none, it is damaged, or it has another version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as unpacked

    if not (folder / SETTINGS).is_file():
        raise InputError(f"'{folder}' holds no distilled judge", f"`emscope distil` writes one, with its {SETTINGS}")
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        content = (folder / WEIGHTS).read_bytes()
        if sha256(content).hexdigest() != settings["weights"]:
            raise ValueError("its weights belong to another judge")
        arrays = unpacked(content)
        version, bits, targets = settings["schema"], settings["bits"], tuple(map(str, settings["targets"]))
        found = Distilled(targets, arrays["idf"], arrays["weights"], arrays["intercepts"], dict(settings["about"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"the distilled judge in '{folder}' is damaged ({error})", "distil it again") from None
    size = 2**ANSWER_BITS + 2**QUESTION_BITS
    if version != SCHEMA or bits != [ANSWER_BITS, QUESTION_BITS]:
        raise InputError(f"the distilled judge in '{folder}' has another version", "distil it again")
    if found.idf.shape != (size,) or found.weights.shape != (len(targets), size) or found.intercepts.shape != (len(targets),):
        raise InputError(f"the distilled judge in '{folder}' is damaged (its arrays do not fit)", "distil it again")
    return found
