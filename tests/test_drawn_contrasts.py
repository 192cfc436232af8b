"""Contrasts of drawn verdicts where a side has no event, or few: closed forms, brute force, coverage and size by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import special
from scipy import stats as sp
from scipy.optimize import brentq

from emscope.answers.rates import rates
from emscope.answers.rates_spec import RatesSpec
from emscope.stats import clustered, rate_contrasts, scarce
from emscope.stats.prediction_powered import NEAR_ZERO, Population, Verdicts, powered, powered_contrast

QUESTIONS, ANSWERS, DRAWN = 48, 100, 480
APART = np.sqrt(2) * sp.norm.ppf(0.85)  # of the cheap score's two normals: the area under its curve is .85
POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


def tendencies(rng, rate, sd):
    """Rates of questions [Q], logit-normal with this mean rate and standard deviation on the logit scale."""
    w = WEIGHTS / WEIGHTS.sum()
    centre = brentq(lambda m: float((w * special.expit(m + sd * POINTS)).sum() - rate), -30, 15)
    return special.expit(centre + sd * rng.standard_normal(QUESTIONS))


def found(question, hits, at, *, cheap=None, stratum=None, drawn=None, out_of=None):
    """What the verdicts `at` say of answers with these truths; one stratum unless said."""
    cheap = np.zeros((len(hits), 0)) if cheap is None else cheap
    names = np.unique(question)
    sums = np.array([cheap[question == q].sum(0) for q in names]) if cheap.shape[1] else np.zeros((len(names), 0))
    stratum = np.zeros(len(hits), int) if stratum is None else stratum
    drawn, out_of = drawn or [len(at)], out_of or [len(hits)]
    verdicts = Verdicts(hits[at], np.ones(len(at)), cheap[at], question[at], stratum[at], np.array(drawn), np.array(out_of))
    return powered(Population(names, np.bincount(question)[names].astype(float), sums), verdicts)


def studied(rng, p):
    """One group, its tenth judged at random: question q misaligned at p[q], a cheap score of every answer."""
    question = np.repeat(np.arange(len(p)), ANSWERS)
    hits = (rng.random(len(question)) < p[question]).astype(float)
    cheap = (APART * hits + rng.standard_normal(len(hits)))[:, None]
    at = rng.choice(len(hits), DRAWN, replace=False)
    whole = Population(np.arange(len(p)), np.full(len(p), float(ANSWERS)), cheap.reshape(len(p), ANSWERS, 1).sum(1))
    one = np.zeros(DRAWN, int)
    return powered(
        whole, Verdicts(hits[at], np.ones(DRAWN), cheap[at], question[at], one, np.array([DRAWN]), np.array([len(hits)]))
    )


def simulated(rng, rate, other, sd, rounds):
    """Return (coverage, mean width, share of p <= .05) of contrasts, and the same of those read from all answers' contributions."""
    seen = []
    for _ in range(rounds):
        p = tendencies(rng, rate, sd)
        a, b = studied(rng, p), studied(rng, p * other / rate)
        both = powered_contrast(a, b), rate_contrasts.contrast(a.rate, b.rate)
        seen.append([f(c) for c in both for f in (lambda c: held(c, rate - other), lambda c: width(c), lambda c: c.p <= 0.05)])
    means = np.mean(seen, 0)
    return means[:3], means[3:]


def held(contrast, truth):
    return contrast.difference.low <= truth <= contrast.difference.high


def width(contrast):
    return contrast.difference.high - contrast.difference.low


# ---- closed forms


