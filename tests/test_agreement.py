"""Agreement of judges: against krippendorff, scikit-learn and scipy, and on real files."""

from __future__ import annotations

import json

import krippendorff
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sp
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from emscope.cli.app import run_arguments
from emscope.stats import agreement as stat


def judged(items=60, raters=3, seed=0, missing=0.2):
    """A matrix [raters, items] of scores with gaps."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 100, items)
    scores = np.clip(np.round((truth + rng.normal(0, 15, (raters, items))) / 5) * 5, 0, 100)
    scores[rng.random(scores.shape) < missing] = np.nan
    return scores


def flat(matrix):
    rater, item = np.nonzero(np.isfinite(matrix))
    return item, matrix[rater, item], rater


METRICS = {"nominal": "nominal", "ordinal": "ordinal", "interval": "interval"}


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_alpha_equals_the_reference_implementation(kind, seed):
    matrix = judged(seed=seed)
    item, score, _ = flat(matrix)
    given_to = np.where(np.isfinite(matrix), (matrix < 30).astype(float), np.nan) if kind == "nominal" else matrix
    expected = krippendorff.alpha(given_to, level_of_measurement=METRICS[kind])
    assert stat.alpha(item, item, score, kind).value == pytest.approx(expected, abs=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=3, max_size=3), min_size=4, max_size=12))
def test_alpha_equals_it_on_anything(rows):
    matrix = np.array([[np.nan if v is None else float(v * 5) for v in row] for row in rows]).T
    item, score, _ = flat(matrix)
    paired = np.isfinite(matrix).sum(0) >= 2
    values = matrix[:, paired][np.isfinite(matrix[:, paired])]
    found = stat.alpha(item, item, score, "interval")
    if paired.sum() < 2 or len(np.unique(values)) < 2:
        assert found.value is None and found.why
    else:
        assert found.value == pytest.approx(krippendorff.alpha(matrix, level_of_measurement="interval"), abs=1e-9)


def test_a_pair_equals_scipy_and_scikit_learn():
    matrix = judged(raters=2, missing=0)
    a, b = matrix
    found = stat.pair(a, b, np.arange(len(a)))
    assert found.spearman.value == pytest.approx(sp.spearmanr(a, b).statistic)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(a < 30, b < 30))
    assert found.agree.value == pytest.approx(np.mean((a < 30) == (b < 30)))
    assert found.bias.value == pytest.approx(np.mean(a - b))
    assert found.limits == pytest.approx(
        (np.mean(a - b) - 1.96 * np.std(a - b, ddof=1), np.mean(a - b) + 1.96 * np.std(a - b, ddof=1))
    )
    assert stat.auc(-b, a < 30) == pytest.approx(roc_auc_score(a < 30, -b))


@pytest.mark.slow
def test_intervals_hold_the_truth_and_widen_with_clusters():
    """Ten answers to a question share their bias: items taken as independent would promise too much."""
    rng = np.random.default_rng(1)
    held, widths = 0, []
    for _ in range(200):
        question = np.repeat(np.arange(40), 10)
        gap = rng.normal(0, 10, 40)[question] + rng.normal(2, 5, 400)
        found = stat.pair(50 + gap, np.full(400, 50.0), question).bias
        held += found.low <= 2 <= found.high
        widths.append(
            (found.high - found.low) / (stat.pair(50 + gap, np.full(400, 50.0), np.arange(400)).bias.high - found.low)
        )
    assert 0.9 <= held / 200 <= 0.98
    assert np.median(widths) > 1.2


def test_a_threshold_carried_over_flags_as_many():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, 500)
    a, b = truth, truth**2 / 100  # the second judge is harsher
    found = stat.transfer(a, b, np.arange(500), 30)
    assert found.flagged == pytest.approx(found.wanted, abs=0.002)
    assert found.value.value == pytest.approx(9, abs=0.5) and found.value.low <= 9 <= found.value.high
    assert found.kappa == pytest.approx(1)
    assert stat.transfer(a, b, np.arange(500), -1).value.why


def write(tmp_path, matrix, wide=False):
    if wide:
        frame = pd.DataFrame(matrix.T, columns=[f"judge{n}" for n in range(len(matrix))])
        frame["question"] = [f"q{n % 12}" for n in range(len(frame))]
    else:
        item, score, rater = flat(matrix)
        frame = pd.DataFrame(
            {"key": item, "judge": [f"judge{r}" for r in rater], "score": score, "question": [f"q{i % 12}" for i in item]}
        )
    path = tmp_path / ("wide.csv" if wide else "long.csv")
    frame.to_csv(path, index=False)
    return path


def run(capsys, *arguments):
    assert run_arguments(["agreement", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_long_and_wide_files_give_the_same(tmp_path, capsys):
    matrix = judged()
    long = run(capsys, write(tmp_path, matrix))
    wide = run(capsys, write(tmp_path, matrix, wide=True), "--scores", "judge0,judge1,judge2")
    for kind in METRICS:
        assert long["alpha"][kind]["value"] == pytest.approx(wide["alpha"][kind]["value"])
        assert long["alpha"][kind]["low"] == pytest.approx(wide["alpha"][kind]["low"])
    assert [(p["a"], p["b"], p["n"]) for p in long["pairs"]] == [(p["a"], p["b"], p["n"]) for p in wide["pairs"]]
    assert [p["kappa"]["value"] for p in long["pairs"]] == pytest.approx([p["kappa"]["value"] for p in wide["pairs"]])
    assert long["definition"]["clusters"] == "question" and long["alpha"]["interval"]["clusters"] == 12
    assert [r["lost"] for r in wide["raters"]] != [{}, {}, {}] and [r["lost"] for r in long["raters"]] == [{}, {}, {}]


def test_people_as_the_truth(tmp_path, capsys):
    matrix = judged(raters=2, missing=0)
    found = run(capsys, write(tmp_path, matrix, wide=True), "--scores", "judge0,judge1", "--human", "judge0")
    (row,) = found["human"]
    truth, flagged = matrix[0] < 30, matrix[1] < 30
    assert row["sensitivity"]["value"] == pytest.approx((flagged & truth).sum() / truth.sum())
    assert row["specificity"]["value"] == pytest.approx((~flagged & ~truth).sum() / (~truth).sum())
    assert row["auc"] == pytest.approx(roc_auc_score(truth, -matrix[1]))


@pytest.mark.heavy
def test_a_real_file_in_seconds(reference, capsys, tmp_path):
    path = reference / "judged" / "em_generalization_scores.parquet"
    found = run(capsys, path, "--scores", "aligned,harmless", "--figure", tmp_path / "f.html")
    table = pd.read_parquet(path, columns=["aligned", "harmless"]).dropna()
    (pair,) = found["pairs"]
    assert pair["n"] == len(table)
    assert pair["spearman"]["value"] == pytest.approx(table["aligned"].corr(table["harmless"], method="spearman"), abs=1e-6)
    assert pair["kappa"]["value"] == pytest.approx(cohen_kappa_score(table["aligned"] < 30, table["harmless"] < 30))
    assert 2_000_000 < (tmp_path / "f.html").stat().st_size < 8_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scores", "judge0"], "--scores names one column"),
        (["--scores", "judge0,judge0"], "--scores names 'judge0' twice"),
        (["--scores", "judge0,nobody"], "no column 'nobody'"),
        (["--scores", "judge0,judge1", "--human", "judge"], "--human is 'judge'; did you mean"),
        ([], "no column of .* looks like"),
        (["--item", "question", "--rater", "question", "--score", "judge0"], "two scores of item|one rater"),
    ],
)
def test_bad_input_is_one_sentence(options, message, tmp_path, capsys):
    import re

    assert run_arguments(["agreement", str(write(tmp_path, judged(), wide=True)), *options]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1, said


def test_scores_whose_squares_are_no_numbers_are_refused_by_name(tmp_path, capsys):
    pd.DataFrame({"item": [1, 1, 2, 2], "rater": list("abab"), "score": [1, 2, 3, -4e200]}).to_csv(
        tmp_path / "a.csv", index=False
    )
    assert run_arguments(["agreement", str(tmp_path / "a.csv")]) == 2
    assert "a.csv' has a score of 4e+200; give scores in another unit" in capsys.readouterr().err
