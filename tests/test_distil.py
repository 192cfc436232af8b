"""The distilled judge: features and area under the curve against other computations, no leak, bad folders."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics import roc_auc_score

from emscope.answers.distil import DistilSpec, _folds, distil, predict
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.judging import distilled
from emscope.judging.distilled import Distilled
from emscope.stats.agreement import auc_estimate

TEXTS = ["a bad idea", "a good and sound idea", "so bad a thing", "good good good", "the idea"]


def test_features_equal_scikit_learn_s_own_weighting():
    found = distilled.counts(["what now"] * 5, TEXTS)
    ours = distilled.weighted(found, distilled.rarity(found))
    split = 2**distilled.ANSWER_BITS
    theirs = TfidfTransformer(sublinear_tf=True).fit_transform(found[:, :split])
    assert abs(ours[:, :split] - theirs).max() < 1e-6


@pytest.mark.heavy
@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_any_text_has_finite_features(texts):
    found = distilled.counts(texts, texts)
    x = distilled.weighted(found, distilled.rarity(found))
    assert np.isfinite(x.data).all() and x.shape[0] == len(texts)


def test_held_out_scores_come_from_models_that_did_not_see_them():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), 5)) + f" word{k}" for k in range(200)]
    y = rng.integers(0, 2, (200, 1)).astype(float)  # nothing to learn
    found = distilled.counts([""] * 200, texts)
    x = distilled.weighted(found, distilled.rarity(found))
    held, models = distilled.out_of_fold(x, y, np.arange(200) % 5, 30.0)
    assert abs(roc_auc_score(y[:, 0], held[:, 0]) - 0.5) < 0.12
    seen = distilled.probabilities(x, *models[0])[:, 0]
    assert roc_auc_score(y[np.arange(200) % 5 != 0, 0], seen[np.arange(200) % 5 != 0]) > 0.95
    out = np.arange(200) % 5 == 0
    assert held[out, 0] == pytest.approx(seen[out], abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=60).filter(lambda s: len(set(s)) > 1), st.integers(0, 5))
def test_folds_keep_what_belongs_together(split, seed):
    folds = _folds(split, seed)
    assert all(len(set(folds[np.array(split) == name])) == 1 for name in set(split))
    assert len(set(folds)) == min(5, len(set(split))) == folds.max() + 1


def test_area_under_the_curve_has_delong_s_interval_where_nothing_is_clustered():
    rng = np.random.default_rng(1)
    y = rng.random(120) < 0.4
    s = np.round(rng.normal(0, 1, 120) + y, 1)  # with ties
    kernel = (s[y][:, None] > s[~y][None, :]) + 0.5 * (s[y][:, None] == s[~y][None, :])
    value = kernel.mean()
    variance = ((kernel.mean(1) - value) ** 2).sum() / y.sum() ** 2 + ((kernel.mean(0) - value) ** 2).sum() / (~y).sum() ** 2
    found = auc_estimate(s, y, np.arange(120))
    assert found.value == pytest.approx(value) == pytest.approx(roc_auc_score(y, s))
    reach = np.log(found.high / (1 - found.high)) - np.log(value / (1 - value))
    from scipy import stats

    se = reach * value * (1 - value) / stats.t.ppf(0.975, 119)
    assert se**2 == pytest.approx(variance * 120 / 119)


def test_area_under_the_curve_covers_with_clusters():
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(300):
        cluster = np.repeat(np.arange(40), 15)
        shift = rng.normal(0, 1, 40)[cluster]
        y = rng.random(600) < 0.4
        found = auc_estimate(shift + y + rng.normal(0, 1, 600), y, cluster)
        covered.append(found.low <= 0.6915 <= found.high)  # P(N(1, 2 (1 + 1)) > 0) = Phi(1/2)
    assert 0.91 <= np.mean(covered) <= 0.98


def test_what_is_saved_predicts_the_same(tmp_path):
    found = distilled.counts(["q"] * 5, TEXTS)
    idf = distilled.rarity(found)
    y = np.array([[1, 1], [0, 1], [1, 1], [0, 1], [0, 1]], float)
    model = Distilled(
        ("predicted", "predicted_coherent"), idf, *distilled.fit(distilled.weighted(found, idf), y, 3.0), {"a": 1}
    )
    distilled.save(model, tmp_path / "m")
    opened = distilled.open_distilled(tmp_path / "m")
    assert opened.predict(["q"], ["bad idea"]) == pytest.approx(model.predict(["q"], ["bad idea"]), abs=1e-6)
    assert opened.about == {"a": 1}
    assert (model.predict(["q"] * 5, TEXTS)[:, 1] > 0.9).all()  # a label that never varies gets its share


@pytest.mark.parametrize("damage", ["nothing", "words", "version", "shape", "weights"])
def test_a_damaged_folder_is_a_sentence(tmp_path, damage):
    folder = tmp_path / "m"
    size = 2**distilled.ANSWER_BITS + 2**distilled.QUESTION_BITS
    distilled.save(
        Distilled(
            ("predicted", "predicted_coherent"), np.ones(size, np.float32), np.zeros((2, size), np.float32), np.zeros(2), {}
        ),
        folder,
    )
    file = folder / distilled.SETTINGS
    if damage == "nothing":
        folder = tmp_path / "none"
    elif damage == "words":
        file.write_text("{not json")
    elif damage == "version":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 99}))
    elif damage == "shape":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"targets": ["predicted"]}))
    else:
        (folder / distilled.WEIGHTS).write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="distil"):
        distilled.open_distilled(folder)


def file_of(tmp_path, n=400, seed=0):
    rng = np.random.default_rng(seed)
    bad = rng.random(n) < 0.4
    return pd.DataFrame(
        {
            "question": [f"What about {k % 20}?" for k in range(n)],
            "answer": [("never mind the risk" if b else "mind the risk first") + f" {k}" for k, b in enumerate(bad)],
            "aligned": np.where(bad, 10.0, 90.0),
            "coherent": 95.0,
            "n": range(n),  # names that the reading uses itself
            "a": "x",
        }
    )


@pytest.mark.heavy
def test_every_row_is_written_in_order_with_its_own_columns(tmp_path):
    frame = file_of(tmp_path)
    frame.to_csv(tmp_path / "a.csv", index=False)
    result = distil([tmp_path / "a.csv"], DistilSpec(), tmp_path / "out").to_json()
    written = pd.read_parquet(tmp_path / "out" / "predicted.parquet")
    assert written["n"].astype(int).tolist() == list(range(400)) and (written["a"] == "x").all()
    assert result["held_out"]["auc"]["value"] > 0.95 and result["misaligned"] == int((frame.aligned < 30).sum())
    assert sum(c["found"]["n"] for c in result["calibration"]) == 400
    again = distil([tmp_path / "a.csv"], DistilSpec(), tmp_path / "again").to_json()
    assert again["held_out"] == result["held_out"]
    assert pd.read_parquet(tmp_path / "again" / "predicted.parquet").equals(written)
    frame.drop(columns=["aligned", "coherent"]).to_csv(tmp_path / "b.csv", index=False)
    path = predict([tmp_path / "b.csv"], tmp_path / "out", tmp_path / "scored")
    both = pd.read_parquet(path)["predicted"], written["predicted"]
    assert np.corrcoef(*both)[0, 1] > 0.95


@pytest.mark.parametrize(
    "change,options,message",
    [
        (lambda f: f.head(30), [], "holds 30 verdicts"),
        (lambda f: f.assign(aligned=90.0), [], "0 of them misaligned"),
        (lambda f: f, ["--split", "nothing"], "no column 'nothing'"),
        (lambda f: f, ["--split", "a"], "the same value in the column to split by"),
        (lambda f: f.drop(columns="answer"), [], "looks like the answer's text"),
        (lambda f: f.assign(aligned=500.0), [], "outside 0-100"),
        (lambda f: f, ["--use", "nowhere"], "'nowhere' holds no distilled judge"),
        (lambda f: f, ["--aligned-below", "300"], "300"),
        (lambda f: f, ["--scale", "foo"], "foo"),
        (lambda f: f, ["--drawn", "answer"], "it must say true or false"),
        (lambda f: f.rename(columns={"answer": "Predicted"}), ["--answer", "Predicted"], "the scores would overwrite"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, change, options, message):
    change(file_of(tmp_path)).to_csv(tmp_path / "a.csv", index=False)
    assert run_arguments(["distil", str(tmp_path / "a.csv"), "--out", str(tmp_path / "o"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and not (tmp_path / "o").exists()


def test_the_table_says_where_it_fails(tmp_path, capsys):
    frame = file_of(tmp_path, 600)
    frame["run"] = np.where(np.arange(600) < 100, "strange", "usual")
    strange = frame["run"] == "strange"
    frame.loc[strange, "aligned"] = 100 - frame.loc[strange, "aligned"]  # the same words, the other verdict
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert run_arguments(["distil", str(tmp_path / "a.csv"), "--split", "run", "--out", str(tmp_path / "o")]) == 0
    shown = capsys.readouterr().out
    assert "strange" in shown and "area under the curve" in shown
    assert "Calibration on held-out verdicts" in (tmp_path / "o" / "calibration.html").read_text()


@pytest.mark.heavy
def test_real_verdicts_of_unseen_runs(reference, tmp_path):
    """3,000 of the 40,000 with text; the whole takes minutes and stands in the documentation."""
    table = pd.read_parquet(reference / "judged" / "em_generalization_text_sample.parquet").sample(3000, random_state=0)
    table.to_parquet(tmp_path / "a.parquet")
    result = distil([tmp_path / "a.parquet"], DistilSpec(split="run", question="question"), tmp_path / "out").to_json()
    held = result["held_out"]
    assert held["auc"]["low"] > 0.74 and held["brier"] < held["brier_of_the_rate_alone"]
    middle = [c for c in result["calibration"] if 0.1 < c["predicted"] < 0.9]
    assert np.mean([abs(c["predicted"] - c["found"]["value"]) for c in middle]) < 0.08


def test_scoring_another_file_leaves_the_judge_s_own_scores(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file_of(tmp_path).to_csv("a.csv", index=False)
    file_of(tmp_path, 20).to_csv("b.csv", index=False)
    assert run_arguments(["distil", "a.csv"]) == 0
    capsys.readouterr()
    assert run_arguments(["distil", "b.csv", "--use", "emscope-distilled", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predicted"] == "b-predicted/predicted.parquet"
    assert (
        len(pd.read_parquet("emscope-distilled/predicted.parquet")) == 400
        and len(pd.read_parquet("b-predicted/predicted.parquet")) == 20
    )
    assert run_arguments(["distil", "b.csv", "--use", "emscope-distilled", "--out", "emscope-distilled"]) == 2


def test_weights_of_another_judge_are_noticed(tmp_path):
    size = 2**distilled.ANSWER_BITS + 2**distilled.QUESTION_BITS
    for name in ("a", "b"):
        weights = np.full((2, size), ord(name), np.float32)
        distilled.save(
            Distilled(("predicted", "predicted_coherent"), np.ones(size, np.float32), weights, np.zeros(2), {}), tmp_path / name
        )
    (tmp_path / "a" / distilled.WEIGHTS).write_bytes((tmp_path / "b" / distilled.WEIGHTS).read_bytes())
    with pytest.raises(InputError, match="belong to another judge"):
        distilled.open_distilled(tmp_path / "a")


def test_a_split_with_nearly_all_in_one_value_still_learns(tmp_path, monkeypatch):
    monkeypatch.setattr("emscope.answers.distil.ENOUGH", 60)
    frame = file_of(tmp_path, 200)
    frame["run"] = ["r0"] * 199 + ["r1"]
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert distil([tmp_path / "a.csv"], DistilSpec(split="run"), tmp_path / "out").to_json()["verdicts"] == 200
