"""Score shifts: scipy's tests on each question's numbers, and slopes that know of sampling hold the truth where plain ones do not."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats as sp

import emscope
from emscope.answers.runs.shifts import ShiftsSpec, shifts
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.stats.holm import holm
from emscope.stats.score_shift import Repeated, deviations, hodges_lehmann, means, score_shift, swapped_ks


def answers(questions=30, samples=6, slope=0.7, drop=10.0, noise=20.0, seed=0, models=("tuned",)):
    """Rows of scores on 0-100 around question means that moved along a line."""
    rng = np.random.default_rng(seed)
    base = 60 + 10 * rng.normal(size=questions)
    true = {"base": base} | {
        m: 60 - drop * n + slope * (base - 60) + 5 * rng.normal(size=questions) for n, m in enumerate(models, 1)
    }
    rows = [
        {
            "model": m,
            "question_id": f"q{q}",
            "aligned": np.clip(t[q] + noise * rng.normal(), 0, 100),
            "coherent": 90.0 - (m != "base"),
        }
        for m, t in true.items()
        for q in range(questions)
        for _ in range(samples)
    ]
    return pd.DataFrame(rows)


def read(tmp_path, frame, **settings):
    frame.to_parquet(tmp_path / "a.parquet")
    return shifts([tmp_path / "a.parquet"], ShiftsSpec(**{"group": "model", "before": "base", **settings}))


def by_question(frame, model):
    return frame[frame["model"] == model].groupby("question_id")["aligned"].agg(["mean", "std", "count"])


def test_each_number_is_what_scipy_finds_on_a_question_s_mean_and_sd(tmp_path):
    frame = answers()
    (run,) = read(tmp_path, frame).runs
    a, b = by_question(frame, "base"), by_question(frame, "tuned")
    for mine, name in ((run.mean, "mean"), (run.sd, "std")):
        x, y = a[name].to_numpy(), b[name].to_numpy()
        assert (mine.questions, mine.before, mine.after) == (30, pytest.approx(x.mean()), pytest.approx(y.mean()))
        assert mine.shift.low == pytest.approx(sp.ttest_1samp(y - x, 0).confidence_interval().low)
        theirs = sp.wilcoxon(y, x)
        assert (mine.wilcoxon.statistic, mine.wilcoxon.p) == pytest.approx((theirs.statistic, theirs.pvalue))
        theirs = sp.ks_2samp(x, y)
        assert (mine.ks.statistic, mine.ks.p) == pytest.approx((theirs.statistic, theirs.pvalue))
        theirs = sp.pearsonr(x, y)
        ends = theirs.confidence_interval()
        assert (mine.pearson.value, mine.pearson.low, mine.pearson.high) == pytest.approx((theirs.statistic, *ends))
        fit = sm.OLS(y, sm.add_constant(x)).fit()
        assert (mine.slope.value, mine.slope.low, mine.slope.high) == pytest.approx((fit.params[1], *fit.conf_int()[1]))
        assert mine.explained.value == pytest.approx(fit.rsquared)
    assert (run.coherence_before, run.coherence_after) == (90, 89) and (run.answers_before, run.answers_after) == (180, 180)
    one = run.questions[0]
    row = a.loc[one.question]
    assert (one.mean_before, one.sd_before, one.answers_before) == pytest.approx((row["mean"], row["std"], row["count"]))


@pytest.mark.heavy
def test_public_scores_read_as_scipy_reads_them(reference):
    path = reference / "judged" / "em_generalization_scores.parquet"
    frame = pd.read_parquet(path, columns=["run", "question_id", "aligned", "run_suffix"])
    runs = sorted(frame[frame["run_suffix"].str.endswith("general_100")]["run"].unique())[:3]
    found = shifts([path], ShiftsSpec(group="run", before=runs[0], after=tuple(runs[1:])))
    kept = frame[frame["run"].isin(runs)].dropna().astype({"aligned": float})  # the file has single precision
    table = kept.groupby(["run", "question_id"])["aligned"].mean().unstack(0)
    assert [r.after for r in found.runs] == runs[1:] and found.runs[0].mean.questions == len(table) == 100
    p = []
    for run in found.runs:
        x, y = table[runs[0]], table[run.after]
        p.append(sp.wilcoxon((y - x).round(8)).pvalue)
        assert run.mean.wilcoxon.p == pytest.approx(p[-1])
        assert run.mean.ks.p == pytest.approx(sp.ks_2samp(x, y).pvalue)
        assert run.mean.slope.value == pytest.approx(sp.linregress(x, y).slope)
    assert [r.mean.wilcoxon.p_adjusted for r in found.runs] == pytest.approx(holm(p))


def test_forms_of_a_question_are_one_and_missing_scores_are_counted(tmp_path):
    frame = answers(questions=4)
    frame["question_id"] += np.where(frame.index % 2, "_json", "")
    frame.loc[:2, "aligned"] = np.nan
    found = read(tmp_path, frame)
    assert found.runs[0].mean.questions == 4 and any("3 answers have no score" in n for n in found.notes)
    assert any("can be below 0.12" in n for n in found.notes), "2^-3 at four questions"


def test_several_runs_are_corrected_by_holm_each_test_by_itself(tmp_path):
    found = read(tmp_path, answers(models=("a", "b", "c"), drop=1.5))
    assert [r.after for r in found.runs] == ["a", "b", "c"]
    for number, test in itertools.product(("mean", "sd"), ("wilcoxon", "ks", "ks_swapped")):
        tests = [getattr(getattr(r, number), test) for r in found.runs]
        assert [t.p_adjusted for t in tests] == pytest.approx(holm([t.p for t in tests]))
    assert [r.after for r in read(tmp_path, answers(models=("a", "b", "c")), after=("b",)).runs] == ["b"]


def test_comparisons_stay_within_their_stratum(tmp_path):
    both = pd.concat([answers(seed=0).assign(size="small"), answers(seed=1).assign(size="large")])
    found = read(tmp_path, both, within=("size",))
    alone = read(tmp_path, answers(seed=1))
    assert [r.within for r in found.runs] == [{"size": "large"}, {"size": "small"}]
    assert found.runs[0].mean.shift == alone.runs[0].mean.shift
    assert found.rows()[0]["mean_wilcoxon_p"] == found.runs[0].mean.wilcoxon.p_adjusted


@pytest.mark.parametrize("n", [6, 9, 14])
def test_hodges_lehmann_s_interval_is_what_the_signed_rank_test_does_not_reject(n):
    d = np.random.default_rng(n).normal(1, 2, n)
    found = hodges_lehmann(d)
    pairs = [(d[i] + d[j]) / 2 for i in range(n) for j in range(i, n)]
    assert found.value == pytest.approx(np.median(pairs))
    ends = sorted(pairs)
    for shift in (found.low + 1e-9, found.high - 1e-9):
        assert sp.wilcoxon(d - shift).pvalue > 0.05
    for shift in (found.low - 1e-9, found.high + 1e-9):
        assert sp.wilcoxon(d - shift).pvalue <= 0.05
    assert found.low in ends and found.high in ends
    assert hodges_lehmann(d[:4]).low is None, "four questions tell no 95 % interval"


@pytest.mark.filterwarnings("ignore:ks_2samp")
def test_swaps_within_questions_are_all_there_are():
    rng = np.random.default_rng(1)
    x = rng.normal(size=7)
    y = x + rng.normal(0.8, 0.5, 7)
    seen = sp.ks_2samp(x, y).statistic
    every = [
        sp.ks_2samp(np.where(s, x, y), np.where(s, y, x)).statistic >= seen - 1e-9
        for s in itertools.product((True, False), repeat=7)
    ]
    assert swapped_ks(x, y, swaps=40_000) == pytest.approx(np.mean(every), abs=0.01)
    tied = np.array([1.0, 1.0, 2.0, 2.0, 3.0])
    assert swapped_ks(tied, tied) == 1


def test_a_question_s_sampling_variance_is_its_jackknife():
    rng = np.random.default_rng(0)
    question, score = np.repeat([0, 1, 2], [5, 3, 2]), rng.normal(50, 10, 10)
    mean, sd = means(question, score, 3), deviations(question, score, 3)
    for q, m in ((0, 5), (1, 3)):
        x = score[question == q]
        left = [np.delete(x, i) for i in range(m)]
        for found, of in ((mean, np.mean), (sd, lambda v: np.std(v, ddof=1))):
            each = np.array([of(v) for v in left])
            assert found.value[q] == pytest.approx(of(x))
            assert found.variance[q] == pytest.approx((m - 1) / m * ((each - each.mean()) ** 2).sum())
    assert np.isnan(sd.variance[2]) and np.isfinite(sd.value[2])


def test_corrections_are_the_moments_and_their_jackknife():
    rng = np.random.default_rng(4)
    true = rng.normal(60, 12, 40)
    before = Repeated(true + rng.normal(0, 4, 40), rng.uniform(10, 22, 40))
    after = Repeated(0.6 * true + rng.normal(0, 6, 40), rng.uniform(10, 22, 40))

    def moments(kept):
        x, y, vx, vy = (v[kept] for v in (before.value, after.value, before.variance, after.variance))
        c = np.cov(x, y)
        sx, sy = c[0, 0] - vx.mean(), c[1, 1] - vy.mean()
        return np.array([c[0, 1] / sx, np.arctanh(c[0, 1] / np.sqrt(sx * sy)), sx / c[0, 0]])

    found = score_shift(before, after)
    whole = moments(np.arange(40))
    left = np.array([moments(np.delete(np.arange(40), i)) for i in range(40)])
    reach = sp.t.ppf(0.975, 39) * np.sqrt(39 / 40 * ((left - left.mean(0)) ** 2).sum(0))
    mine = found.slope_corrected, found.pearson_corrected, found.reliability[0]
    low = whole - reach
    assert [e.value for e in mine] == pytest.approx([whole[0], np.tanh(whole[1]), whole[2]])
    assert [e.low for e in mine] == pytest.approx([low[0], np.tanh(low[1]), low[2]])
    assert found.slope_corrected.value > found.slope.value, "sampling made it flatter"


def test_where_questions_differ_by_sampling_alone_nothing_is_corrected(tmp_path):
    rng = np.random.default_rng(0)
    frame = answers().assign(aligned=lambda f: rng.uniform(0, 100, len(f)))
    (run,) = read(tmp_path, frame).runs
    assert run.mean.slope_corrected.value is None and "sampling" in run.mean.slope_corrected.why
    single = answers(samples=1)
    (run,) = read(tmp_path, single).runs
    assert run.sd is None and run.mean.reliability_before.value is None and "too few answers" in run.mean.slope_corrected.why


def test_nothing_moved(tmp_path):
    frame = answers()
    base = frame[frame["model"] == "base"]
    (run,) = read(tmp_path, pd.concat([base, base.assign(model="same")])).runs
    assert run.mean.wilcoxon is None and run.mean.ks_swapped.p == 1 and run.mean.shift.value == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"before": "bse"}, "did you mean 'base'"),
        ({"after": ("tund",)}, "did you mean 'tuned'"),
        ({"after": ("base",)}, "both 'base'"),
        ({"group": "modle"}, "did you mean 'model'"),
        ({"within": ("model",), "group": "question_id", "before": "q0"}, "question"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, answers(questions=5), **settings)


def test_questions_that_are_not_shared_are_refused(tmp_path):
    frame = answers(questions=5)
    frame.loc[frame["model"] == "tuned", "question_id"] += "x"
    with pytest.raises(InputError, match="no three questions"):
        read(tmp_path, frame)


def test_command_and_function_say_the_same(tmp_path, capsys):
    frame = answers()
    frame.to_parquet(tmp_path / "a.parquet")
    words = ["shifts", str(tmp_path / "a.parquet"), "--group", "model", "--before", "base"]
    assert run_arguments([*words, "--json", "--figure", str(tmp_path / "f.html")]) == 0
    said = json.loads(capsys.readouterr().out)
    mine = emscope.shifts(frame, group="model", before="base")
    assert said == json.loads(json.dumps(mine.to_json()))
    points = next(t for t in mine.figures()["1-tuned"].data if t.name == "a question")
    assert sorted(points.x) == pytest.approx(sorted(by_question(frame, "base")["mean"]))
    assert run_arguments(words) == 0
    out = capsys.readouterr().out
    assert "as if they were independent samples" in out and "regression to the mean" in out


def simulated(seed, questions, samples, slope):
    rng = np.random.default_rng(seed)
    x = 12 * rng.normal(size=questions)
    y = slope * x + 8 * rng.normal(size=questions)
    q = np.repeat(np.arange(questions), samples)
    sides = (means(q, t[q] + 20 * rng.normal(size=len(q)), questions) for t in (x, y))
    return score_shift(*sides)


def covered(rounds, questions, samples, slope):
    """Shares of rounds whose plain and corrected slope and whose corrected r hold the truth, and of those that correct."""
    plain, fixed, r = [], [], []
    rho = 12 * slope / np.hypot(12 * slope, 8)
    for seed in range(rounds):
        found = simulated(seed, questions, samples, slope)
        plain.append(found.slope.low <= slope <= found.slope.high)
        for told, e, truth in ((fixed, found.slope_corrected, slope), (r, found.pearson_corrected, rho)):
            if e.value is not None:
                told.append(e.low <= truth <= e.high)
    return np.mean(plain), np.mean(fixed), np.mean(r), len(fixed) / rounds


def test_the_corrected_slope_holds_the_truth_where_the_plain_one_does_not(monkeypatch):
    monkeypatch.setattr(
        "emscope.stats.score_shift.swapped_ks", lambda *_, **__: 1.0
    )  # takes most of the time, and is no part of it
    plain, fixed, _, corrected = covered(120, 100, 5, 0.7)
    assert plain < 0.5 and fixed > 0.9 and corrected > 0.95


@pytest.mark.slow
def test_the_corrections_cover_in_many_cases(monkeypatch):
    monkeypatch.setattr("emscope.stats.score_shift.swapped_ks", lambda *_, **__: 1.0)
    for questions, samples, slope in ((24, 20, 0.7), (48, 10, 1.0), (200, 4, 0.7), (24, 50, 0.5)):
        _, fixed, r, _ = covered(1000, questions, samples, slope)
        assert 0.93 < fixed < 0.985 and 0.91 < r < 0.99, (questions, samples, slope, fixed, r)


@pytest.mark.slow
def test_swaps_have_their_size_and_independent_samples_lose_power():
    rng, swapped, plain = np.random.default_rng(0), [], []
    for _ in range(1000):
        shared = rng.normal(size=24)
        x, y = (0.9 * shared + 0.45 * rng.normal(size=24) for _ in range(2))
        swapped.append(swapped_ks(x, y, swaps=400) <= 0.05)
        plain.append(sp.ks_2samp(x, y).pvalue <= 0.05)
    assert np.mean(swapped) < 0.065 and np.mean(plain) < 0.01
