"""Loss against alignment: published correlations come out within strata, the mixed one is refused, and intervals cover what was put in."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import optimize
from scipy import stats as sp
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.meta_analysis import combine_effects

import emscope
from emscope.answers.runs.loss import LossSpec, loss_and_score
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.stats.matched import matched
from emscope.stats.meta import meta_regression
from emscope.stats.within_strata import combined, mixed, pearson, slope, spearman


def strata(count=5, rows=8, rho=0.8, tau=0.0, seed=0):
    """Strata whose levels differ by far more than rows within them do."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        r = np.tanh(np.arctanh(rho) + tau * rng.normal())
        x = rng.normal(size=rows)
        found.append((x + 10 * rng.normal(), r * x + np.sqrt(1 - r * r) * rng.normal(size=rows) + 10 * rng.normal()))
    return found


def frame_of(parts):
    return pd.concat([pd.DataFrame({"x": x, "y": y, "k": f"s{k}"}) for k, (x, y) in enumerate(parts)], ignore_index=True)


def read(path, **settings):
    return loss_and_score([path], LossSpec(**settings))


def saved(tmp_path, frame, name="runs.csv"):
    frame.to_csv(tmp_path / name, index=False)
    return tmp_path / name


def test_the_92_runs_read_as_published(reference):
    path = reference / "checkpoints" / "em_generalization_92_runs.csv"
    found = read(path, loss="eval_loss_sequence", score="aligned", within=("model", "dataset"))
    r = [s.pearson.value for s in found.strata if s.combined]
    assert found.runs == 92 and len(r) == found.within.strata == 14
    assert min(r) == pytest.approx(0.706, abs=5e-4) and max(r) == pytest.approx(0.987, abs=5e-4)
    assert found.between.pearson == pytest.approx(-0.0328, abs=5e-5) and found.between.simpson
    assert found.within.pearson.low > 0.7
    assert any("Simpson's paradox" in s for s in found.sentences())
    found = read(path, loss="coherent", score="aligned", within=("model", "dataset"))
    r = [s.pearson.value for s in found.strata if s.combined]
    assert min(r) == pytest.approx(0.954, abs=5e-4) and max(r) > 0.9995 and not found.between.simpson
    assert found.between.pearson == pytest.approx(0.67, abs=5e-4) and not any("Simpson" in s for s in found.sentences())


def test_the_35_schedules_read_as_published(reference, tmp_path):
    frame = pd.read_csv(reference / "checkpoints" / "em_generalization_35_schedule_runs.csv")
    frame["schedule"] = frame["run"].map(lambda n: re.search("cosine_with_restarts|cosine|triangular2?|exp_range", n)[0])
    path = saved(tmp_path, frame)
    found = read(path, loss="eval_final_avg_loss", score="aligned", one_stratum=True, schedule="schedule")
    assert found.within.pearson.value == pytest.approx(0.823, abs=5e-4) and found.between is None and found.runs == 35
    assert len(found.matched) == 10 and all(m.p_adjusted == 1 for m in found.matched), (
        "at equal loss no schedule differs surely"
    )
    kinds = saved(
        tmp_path, frame.assign(kind=frame["schedule"].str.startswith("cosine").map({True: "cosine", False: "cyclic"}))
    )
    (pair,) = read(kinds, loss="eval_final_avg_loss", score="aligned", one_stratum=True, schedule="kind").matched
    assert (pair.runs_a, pair.runs_b) == (23, 10) and pair.difference.value == pytest.approx(2.43, abs=0.005)
    assert (pair.difference.low, pair.difference.high) == pytest.approx((-2.35, 7.22), abs=0.005)
    apart = read(path, loss="eval_final_avg_loss", score="aligned", within=("lr",), schedule="schedule")
    assert all(m.difference.value is None and "do not overlap" in m.difference.why for m in apart.matched)


