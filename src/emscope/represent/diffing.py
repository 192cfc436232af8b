"""What a fine-tune changed in a model's predictions, seen at every block and every token, and in the scalars of rank-1 adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emscope.core.seeds import derive
from emscope.models.adapters.updates import Change
from emscope.models.fast.head import ROWS, Lens, kl_rows
from emscope.represent.activations import Text

if TYPE_CHECKING:
    from sklearn.model_selection import GridSearchCV
    from torch import Tensor
    from torch.nn import Module

    from emscope.models.types import CausalLM, Device, Stream

FOLDS, SHUFFLES = 5, 20
STRENGTHS = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True, slots=True)
class Compared:
    """One text's predictions before and after, through the logit lens.

    Attributes:
        kl: KL(before || after) of the next token at each place and token [P, T], in nats.
        same: True where both have one likeliest next token [P, T].
        tops: the likeliest next token before and after at the last place, [2, T].
        gain: how much likelier the text's own next token has become at the last place [T], in nats; 0 where there is none.
    """

    kl: Tensor
    same: Tensor
    tops: Tensor
    gain: Tensor


def compare_streams(
    before_lens: Lens, after_lens: Lens, before: Stream, after: Stream, ids: Sequence[int], device: Device
) -> Compared:
    """Compare a text's residual streams [T, P, D] of two models, place by place; the last place is the last block's.

    Logits exist for `ROWS` tokens of one place at a time.

    Args:
        ids: the text's tokens [T].
    """
    import torch

    count, places = before.shape[:2]
    kl, same = torch.empty(places, count), torch.empty(places, count, dtype=torch.bool)
    tops, gain = torch.empty(2, count, dtype=torch.long), torch.zeros(count)
    following = torch.tensor(list(ids[1:]), device=device)
    with torch.inference_mode():
        for place in range(places):
            for start in range(0, count, ROWS):
                rows = slice(start, min(start + ROWS, count))
                old, new = (lens(x[rows, place].to(device)) for lens, x in ((before_lens, before), (after_lens, after)))
                kl[place, rows] = kl_rows(old, new).float().cpu()
                top = torch.stack([old.argmax(-1), new.argmax(-1)]).cpu()
                same[place, rows] = top[0] == top[1]
                if place == places - 1:
                    tops[:, rows] = top
                    known = following[rows]
                    old, new = old[: len(known)].float().log_softmax(-1), new[: len(known)].float().log_softmax(-1)
                    gain[start : start + len(known)] = (new - old).gather(1, known[:, None])[:, 0].cpu()
    return Compared(kl, same, tops, gain)


def adapter_scalars(
    net: CausalLM,
    adapters: Sequence[Change],
    texts: Sequence[Text],
    seen: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Return A x of each rank-1 adapter, its mean over each text's answer tokens, [N, adapters]. (convergent directions, Soligo et al. 2025)

    Args:
        net: the model with the adapters merged into it, so that x is what it would be. adapters: of rank 1, `right` being A [1, in].
    """
    import torch

    modules = dict(net.named_modules())
    values = torch.zeros(len(texts), len(adapters), dtype=torch.float64)
    rows: dict[int, Tensor] = {}

    def watch(n: int, a: Tensor) -> Callable[[Module, tuple[Tensor, ...]], None]:
        def hook(module: Module, given: tuple[Tensor, ...]) -> None:
            rows[n] = given[0][0].float() @ a

        return hook

    handles = []
    try:
        for n, adapter in enumerate(adapters):
            assert adapter.right is not None
            a = adapter.right[0].float().to(net.device)
            handles.append(modules[adapter.name].register_forward_pre_hook(watch(n, a)))
        with torch.inference_mode():
            for k, text in enumerate(texts):
                ids = torch.tensor([[*text.prompt, *text.answer]], device=net.device)
                net.base_model(input_ids=ids, use_cache=False)
                for n in range(len(adapters)):
                    values[k, n] = rows[n][len(text.prompt) :].mean().cpu()
                seen(k + 1, len(texts))
    finally:
        for handle in handles:
            handle.remove()
    return values


@dataclass(frozen=True, slots=True)
class Told:
    """How well scalars separate two kinds of texts.

    Attributes:
        auc: over held-out questions. low, high: the same after the labels were shuffled, least and most of `SHUFFLES`.
        weights: of the standardised scalars in a fit to all texts; most are 0 under an L1 penalty.
    """

    auc: float
    low: float
    high: float
    weights: list[float]


def tell_apart(values: np.ndarray, labels: np.ndarray, units: Sequence[str], seed: int = 0) -> Told:
    """Fit an L1 logistic regression that classifies texts by their scalars, its strength chosen inside each fold. (convergent directions, Soligo et al. 2025 section 5)

    A question's texts stay in one fold. Labels are shuffled among the texts of each question.

    Args:
        values: [N, adapters]; labels: 0 or 1 [N]; units: the question of each text.
    """
    names = np.asarray(units)
    rng = np.random.default_rng(derive(seed, "scalars"))
    shuffled = []
    for _ in range(SHUFFLES):
        mixed = labels.copy()
        for name in np.unique(names):
            at = np.flatnonzero(names == name)
            mixed[at] = rng.permutation(mixed[at])
        shuffled.append(_auc(values, mixed, names))
    weights = _search(values, labels, names).best_estimator_[-1].coef_[0]
    return Told(_auc(values, labels, names), min(shuffled), max(shuffled), [float(w) for w in weights])


def _auc(values: np.ndarray, labels: np.ndarray, units: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    scores = np.zeros(len(labels))
    for inside, outside in GroupKFold(min(FOLDS, len(np.unique(units)))).split(values, labels, units):
        scores[outside] = _search(values[inside], labels[inside], units[inside]).decision_function(values[outside])
    return float(roc_auc_score(labels, scores))


def _search(values: np.ndarray, labels: np.ndarray, units: np.ndarray) -> GridSearchCV:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(l1_ratio=1.0, solver="liblinear", max_iter=1000, random_state=0))
    grid = {"logisticregression__C": STRENGTHS}
    search = GridSearchCV(model, grid, scoring="roc_auc", cv=GroupKFold(min(FOLDS, len(np.unique(units)))))
    return search.fit(values, labels, groups=units)