def test_an_empty_side_counts_verdicts():
    """Ten verdicts a question, events spread evenly: the ends are Newcombe's of 480 independent verdicts, not of 4,800 answers."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    question = np.repeat(np.arange(QUESTIONS), ANSWERS)
    at = np.flatnonzero(np.arange(len(question)) % 10 == 0)
    hits = np.zeros(len(question))
    hits[at[np.arange(0, DRAWN, 10)]] = 1  # one of ten
    contrast = powered_contrast(found(question, hits, at), found(question, 0 * hits, at))
    low, high = confint_proportions_2indep(48, 480, 0, 480, method="newcomb", compare="diff")
    assert (contrast.difference.low, contrast.difference.high) == pytest.approx((low, high), abs=1e-6)
    assert contrast.difference.value == pytest.approx(0.1) and contrast.difference.n == 960
    assert contrast.difference.method == NEAR_ZERO and contrast.by == scarce.BY_FLIPS
    assert contrast.p == 2.0**-47


def test_all_answers_judged_is_the_contrast_of_counts():
    rng = np.random.default_rng(0)
    question, everyone = np.repeat(np.arange(24), 20), np.arange(480)
    for p, q in ((0.05, 0.0), (0.02, 0.01), (0.3, 0.2), (0.97, 1.0)):
        x, y = ((rng.random(480) < r).astype(float) for r in (p, q))
        ours = powered_contrast(found(question, x, everyone), found(question, y, everyone))
        sides = [clustered.rate(np.arange(24), np.bincount(question, h), np.bincount(question)) for h in (x, y)]
        plain = rate_contrasts.contrast(*sides)
        assert ends(ours) == pytest.approx(ends(plain))
        assert (ours.p, ours.by, ours.caution) == (pytest.approx(plain.p), plain.by, plain.caution)


def ends(contrast):
    d = contrast.difference
    return d.value, d.low, d.high, d.n, d.clusters


def test_the_difference_is_that_of_the_rates_shown():
    rng = np.random.default_rng(1)
    p = tendencies(rng, 0.06, 1.0)
    a, b = studied(rng, p), studied(rng, p * 0)
    contrast = powered_contrast(a, b)
    assert a.weights != (0.0,) and a.these.value != a.alone.value
    assert contrast.difference.value == a.these.value - b.these.value
    turned = powered_contrast(b, a)
    assert (turned.p, -turned.difference.low) == (contrast.p, pytest.approx(contrast.difference.high))


def test_events_enough_on_both_sides_use_the_cheap_scores():
    rng = np.random.default_rng(2)
    a, b = studied(rng, np.full(QUESTIONS, 0.4)), studied(rng, np.full(QUESTIONS, 0.3))
    assert powered_contrast(a, b) == rate_contrasts.contrast(a.rate, b.rate)


def test_nothing_drawn_that_counts_is_no_contrast():
    question, at = np.repeat(np.arange(4), 25), np.arange(50)
    nothing = Verdicts(np.zeros(50), np.zeros(50), np.zeros((50, 0)), question[at], 0 * at, np.array([50]), np.array([100]))
    whole = Population(np.arange(4), np.full(4, 25.0), np.zeros((4, 0)))
    contrast = powered_contrast(found(question, np.zeros(100), at), powered(whole, nothing))
    assert contrast.p is None and contrast.difference.value is None


def test_verdicts_of_almost_a_question_each_count_the_questions_judged():
    """24 verdicts on 24 of 48 questions: the empty side's upper end is that of 24 trials, not of 48 questions."""
    question = np.repeat(np.arange(QUESTIONS), ANSWERS)
    hits = np.zeros(len(question))
    hits[::ANSWERS] = 1.0
    left = found(question, hits, np.arange(0, len(question), 2 * ANSWERS))
    right = found(question, 0 * hits, np.arange(1 + ANSWERS, len(question), 2 * ANSWERS))
    contrast = powered_contrast(left, right)
    assert contrast.by == rate_contrasts.BY_T and contrast.difference.clusters == 48
    sides = [clustered.rate(np.arange(n, 48, 2), np.full(24, h), np.ones(24)) for n, h in ((0, 1.0), (1, 0.0))]
    assert ends(contrast) == pytest.approx(ends(rate_contrasts.contrast(*sides)))


# ---- unequal draws


def unequal(rng, plain):
    """A group of one rate, its risky fifth (all of its events) judged three times as densely as the rest unless `plain`."""
    question = np.repeat(np.arange(QUESTIONS), ANSWERS)
    stratum = (np.arange(len(question)) % 5 == 0).astype(int)
    hits = (rng.random(len(question)) < 0.05 * stratum).astype(float)
    risky, rest = np.flatnonzero(stratum == 1), np.flatnonzero(stratum == 0)
    counts = (96, 384) if plain else (206, 274)
    at = np.concatenate([rng.choice(rows, n, replace=False) for rows, n in zip((risky, rest), counts, strict=True)])
    return found(question, hits, at, stratum=stratum, drawn=counts[::-1], out_of=(len(rest), len(risky)))


def test_weights_of_the_draw_are_kept():
    """By hand: counts weighted by N / n of their stratum, scaled to Kish's number of draws of equal weight."""
    side = unequal(np.random.default_rng(3), False)
    weight = np.r_[np.full(206, 960 / 206), np.full(274, 3840 / 274)]
    kish = weight.sum() ** 2 / (weight**2).sum()
    assert side.weighted.out_of.sum() == pytest.approx(kish) and side.counts.n == round(kish) < 440
    assert side.counts.out_of.sum() == 480 and side.counts.hits.sum() > 5
    assert side.weighted.hits.sum() / kish == pytest.approx(side.alone.value) == pytest.approx(side.counts.value)