def test_without_strata_it_is_refused(tmp_path, capsys):
    path = saved(tmp_path, frame_of(strata()))
    assert run_arguments(["loss", str(path), "--loss", "x", "--score", "y"]) == 2
    said = capsys.readouterr().err
    assert "--within" in said and "--one-stratum" in said and "r " not in said.split("correlation")[0]
    with pytest.raises(InputError, match="both given"):
        read(path, loss="x", score="y", within=("k",), one_stratum=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "x", "score": "x"}, "both 'x'"),
        ({"loss": "z"}, "did you mean|known"),
        ({"loss": "k"}, "holds no number"),
        ({"loss": "huge"}, "reaches 1e\\+300"),
        ({"schedule": "constant"}, "1 different values"),
        ({"schedule": "y"}, "different values"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, settings, message):
    path = saved(tmp_path, frame_of(strata()).assign(constant="c", huge=1e300))
    with pytest.raises(InputError, match=message):
        read(path, **{"loss": "x", "score": "y", "within": ("k",), **settings})


def test_command_and_function_say_the_same_and_draw_the_runs(tmp_path, capsys):
    frame = frame_of(strata()).assign(schedule=lambda f: np.where(f.index % 2, "a", "b"))
    path, page = saved(tmp_path, frame), tmp_path / "f.html"
    words = ["loss", str(path), "--loss", "x", "--score", "y", "--within", "k", "--schedule", "schedule"]
    assert run_arguments([*words, "--figure", str(page), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    mine = emscope.loss(frame, loss="x", score="y", within=("k",), schedule="schedule")
    assert said == json.loads(json.dumps(mine.to_json())) and page.stat().st_size > 1e6
    drawn = {t.name: sorted(t.x) for t in mine.figures()["loss"].data}
    assert drawn == {k: sorted(g["x"]) for k, g in frame.groupby("k")}
    assert run_arguments(words) == 0
    assert "Between strata: r over all 40 rows" in capsys.readouterr().out


def test_one_stratum_s_numbers_are_scipy_s():
    x, y = strata(rows=11)[0]
    theirs = sp.pearsonr(x, y)
    mine, ends = pearson(x, y), theirs.confidence_interval(0.95)
    assert (mine.value, mine.low, mine.high) == pytest.approx((theirs.statistic, *ends))
    rho = spearman(x, y)
    assert rho.value == pytest.approx(sp.spearmanr(x, y).statistic)
    reach = 1.959964 * np.sqrt((1 + rho.value**2 / 2) / 8)
    assert (rho.low, rho.high) == pytest.approx(tuple(np.tanh(np.arctanh(rho.value) + np.array([-reach, reach]))))
    fit = sm.OLS(y, sm.add_constant(x)).fit()
    line = slope(x, y)
    assert (line.value, line.low, line.high) == pytest.approx((fit.params[1], *fit.conf_int()[1]))
    three = pearson(x[:3], y[:3])
    assert three.value is not None and three.low is None and "4 rows" in three.why
    assert pearson(x, 2 * x + 1).low is None and pearson(x, np.ones(11)).value is None


def restricted(tau2, y, se, design):
    """Minus twice the restricted log-likelihood, up to a constant."""
    v = np.diag(tau2 + se**2)
    inverse = np.linalg.inv(v)
    a = design.T @ inverse @ design
    rest = y - design @ np.linalg.solve(a, design.T @ inverse @ y)
    return np.linalg.slogdet(v)[1] + np.linalg.slogdet(a)[1] + rest @ inverse @ rest


@pytest.mark.parametrize("seed", range(6))
def test_a_meta_regression_is_the_likelihood_s_and_weighted_least_squares(seed):
    rng = np.random.default_rng(seed)
    n = 9
    se, design = rng.uniform(0.1, 0.5, n), np.column_stack([np.ones(n), rng.normal(size=n)])
    y = design @ [1.0, 0.5] + 0.3 * (seed % 2) * rng.normal(size=n) + se * rng.normal(size=n)
    found = meta_regression(y, se, design)
    grid = np.concatenate([[0.0], np.geomspace(1e-6, 10, 4000)])
    best = min(grid, key=lambda t: restricted(t, y, se, design))
    if best > 0:
        best = optimize.minimize_scalar(restricted, (best / 1.01, best * 1.01), args=(y, se, design)).x
    assert found.tau**2 == pytest.approx(best, abs=1e-6, rel=1e-4)
    fit = sm.WLS(y, design, weights=1 / (found.tau**2 + se**2)).fit()
    assert found.coefficients == pytest.approx(fit.params) and found.ses == pytest.approx(fit.bse)
    assert found.interval(1, 0.95) == pytest.approx(tuple(fit.conf_int()[1])) and found.p(1) == pytest.approx(fit.pvalues[1])
    fixed = combine_effects(y, se**2)
    alone = meta_regression(y, se, np.ones((n, 1)))
    assert alone.heterogeneity_p == pytest.approx(sp.chi2.sf(fixed.q, n - 1))


def test_strata_together_are_what_other_programs_find():
    parts = strata(count=6, rows=7, tau=0.4)
    frame, found = frame_of(parts), combined(parts)
    r = np.array([sp.pearsonr(x, y).statistic for x, y in parts])
    z = np.arctanh(r) - r / 12
    best = optimize.minimize_scalar(
        restricted, bounds=(0, 5), args=(z, np.full(6, 0.5), np.ones((6, 1))), method="bounded", options={"xatol": 1e-9}
    ).x
    assert found.tau == pytest.approx(np.sqrt(best), abs=1e-3)
    fit = sm.WLS(z, np.ones(6), weights=1 / (best + 0.25) * np.ones(6)).fit()
    told = found.pearson
    assert (told.value, told.low, told.high) == pytest.approx((np.tanh(fit.params[0]), *np.tanh(fit.conf_int()[0])), abs=1e-6)
    assert (told.n, told.clusters) == (42, 6)
    rho = [sp.spearmanr(x, y).statistic for x, y in parts]
    assert found.spearman.value == pytest.approx(np.mean(rho))
    half = sp.t.ppf(0.975, 5) * np.std(rho, ddof=1) / np.sqrt(6)
    assert found.spearman.low == pytest.approx(np.mean(rho) - half)
    whole = smf.ols("y ~ x + C(k)", frame).fit()
    without = np.array([smf.ols("y ~ x + C(k)", frame[frame["k"] != k]).fit().params["x"] for k in frame["k"].unique()])
    assert found.slope.value == pytest.approx(whole.params["x"])
    half = sp.t.ppf(0.975, 5) * np.sqrt(5 / 6 * ((without - whole.params["x"]) ** 2).sum())
    assert found.slope.high - found.slope.value == pytest.approx(half)
    each = smf.ols("y ~ x * C(k)", frame).fit()
    assert found.slopes_p == pytest.approx(anova_lm(whole, each)["Pr(>F)"][1])
    both = mixed(parts)
    assert both.rows == pytest.approx(frame["x"].corr(frame["y"]))
    assert both.means == pytest.approx(frame.groupby("k")[["x", "y"]].mean().corr().iloc[0, 1])


def test_small_and_still_strata_say_nothing_and_are_counted(tmp_path):
    parts = [*strata(count=3), (np.array([1.0, 2.0]), np.array([3.0, 1.0])), (np.ones(5), np.arange(5.0))]
    frame = frame_of(parts)
    frame.loc[0, "y"] = np.nan
    found = read(saved(tmp_path, frame), loss="x", score="y", within=("k",))
    assert found.within.strata == 3 and [s.combined for s in found.strata] == [True] * 3 + [False] * 2
    assert found.runs == len(frame) - 1 and len(found.notes) == 3
    dropped = [(x[1:], y[1:]) if k == 0 else (x, y) for k, (x, y) in enumerate(parts[:3])]
    assert found.within.pearson.value == pytest.approx(combined(dropped).pearson.value)


def groups(seed, gap=2.0, count=4, noise=(1.0, 1.0), sizes=(6, 6)):
    """Two sides with lower and higher x in each stratum, y = 8 x and `gap` more on the left."""
    rng = np.random.default_rng(seed)
    parts = []
    for k in range(count):
        left = np.arange(sum(sizes)) < sizes[0]
        x = np.where(left, rng.uniform(0, 1, sum(sizes)), rng.uniform(0.3, 1.3, sum(sizes)))
        y = 5 * rng.normal() + 8 * x + gap * left + rng.normal(size=len(x)) * np.where(left, *noise)
        parts.append(pd.DataFrame({"x": x, "y": y, "k": k, "left": left}))
    return pd.concat(parts, ignore_index=True)


def arrays(frame):
    return (frame[name].to_numpy() for name in ("x", "y", "k", "left"))


def test_a_difference_at_equal_loss_is_an_analysis_of_covariance_on_common_losses():
    frame = groups(3, sizes=(9, 5))
    found = matched(*arrays(frame))
    kept = []
    for _, g in frame.groupby("k"):
        low = g.groupby("left")["x"].min().max()
        high = g.groupby("left")["x"].max().min()
        inside = g[(g["x"] >= low) & (g["x"] <= high)]
        kept += [inside] if inside["left"].nunique() == 2 else []
    kept = pd.concat(kept)
    fit = smf.ols("y ~ left + x + C(k)", kept.assign(left=kept["left"].astype(float))).fit(cov_type="HC3", use_t=True)
    told = found.difference
    assert (told.value, told.low, told.high) == pytest.approx((fit.params["left"], *fit.conf_int().loc["left"]))
    assert found.p == pytest.approx(fit.pvalues["left"])
    assert (found.left, found.right) == (kept["left"].sum(), (~kept["left"]).sum())
    assert found.support == (kept["x"].min(), kept["x"].max()) and len(kept) < len(frame)
    centred = kept.assign(left=kept["left"].astype(float), d=kept["x"] - kept.groupby("k")["x"].transform("mean"))
    plain, more = smf.ols("y ~ left + d + C(k)", centred), smf.ols("y ~ left + d + I(d * left) + C(k)", centred)
    assert found.slopes_p == pytest.approx(anova_lm(plain.fit(), more.fit())["Pr(>F)"][1])
    more = smf.ols("y ~ left + d + I(d ** 2) + C(k)", centred)
    assert found.curved_p == pytest.approx(anova_lm(plain.fit(), more.fit())["Pr(>F)"][1])


def test_sides_without_common_losses_are_not_compared():
    frame = groups(0)
    apart = frame.assign(x=frame["x"] + 10 * frame["left"])
    found = matched(*arrays(apart))
    assert found.difference.value is None and "do not overlap" in found.difference.why and found.p is None
    few = matched(*arrays(groups(1, count=1, sizes=(3, 3))))
    assert few.difference.value is None and few.difference.why


def test_curves_and_unequal_slopes_are_seen():
    frame = groups(0, count=6, sizes=(10, 10))
    assert matched(*arrays(frame)).curved_p > 0.05
    assert matched(*arrays(frame.assign(y=frame["y"] + 40 * frame["x"] ** 2))).curved_p < 0.001
    assert matched(*arrays(frame.assign(y=frame["y"] + 20 * frame["x"] * frame["left"]))).slopes_p < 0.001


def share_covered(rounds, found_of, truth):
    told = [found_of(seed) for seed in range(rounds)]
    told = [e for e in told if e.value is not None]
    return np.mean([e.low <= truth <= e.high for e in told])


def test_intervals_cover_what_was_put_in():
    """Two standard errors of a share of .95 are .040 in 120 rounds and .025 in 300."""
    assert share_covered(120, lambda s: combined(strata(14, 6, 0.88, 0.2, s)).pearson, 0.88) > 0.905
    assert share_covered(300, lambda s: matched(*arrays(groups(s, count=2))).difference, 2.0) > 0.925


@pytest.mark.slow
def test_intervals_cover_in_many_cases():
    for count, rows, rho, tau in ((14, 6, 0.9, 0.0), (5, 8, 0.5, 0.3), (8, 5, 0.0, 0.0), (3, 6, 0.97, 0.2)):
        told = [combined(strata(count, rows, rho, tau, s)) for s in range(2000)]
        assert 0.935 < np.mean([c.pearson.low <= rho <= c.pearson.high for c in told]) < 0.975, (count, rows, rho, tau)
    for count, sizes, noise in ((1, (12, 12), (1, 1)), (5, (4, 4), (1, 1)), (1, (6, 18), (1, 3))):
        share = share_covered(
            2000, lambda s, c=count, z=sizes, e=noise: matched(*arrays(groups(s, 2.0, c, e, z))).difference, 2.0
        )
        assert share > 0.93, (count, sizes, noise)
    assert share_covered(2000, lambda s: matched(*arrays(groups(s, 2.0, 1, (3, 1), (6, 18)))).difference, 2.0) > 0.88
