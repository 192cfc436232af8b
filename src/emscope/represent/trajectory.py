"""Where fine-tunes go in the space of all updates, from the inner products of their checkpoints alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Checkpoints as points.

    Attributes:
        points: [N, K], along the K main axes of all checkpoints about the base, which is the origin.
        shares: of the summed squared length that each axis holds [K].
        norms: effective norm of each checkpoint [N]. cosines: of each two [N, N]; 0 with one that changes nothing.
    """

    points: np.ndarray
    shares: np.ndarray
    norms: np.ndarray
    cosines: np.ndarray


def trajectory(gram: np.ndarray, k: int = 3) -> Trajectory:
    """Return the principal axes of updates from their inner products [N, N].

    With U the updates as rows, U U^T = V L V^T gives the coordinates V sqrt(L) of the principal axes about the base; no update is ever
    written out. (classical scaling, Torgerson 1952; about the base, not about the mean: ours)
    """
    gram = np.asarray(gram, float)
    values, vectors = np.linalg.eigh(gram)
    order = np.argsort(values)[::-1][: min(k, len(gram))]
    kept = np.clip(values[order], 0, None)
    points = vectors[:, order] * np.sqrt(kept)
    points *= np.where(points[np.abs(points).argmax(0), range(points.shape[1])] < 0, -1, 1)  # fix the sign
    norms = np.sqrt(np.clip(np.diag(gram), 0, None))
    size = np.outer(norms, norms)
    cosines = np.divide(gram, size, out=np.zeros_like(gram), where=size > 0)
    total = float(np.trace(gram))
    return Trajectory(points, kept / total if total > 0 else kept, norms, cosines.clip(-1, 1))
