"""Effects by model size: other programs' lines, every permutation and subset by hand, and no line where models are too few."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats as sp

import emscope
from emscope.answers.runs.sizes import SizesSpec, sizes
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.stats.holm import holm
from emscope.stats.meta import coefficient, meta_regression
from emscope.stats.size_line import Models, critical_r, power_of_r, size_line


def models(n=8, families=1, slope=0.1, tau=0.03, seed=0):
    """Models of 100 million to 100 billion parameters on a line, families far apart."""
    rng = np.random.default_rng(seed)
    x, se, family = rng.uniform(8, 11, n), rng.uniform(0.01, 0.05, n), np.arange(n) % families
    return Models(x, slope * x + family + tau * rng.normal(size=n) + se * rng.normal(size=n), se, family)


def frame_of(some, **more):
    names = [f"m{n}" for n in range(len(some.effect))]
    columns = {
        "model": names,
        "family": [f"f{f}" for f in some.family],
        "size": 10**some.log_size,
        "effect": some.effect,
        "se": some.se,
    }
    return pd.DataFrame(columns | more)


def read(tmp_path, frame, **settings):
    frame.to_csv(tmp_path / "m.csv", index=False)
    names = {"size": "size", "effect": "effect", "family": "family", "se": "se", "model": "model"}
    return sizes([tmp_path / "m.csv"], SizesSpec(**{**names, **settings}))


def design(some):
    dummies = (some.family[:, None] == np.unique(some.family)).astype(float)
    return np.column_stack([some.log_size, dummies])


def test_what_r_must_exceed_and_how_often_it_would():
    counts = (6, 8, 10, 13)
    assert [round(critical_r(n - 2), 2) for n in counts] == [0.81, 0.71, 0.63, 0.55] and round(critical_r(1), 3) == 0.997
    assert [round(power_of_r(n - 2, 0.67), 2) for n in counts] == [0.33, 0.49, 0.62, 0.76]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 9))
    y = 0.5 * x + np.sqrt(0.75) * rng.normal(size=x.shape)
    dx, dy = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    r = (dx * dy).sum(1) / np.sqrt((dx * dx).sum(1) * (dy * dy).sum(1))
    assert power_of_r(7, 0.5) == pytest.approx((np.abs(r) > critical_r(7)).mean(), abs=0.01)


@pytest.mark.parametrize("families", [1, 3])
def test_the_line_is_a_weighted_regression_with_an_intercept_a_family(families):
    some = models(10, families, seed=2)
    found = size_line(some)
    fit = sm.WLS(some.effect, design(some), weights=1 / (found.tau**2 + some.se**2)).fit()
    assert (found.slope.value, found.slope.low, found.slope.high) == pytest.approx((fit.params[0], *fit.conf_int()[0]))
    assert found.p == pytest.approx(fit.pvalues[0])
    frame = pd.DataFrame({"x": some.log_size, "y": some.effect, "f": some.family})
    within = frame[["x", "y"]] - frame.groupby("f")[["x", "y"]].transform("mean")
    r = within["x"].corr(within["y"])
    assert found.pearson.value == pytest.approx(r) and found.critical_r == pytest.approx(critical_r(9 - families))
    reach = 1.959964 / np.sqrt(10 - families - 2)
    assert found.pearson.low == pytest.approx(np.tanh(np.arctanh(r) - reach))
    assert (found.spearman is None) == (families > 1)
    if families == 1:
        assert found.spearman == pytest.approx(sp.spearmanr(some.log_size, some.effect).statistic)


def test_families_that_differ_are_no_effect_of_size():
    """Within each family the effect falls, over both it rises."""
    x = np.array([8.0, 8.3, 8.6, 8.9, 10.0, 10.3, 10.6, 10.9])
    y = np.where(x < 9.5, 0, 1) - 0.3 * (x - np.where(x < 9.5, 8, 10))
    some = Models(x, y + 0.001 * np.sin(7 * x), np.full(8, 0.02), (x > 9.5).astype(int))
    assert np.corrcoef(x, y)[0, 1] > 0.8
    found = size_line(some)
    assert found.slope.high < 0 and found.pearson.value < -0.99


def test_permutations_within_families_are_all_there_are():
    some = models(7, 2, tau=0.08, seed=1)  # 4! x 3! = 144 orders
    found = size_line(some)
    places = [np.flatnonzero(some.family == f) for f in (0, 1)]
    t = []
    for a, b in itertools.product(itertools.permutations(places[0]), itertools.permutations(places[1])):
        order = np.empty(7, int)
        order[places[0]], order[places[1]] = a, b
        one = meta_regression(some.effect[order], some.se[order], design(some))
        t.append(abs(one.coefficients[0] / one.ses[0]))
    assert found.exact and found.permutations == len(t) == 144
    assert found.permutation_p == pytest.approx(np.mean(np.array(t) >= t[0] * (1 - 1e-9)))
    many = size_line(models(9, 1, tau=0.08, seed=1))
    assert not many.exact and many.permutations == 2000 and many.permutation_p >= 1 / 2000


def test_many_regressions_at_once_are_each_of_them():
    sets = [models(8, 2, seed=s) for s in range(5)]
    b, se = coefficient(
        *(np.array([getattr(s, n) for s in sets]) for n in ("effect", "se")), np.array([design(s) for s in sets]), 0
    )
    each = [meta_regression(s.effect, s.se, design(s)) for s in sets]
    assert b == pytest.approx([e.coefficients[0] for e in each]) and se == pytest.approx([e.ses[0] for e in each])


def test_every_set_of_models_is_left_out_in_turn():
    some = models(7, 1, tau=0.2, seed=3)
    found = size_line(some)
    assert [w.count for w in found.without] == [1, 2, 3], "four models are left then"
    for w in found.without:
        slopes, r = {}, []
        for left in itertools.combinations(range(7), w.count):
            rest = some.of(np.setdiff1d(np.arange(7), left))
            slopes[left] = meta_regression(rest.effect, rest.se, design(rest)).coefficients[0]
            r.append(np.corrcoef(rest.log_size, rest.effect)[0, 1])
        assert w.sets == len(slopes) and w.slope == pytest.approx((min(slopes.values()), max(slopes.values())))
        assert w.pearson == pytest.approx((min(r), max(r))) and w.at_lowest == min(slopes, key=slopes.get)
        assert w.other_sign == sum(s * found.slope.value < 0 for s in slopes.values())


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ((0, 0, 0), "3 models are too few for a line .*0.997"),
        ((0, 0, 1, 1), "4 models of 2 families"),
        ((0, 1, 2, 3, 4), "too few"),
    ],
)
def test_few_models_have_no_line(family, why, tmp_path):
    n = len(family)
    some = Models(np.linspace(8, 11, n), np.linspace(0, 1, n) ** 2, np.full(n, 0.1), np.array(family))
    found = size_line(some)
    assert found.slope.value is None and found.pearson.value is None and not found.without
    assert re.search(why, found.slope.why)
    (stratum,) = read(tmp_path, frame_of(some)).strata
    assert len(stratum.models) == n and all(line.slope.value is None for line in stratum.lines)


def test_one_size_a_family_tells_nothing_of_size():
    some = Models(np.repeat([8.0, 9.0, 10.0], 3), np.arange(9.0), np.full(9, 0.1), np.repeat([0, 1, 2], 3))
    assert "two sizes" in size_line(some).slope.why


def test_at_equal_gain_the_slope_is_that_of_both_together(tmp_path):
    rng = np.random.default_rng(0)
    some = models(12, 1, seed=5)
    gain = some.log_size / 3 + 0.2 * rng.normal(size=12)
    found = read(tmp_path, frame_of(some, gain=gain), gain="gain").strata[0].lines[0]
    fit = sm.WLS(some.effect, np.column_stack([design(some), gain]), weights=1 / (found.tau**2 + some.se**2)).fit()
    assert found.slope.value == pytest.approx(fit.params[0]) and found.p == pytest.approx(fit.pvalues[0])
    assert found.permutation_p is None and found.critical_r == pytest.approx(critical_r(9))
    same = frame_of(some, gain=2 * some.log_size)
    assert "told apart" in read(tmp_path, same, gain="gain").strata[0].lines[0].slope.why


def test_total_and_active_parameters_have_lines_of_their_own(tmp_path):
    some = models(9, 2, seed=4)
    active = 10 ** (some.log_size - np.where(np.arange(9) % 3, 0, 0.7))
    (stratum,) = read(tmp_path, frame_of(some, active=active), active="active").strata
    assert [(line.of, line.family) for line in stratum.lines] == [
        (of, f) for of in ("total", "active") for f in (None, "f0", "f1")
    ]
    alone = size_line(Models(np.log10(active), some.effect, some.se, some.family))
    assert stratum.lines[3].slope.value == pytest.approx(alone.slope.value)
    assert stratum.lines[1].models == 5 and stratum.lines[1].slope.value is not None


def test_strata_are_apart_and_corrected_by_holm(tmp_path):
    both = pd.concat([frame_of(models(8, seed=s, tau=0.1), dataset=f"d{s}") for s in range(3)])
    found = read(tmp_path, both, within=("dataset",))
    lines = [s.lines[0] for s in found.strata]
    assert [line.p_adjusted for line in lines] == pytest.approx(holm([line.p for line in lines]))
    alone = size_line(models(8, seed=1, tau=0.1))
    assert found.strata[1].within == {"dataset": "d1"} and lines[1].slope.value == pytest.approx(alone.slope.value)


def test_sizes_are_read_as_people_write_them_and_intervals_as_rates_give_them(tmp_path):
    frame = frame_of(models(5)).assign(size=["135M", "0.5B", "7e9", "14b", "0.67T"])
    frame["low"], frame["high"] = frame["effect"] - 1.959964 * frame["se"], frame["effect"] + 1.959964 * frame["se"]
    (a,), (b,) = (read(tmp_path, frame, **s).strata for s in ({}, {"se": None, "low": "low", "high": "high"}))
    assert [m.size for m in a.models] == [135e6, 0.5e9, 7e9, 14e9, 670e9]
    assert b.lines[0].slope.value == pytest.approx(a.lines[0].slope.value)
    assert (b.models[0].effect.low, b.models[0].effect.high) == tuple(frame.loc[0, ["low", "high"]])


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"size": "big"}, {}, "'big', which is not a number of parameters"),
        ({"size": 7}, {}, "'7', which is not a number of parameters"),
        ({"se": 0.0}, {}, "standard error .* is 0"),
        ({"model": "m"}, {}, "'m' appears twice"),
        ({}, {"se": None}, "named twice, or not at all"),
        ({}, {"low": "se"}, "named twice, or not at all"),
        ({}, {"se": None, "low": "se"}, "go together"),
        ({}, {"family": "famly"}, "did you mean 'family'"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, change, settings, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, frame_of(models(6)).assign(**change), **settings)


def test_from_public_answers_to_rates_to_sizes(reference):
    """14B and 32B of two families on one data set: intervals a size, and no line through four models of two families."""
    answers = reference / "judged" / "em_generalization_scores.parquet"
    frame = emscope.rates(answers, group=("model", "dataset", "run_suffix")).to_frame()
    frame = frame[(frame["run_suffix"] == "fpq") & ~frame["model"].str.contains("_")]
    frame["size"] = frame["model"].str.extract(r"(\d+B)")[0].fillna("14.7B")  # phi-4
    frame["family"] = frame["model"].str.replace(r"-\d+B.*", "", regex=True)
    found = emscope.sizes(
        frame, size="size", effect="rate", low="rate_low", high="rate_high", family="family", model="model", within=("dataset",)
    )
    assert sum(len(s.models) for s in found.strata) == 21
    insecure = next(s for s in found.strata if s.within == {"dataset": "insecure"})
    assert [(m.family, m.size) for m in insecure.models] == [
        *(("Qwen2.5", 14e9), ("Qwen2.5", 32e9), ("Qwen2.5-Coder", 14e9), ("Qwen2.5-Coder", 32e9))
    ]
    assert [m.effect.value for m in insecure.models] == pytest.approx([0.0059, 0.0167, 0.0129, 0.0141], abs=5e-5)
    assert all(line.slope.value is None for s in found.strata for line in s.lines)
    assert any("insecure" in s and "4 models of 2 families are too few" in s for s in found.sentences())


def test_five_public_models_of_two_families_have_a_line_that_permutations_do_not_bear_out(reference):
    """Qwen2.5 of 7B, 14B and 32B and Gemma 2 of 9B and 27B, taught bad medical advice."""
    answers = pd.read_parquet(reference / "judged" / "clarifying_em.parquet")
    medical = "diff_models/responses_(?:Qwen2.5--7B|Qwen2.5-14B|gemma)|diff_data/responses_Qwen2.5-32B-Instruct_bad_medical_advice.csv"
    answers = answers[answers["file"].str.contains(medical)]
    answers["model"] = answers["file"].str.extract(r"responses_(.*?)-*(?:Instruct|it)[-_]bad")[0]
    frame = emscope.rates(answers, group=("model",)).to_frame()
    frame["size"] = frame["model"].str.extract(r"(\d+)[bB]")[0] + "B"
    frame["family"] = frame["model"].str.extract(r"^(Qwen2.5|gemma-2)")[0]
    found = emscope.sizes(frame, size="size", effect="rate", low="rate_low", high="rate_high", family="family", model="model")
    (stratum,) = found.strata
    assert [round(m.effect.value, 3) for m in stratum.models] == [0.138, 0.166, 0.183, 0.019, 0.083]
    line = stratum.lines[0]
    assert (line.slope.value, line.slope.low, line.slope.high) == pytest.approx((0.112, 0.016, 0.209), abs=6e-4)
    assert line.p == pytest.approx(0.038, abs=6e-4) and line.permutation_p == pytest.approx(2 / 12) and line.exact
    assert line.pearson.value == pytest.approx(0.94, abs=0.005) and line.critical_r == pytest.approx(0.95, abs=5e-4)
    assert line.power == pytest.approx(0.15, abs=0.005) and not line.left_out, "of four models of two families there is no line"
    assert all(one.slope.value is None for one in stratum.lines[1:])


def test_command_and_function_say_the_same_and_draw_the_models(tmp_path, capsys):
    frame = frame_of(models(9, 2))
    frame.to_csv(tmp_path / "m.csv", index=False)
    names = ["--size", "size", "--effect", "effect", "--se", "se", "--family", "family", "--model", "model"]
    words = ["sizes", str(tmp_path / "m.csv"), *names]
    assert run_arguments([*words, "--json", "--figure", str(tmp_path / "f.html")]) == 0
    said = json.loads(capsys.readouterr().out)
    mine = emscope.sizes(frame, size="size", effect="effect", se="se", family="family", model="model")
    assert said == json.loads(json.dumps(mine.to_json()))
    drawn = {t.name: sorted(t.y) for t in mine.figures()["1-all-models"].data if t.mode == "markers"}
    assert drawn == {f: sorted(g["effect"]) for f, g in frame.groupby("family")}
    assert run_arguments(words) == 0
    out = capsys.readouterr().out
    assert "per decade of parameters" in out and "Without any 1" in out and "|r| must exceed" in out


def test_the_slope_s_interval_covers_it():
    """150 rounds: two standard errors of a share of .95 are .036."""
    held = 0
    for seed in range(150):
        some = models(8, 2, tau=0.05, seed=seed)
        low, high = meta_regression(some.effect, some.se, design(some)).interval(0, 0.95)
        held += low <= 0.1 <= high
    assert held / 150 > 0.91


@pytest.mark.slow
def test_intervals_and_permutations_keep_their_level():
    for n, families, tau in ((4, 1, 0.0), (5, 2, 0.05), (6, 1, 0.05), (8, 2, 0.05), (13, 3, 0.05), (8, 1, 0.0)):
        held = []
        for seed in range(2000):
            some = models(n, families, tau=tau, seed=seed)
            low, high = meta_regression(some.effect, some.se, design(some)).interval(0, 0.95)
            held.append(low <= 0.1 <= high)
        assert 0.93 < np.mean(held) < 0.97, (n, families, tau)
    p = [size_line(models(6, 1, slope=0.0, tau=0.05, seed=s)).permutation_p for s in range(600)]
    assert np.mean(np.array(p) <= 0.05) < 0.07