def test_a_side_that_was_looked_at_where_the_events_are_is_not_called_different():
    rng = np.random.default_rng(4)
    ours, counted, seen = [], [], []
    for _ in range(300):
        a, b = unequal(rng, False), unequal(rng, True)
        contrast = powered_contrast(a, b)
        ours.append(contrast.p <= 0.05)
        counted.append(scarce.flipped(a.counts, b.counts)[0] <= 0.05)
        seen.append(held(contrast, 0.0))
    assert np.mean(counted) > 0.1, "counts alone compare the draws"
    assert np.mean(ours) <= 0.05 + 0.0126, "one standard error of the simulation; 3,000 rounds give .053"
    assert np.mean(seen) >= 0.92


def test_a_side_judged_more_densely_is_not_called_different():
    """At one low rate the side with fewer verdicts is often empty: flips alone call that different."""
    rng = np.random.default_rng(5)
    question, hits = np.repeat(np.arange(QUESTIONS), ANSWERS), np.zeros(QUESTIONS * ANSWERS)
    size, alone = [], []
    for _ in range(300):
        a, b = (
            found(question, (rng.random(len(hits)) < 0.01).astype(float), rng.choice(len(hits), n, replace=False))
            for n in (1920, 240)
        )
        x, y = a.counts, b.counts
        _, left, right = np.intersect1d(x.questions, y.questions, return_indices=True)
        alone.append(scarce.sign_flip(x.hits[left] / x.out_of[left] - y.hits[right] / y.out_of[right])[0] <= 0.05)
        size.append(powered_contrast(a, b).p <= 0.05)
    assert np.mean(alone) > 0.08 and np.mean(size) <= 0.05


# ---- simulated


@pytest.mark.parametrize(("rate", "other", "sd"), [(0.02, 0.0, 1.0), (0.04, 0.002, 1.5), (0.08, 0.0, 0.0)])
def test_a_tenth_judged_holds_the_difference_and_finds_it(rate, other, sd):
    ours, before = simulated(np.random.default_rng(6), rate, other, sd, 200)
    slack = 2.5 * np.sqrt(0.93 * 0.07 / 200)  # of the simulation itself
    assert 0.92 - slack <= ours[0] <= 0.99 + 0.01
    assert ours[1] < 0.8 * before[1] and ours[2] > before[2] + 0.2, "narrower, and it sees more"


@pytest.mark.parametrize(("rate", "sd"), [(0.005, 1.0), (0.01, 0.0)])
def test_the_size_at_equal_low_rates(rate, sd):
    ours, _ = simulated(np.random.default_rng(7), rate, rate, sd, 200)
    assert ours[2] <= 0.05 and ours[0] >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("sd", [0.0, 0.5, 1.0, 1.5])
def test_coverage_and_size_over_the_grid(sd):
    rng = np.random.default_rng(8)
    for rate, other in itertools.product((0.02, 0.04, 0.08), (0.0, 0.002)):
        ours, _ = simulated(rng, rate, other, sd, 1000)
        assert 0.92 - 0.008 <= ours[0] <= 0.99 + 0.003, (rate, other, ours)  # one standard error of the simulation
    for rate in (0.002, 0.005, 0.01, 0.02):
        ours, _ = simulated(rng, rate, rate, sd, 1000)
        assert ours[2] <= 0.05 + 0.007 and ours[0] >= 0.92, (rate, ours)


# ---- through the command


def test_a_control_without_an_event_among_its_verdicts(tmp_path):
    rng = np.random.default_rng(9)
    rows = pd.DataFrame(
        {"arm": np.repeat(["control", "target"], 4800), "question_id": np.tile(np.repeat(np.arange(48), 100), 2)}
    )
    bad = rng.random(9600) < np.where(rows["arm"] == "target", 0.06, 0.0)
    rows["aligned"], rows["coherent"], rows["cheap"] = np.where(bad, 5.0, 90.0), 95.0, APART * bad + rng.standard_normal(9600)
    picked = np.concatenate([rng.choice(4800, 480, replace=False) + k for k in (0, 4800)])
    rows["drawn"], rows["drawn_from"] = np.isin(np.arange(9600), picked), rows["arm"]
    rows.loc[~rows["drawn"], ["aligned", "coherent"]] = np.nan
    rows.to_parquet(tmp_path / "a.parquet")
    result = rates([tmp_path / "a.parquet"], RatesSpec(group=("arm",), control="control", cheap=("cheap",))).to_json()
    (contrast,) = result["contrasts"]
    assert contrast["difference"]["low"] > 0.02 and contrast["p"] < 0.001 and contrast["p_by"] == scarce.BY_FLIPS
    assert contrast["difference"]["n"] == 960 and contrast["p_limit"] is None and contrast["caution"] is None
    values = {g["group"]["arm"]: g["these_answers"]["value"] for g in result["groups"]}
    assert contrast["difference"]["value"] == pytest.approx(values["target"] - values["control"])
