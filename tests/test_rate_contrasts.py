"""Contrasts of rates near zero, of these questions, and at equal length: against brute force, scipy, statsmodels, and simulated."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy import special
from scipy import stats as sp
from scipy.optimize import brentq

from emscope.answers.rates import rates
from emscope.answers.rates_spec import RatesSpec
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.stats import clustered, rate_contrasts, resampled, scarce, these_questions
from emscope.stats.adjusted import Scored, adjusted_difference, adjusted_within
from emscope.stats.rates import wilson

POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
GRID = [(24, 100), (48, 100), (48, 20), (100, 50)]


def tendencies(rng, rounds, questions, rate, sd):
    """Rates of questions [rounds, questions], logit-normal with this mean rate and standard deviation on the logit scale."""
    w = WEIGHTS / WEIGHTS.sum()
    centre = brentq(lambda m: float((w * special.expit(m + sd * POINTS)).sum() - rate), -30, 15)
    return special.expit(centre + sd * rng.standard_normal((rounds, questions)))


def side(hits, answers, **more):
    hits = np.asarray(hits)
    return clustered.rate(np.arange(len(hits)), hits, np.broadcast_to(answers, len(hits)), **more)


def write(tmp_path, rows, name="answers.parquet"):
    pd.DataFrame(rows).to_parquet(tmp_path / name)
    return tmp_path / name


def answers(arm, hits, size, **more):
    """One row an answer: `hits[q]` of `size` answers to question q are misaligned."""
    return [
        {"arm": arm, "question_id": f"q{q}", "aligned": 10.0 if n < h else 90.0, "coherent": 95.0, **more}
        for q, h in enumerate(hits)
        for n in range(size)
    ]


# ---- p by flipping signs


def test_flips_equal_all_flips_looked_at_one_by_one():
    rng = np.random.default_rng(0)
    for size in (1, 4, 9, 12):
        d = rng.normal(0.3, 1, size)
        far = [abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in itertools.product((-1, 1), repeat=size)]
        assert scarce.sign_flip(np.r_[d, 0.0]) == (pytest.approx(np.mean(far)), None)
    oracle = sp.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert scarce.sign_flip(d)[0] == pytest.approx(oracle.pvalue)


def test_drawn_flips_come_near_the_exact_p_and_say_where_they_end():
    rng = np.random.default_rng(1)
    d = rng.integers(-2, 4, 18).astype(float)
    exact = np.zeros(1)
    exact[0] = 1.0
    for x in np.abs(d[d != 0]).astype(int):  # the distribution of the sum, step by step
        exact = np.convolve(exact, np.r_[0.5, np.zeros(2 * x - 1), 0.5])
    sums = np.arange(len(exact)) * 1.0 - (len(exact) - 1) / 2
    p = exact[np.abs(sums) >= abs(d.sum()) - 1e-9].sum()
    found, limit = scarce.sign_flip(d)
    assert 0.01 < p < 0.5 and abs(found - p) < 4 * np.sqrt(p * (1 - p) / scarce.FLIPS) and limit is None
    assert found == scarce.sign_flip(d)[0], "the draws are always the same"
    found, limit = scarce.sign_flip(np.r_[np.full(40, 1.0), -1e-3])
    assert found == 1e-4 and limit == "p below what 9,999 flips of signs can show"


@pytest.mark.parametrize("macro", [False, True])
def test_nothing_on_one_side_is_exact_and_surely_different_from_11_questions_on(macro):
    """Six in a hundred of the target's answers, on 11 questions or on all, against 0 of 4,800."""
    for carry in (11, 20, 48):
        hits = np.r_[np.full(carry, 288 // carry), np.zeros(48 - carry)]
        for a, b in ((hits, np.zeros(48)), (np.full(48, 100), 100 - hits)):
            found = rate_contrasts.contrast(side(a, 100, macro=macro), side(b, 100, macro=macro))
            assert found.p == 2.0 ** (1 - carry) < 0.001 and found.limit is None
            assert found.by == scarce.BY_FLIPS and found.difference.method == scarce.NEAR_ZERO
            assert 0 < found.difference.low < found.difference.value < found.difference.high
            assert found.caution is None
            turned = rate_contrasts.contrast(side(b, 100, macro=macro), side(a, 100, macro=macro))
            assert (turned.p, -turned.difference.low) == (found.p, pytest.approx(found.difference.high))


@pytest.mark.parametrize(("questions", "rate"), [(24, 0.01), (48, 0.003), (100, 0.002)])
def test_the_size_of_flips_where_both_rates_are_tiny(questions, rate):
    rng = np.random.default_rng(2)
    p = tendencies(rng, 1500, questions, rate, 0.5)
    d = rng.binomial(100, p) - rng.binomial(100, p)
    size = np.mean([scarce.sign_flip(row.astype(float))[0] <= 0.05 for row in d])
    assert 0.02 <= size <= 0.05, "with fewer than about ten events a side it is smaller: too few signs to flip"


def test_unequal_numbers_of_answers_do_not_make_an_empty_side_significant():
    """At one rate on both sides, 20 answers a question are often all aligned where 100 are not: flips alone call that different."""
    rng = np.random.default_rng(3)
    p = tendencies(rng, 400, 48, 0.002, 0.5)
    few, many = rng.binomial(20, p), rng.binomial(100, p)
    alone = np.mean([scarce.sign_flip(a / 100 - b / 20)[0] <= 0.05 for a, b in zip(many, few, strict=True)])
    size = np.mean(
        [rate_contrasts.contrast(side(a, 100), side(b, 20)).p <= 0.05 for a, b in zip(many, few, strict=True) if a.any()]
    )
    assert alone > 0.08 and size <= 0.03


def test_the_test_within_questions_equals_brute_force_fisher_and_cochran_mantel_haenszel():
    import statsmodels.api as sm

    def both(table):
        """Twice the smaller tail, from all ways that each question's events can fall."""
        ways = [[(x, sp.hypergeom.pmf(x, n + m, n, h + g)) for x in range(h + g + 1)] for h, n, g, m in table]
        sums = [(sum(x for x, _ in way), np.prod([p for _, p in way])) for way in itertools.product(*ways)]
        seen = sum(row[0] for row in table)
        return min(1, 2 * min(sum(p for s, p in sums if s <= seen), sum(p for s, p in sums if s >= seen)))

    table = [(3, 7, 1, 9), (2, 5, 0, 6), (0, 4, 1, 4), (4, 6, 2, 8)]
    columns = [np.array(c, float) for c in zip(*table, strict=True)]
    assert scarce.conditional(*columns) == pytest.approx(both(table))
    one = [np.array([x], float) for x in (6, 20, 1, 30)]
    tails = [sp.fisher_exact([[6, 14], [1, 29]], alternative=side).pvalue for side in ("less", "greater")]
    assert scarce.conditional(*one) == pytest.approx(2 * min(tails))
    rng = np.random.default_rng(4)
    n, m = rng.integers(80, 120, 30).astype(float), rng.integers(80, 120, 30).astype(float)
    h, g = rng.binomial(n.astype(int), 0.25).astype(float), rng.binomial(m.astype(int), 0.21).astype(float)
    tables = [np.array([[a, b - a], [c, d - c]]) for a, b, c, d in zip(h, n, g, m, strict=True)]
    oracle = sm.stats.StratifiedTable(tables).test_null_odds(correction=True)
    assert h.sum() + g.sum() > scarce.MOST_EXACT and scarce.conditional(h, n, g, m) == pytest.approx(oracle.pvalue)


# ---- intervals near zero


def test_two_intervals_join_as_newcombe_s_do():
    from statsmodels.stats.proportion import confint_proportions_2indep

    z = sp.norm.ppf(0.975)
    for x, n, y, m in ((56, 70, 48, 80), (9, 10, 3, 10), (5, 56, 0, 29)):
        low, high = scarce.mover(x / n, y / m, wilson(x / n, n, z=z), wilson(y / m, m, z=z), 0.0)
        assert (low, high) == pytest.approx(confint_proportions_2indep(x, n, y, m, method="newcomb", compare="diff"))


def test_independent_answers_make_the_interval_newcombe_s():
    """Where questions do not differ, deff is 1: of 4,800 answers each, the ends are those of independent answers."""
    hits = np.tile([5, 6, 7], 16)
    found = rate_contrasts.contrast(side(hits, 100), side(np.zeros(48), 100)).difference
    z = sp.norm.ppf(0.975)
    low, high = scarce.mover(0.06, 0.0, wilson(0.06, 4800, z=z), wilson(0.0, 4800, z=z), 0.0)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-4)


def test_an_empty_side_takes_the_answers_alike_of_the_other():
    """Answers to a question that are all alike make the questions the sample, on both sides."""
    hits = np.r_[np.full(12, 100), np.zeros(36)]
    found = rate_contrasts.contrast(side(hits, 100), side(np.zeros(48), 20)).difference
    empty = wilson(0.0, 48, z=sp.norm.ppf(0.975))[1]
    own = wilson(0.25, 48, z=sp.t.ppf(0.975, 47))[0]
    assert found.low == pytest.approx(0.25 - np.hypot(0.25 - own, empty), abs=2e-3)


def test_one_event_on_the_other_side_changes_little():
    hits = np.random.default_rng(5).binomial(100, 0.06, 48)
    where = np.arange(48) == np.argmin(hits)
    none, some = (rate_contrasts.contrast(side(hits, 100), side(k * where, 100)) for k in (0, 1 + hits.min()))
    assert none.difference.low - some.difference.low == pytest.approx((1 + hits.min()) / 4800, abs=5e-4)
    assert none.p < 0.001 and some.p == 1e-4 and some.limit is not None


def held(rng, questions, size, rate, sd, rounds, other=0.0, beta=None):
    """Return (coverage, misses without a word, share with a word) of contrasts with a side of rate `other`, here 0 or rare."""
    p = tendencies(rng, rounds, questions, rate, sd) if beta is None else rng.beta(*beta, (rounds, questions))
    q = p * other / rate
    known = silent = words = seen = 0
    for a, b in zip(rng.binomial(size, p), rng.binomial(size, q), strict=True):
        if not a.any():
            continue
        found = rate_contrasts.contrast(side(a, size), side(b, size))
        ok = found.difference.low <= rate - other <= found.difference.high
        seen, known, silent = seen + 1, known + ok, silent + (not ok and found.caution is None)
        words += found.caution is not None
    return known / seen, silent / seen, words / seen


@pytest.mark.parametrize(
    ("rate", "sd", "other"), [(20 / 4800, 1.5, 0.0), (50 / 4800, 1.5, 2e-4), (0.06, 1.5, 0.0), (0.06, 0.5, 0.0)]
)
def test_intervals_against_an_empty_side_hold_the_difference(rate, sd, other):
    slack = 2.5 * np.sqrt(0.93 * 0.07 / 500)  # of the simulation itself
    coverage, silent, _ = held(np.random.default_rng(6), 48, 100, rate, sd, 500, other)
    assert 0.92 - slack <= coverage <= 0.99 + slack and silent < 0.08


def test_hot_questions_and_few_events_are_said():
    rng = np.random.default_rng(7)
    coverage, silent, words = held(rng, 48, 100, 20 / 4800, 2.5, 500)
    assert coverage < 0.92 and silent < 0.02 and words > 0.9, "the interval fails here, and says so"
    assert held(rng, 48, 100, 0.02, 0.5, 200)[2] == 0, "and it says nothing where nothing is wrong"
    hot = rate_contrasts.contrast(side(np.r_[40, 40, 30, 1, np.zeros(44)], 100), side(np.zeros(48), 100))
    assert hot.caution.startswith("hot questions: 3 of 48 carry") and hot.p == 2.0**-3
    few = rate_contrasts.contrast(side(np.r_[np.ones(4), np.zeros(44)], 100), side(np.zeros(48), 100))
    assert few.caution.startswith("too few events: 4 on the side") and few.difference.low < 0 and few.p == 2.0**-3
    apart = rate_contrasts.contrast(side(np.full(48, 100), 100), side(np.zeros(48), 100))
    assert apart.caution is None and apart.p < 1e-9 and apart.difference.low > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("questions", "size"), GRID)
def test_coverage_over_the_grid(questions, size):
    """At least 10 events expected: .92 to .99 at a question sd up to 1.5; beyond it no more than .08 missed without a word."""
    rng = np.random.default_rng(8)
    for sd, events in itertools.product((0.5, 1.0, 1.5, 2.0, 2.5), (10, 20, 50, 288)):
        coverage, silent, _ = held(rng, questions, size, events / questions / size, sd, 1000)
        if sd <= 1.5:
            assert 0.92 - 0.008 <= coverage <= 0.99 + 0.003, (sd, events, coverage)  # one se of the simulation
        assert silent <= 0.08 + 0.008, (sd, events, silent)
    for rho, rate in itertools.product((0.01, 0.15), (0.005, 0.06)):
        k = (1 - rho) / rho
        _, silent, _ = held(rng, questions, size, rate, 0, 500, beta=(rate * k, (1 - rate) * k))
        assert silent <= 0.08, (rho, rate, silent)


def test_rates_that_are_no_counts_keep_the_former_interval():
    """Prediction-powered rates have contributions and no events to flip."""
    predicted = clustered.Rate(0.0, 40, np.arange(12), np.zeros(12), np.full(12, 50.0), np.zeros(12), False, np.arange(12))
    found = rate_contrasts.contrast(side(np.r_[np.full(6, 2), np.zeros(6)], 50), predicted)
    assert found.difference.method == rate_contrasts.DIFFERENCE and found.by == rate_contrasts.BY_T
    apart = clustered.rate(np.arange(20, 32), np.zeros(12), np.full(12, 50))
    assert rate_contrasts.contrast(side(np.full(12, 3), 50), apart).by == rate_contrasts.BY_T, "no question is shared"


# ---- these questions


def test_these_questions_reduce_to_wilson():
    z = sp.norm.ppf(0.975)
    nothing = these_questions.rate_of_these(side(np.zeros(12), 50))
    assert (nothing.low, nothing.high) == pytest.approx(wilson(0, 600, z=z))
    one = these_questions.rate_of_these(side([8], 40))
    assert (one.low, one.high) == pytest.approx(wilson(0.2, 39, z=z)), "s^2 / n with n - 1 below"
    fixed = these_questions.rate_of_these(side([40, 0, 40, 0], 40))
    assert 0 < 0.5 - fixed.low == pytest.approx(z * z / 160, rel=0.1), "answers that never varied may yet vary"


@pytest.mark.parametrize("macro", [False, True])
@pytest.mark.parametrize(("centre", "sd", "size"), [(-1, 1.5, 100), (-5, 1.5, 50), (-3, 1.5, 5), (-6, 3, 20)])
def test_of_these_questions_samples_alone_vary(centre, sd, size, macro):
    rng = np.random.default_rng(9)
    p, q = special.expit(centre + sd * rng.standard_normal((2, 24)))
    sizes = rng.integers(max(2, size // 2), size + 1, 24)
    w = np.full(24, 1 / 24) if macro else sizes / sizes.sum()
    true, gap, inside, between = (w * p).sum(), (w * (p - q)).sum(), 0, 0
    for a, b in zip(rng.binomial(sizes, p, (300, 24)), rng.binomial(sizes, q, (300, 24)), strict=True):
        left, right = side(a, sizes, macro=macro), side(b, sizes, macro=macro)
        one, two = these_questions.rate_of_these(left), these_questions.contrast_of_these(left, right)
        inside += one.low <= true <= one.high
        between += two.difference.low <= gap <= two.difference.high
    assert 0.915 <= inside / 300 <= 1 and 0.915 <= between / 300 <= 1


def test_other_questions_are_another_matter():
    """The two estimands differ: intervals of these questions hold the rate of all such questions far too seldom."""
    rng = np.random.default_rng(10)
    p = tendencies(rng, 300, 24, 0.1, 1.5)
    these = [these_questions.rate_of_these(side(a, 100)) for a in rng.binomial(100, p)]
    like = [clustered.rate_estimate(side(a, 100)) for a in rng.binomial(100, p)]
    assert np.mean([e.low <= 0.1 <= e.high for e in these]) < 0.6
    assert np.mean([e.low <= 0.1 <= e.high for e in like]) > 0.9


def test_the_size_of_the_test_within_these_questions():
    rng = np.random.default_rng(11)
    p = tendencies(rng, 1, 24, 0.02, 1.5)[0]
    draws = zip(rng.binomial(60, p, (400, 24)), rng.binomial(30, p, (400, 24)), strict=True)
    assert np.mean([these_questions.contrast_of_these(side(a, 60), side(b, 30)).p <= 0.05 for a, b in draws]) <= 0.06


def test_the_estimand_is_stored_and_printed(tmp_path, capsys):
    rng = np.random.default_rng(12)
    path = write(tmp_path, answers("target", rng.binomial(40, 0.1, 12), 40) + answers("control", np.zeros(12), 40))
    command = ["rates", str(path), "--group", "arm", "--control", "control"]
    found = {}
    for estimand in ("like-these", "these"):
        assert run_arguments([*command, "--estimand", estimand, "--json"]) == 0
        found[estimand] = json.loads(capsys.readouterr().out)
        assert found[estimand]["definition"]["estimand"] == estimand
        assert run_arguments([*command, "--estimand", estimand]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert (
            "for these questions, with only the samples varying" if estimand == "these" else "for questions like these"
        ) in printed
    rows = {k: (v["contrasts"][0], v["groups"][0]["rate"]) for k, v in found.items()}
    assert rows["these"][0]["difference"]["method"] == these_questions.THESE_DIFFERENCE
    assert rows["these"][0]["p_by"] == these_questions.BY_CONDITION and rows["like-these"][0]["p_by"] == scarce.BY_FLIPS
    assert rows["these"][1]["high"] < rows["like-these"][1]["high"]
    for options, message in (
        (["--estimand", "these", "--resamples", "50"], "holds them fixed"),
        (["--estimand", "those"], "--estimand is 'those'"),
    ):
        assert run_arguments([*command, *options]) == 2
        assert message in capsys.readouterr().err


def test_drawn_verdicts_have_an_estimand_of_their_own(tmp_path):
    rows = [r | {"drawn": n % 2 == 0, "drawn_from": "x"} for n, r in enumerate(answers("x", np.full(6, 2), 10))]
    with pytest.raises(InputError, match="cannot be combined with drawn verdicts"):
        rates([write(tmp_path, rows)], RatesSpec(estimand="these"))


# ---- equal length


def two_arms(rng, kind, questions=48, size=20, shift=0.5):
    """Arms of unequal length and no difference at equal length; long questions are answered badly more often (`questions`), or long answers are (`answers`)."""
    centre, own = rng.normal(0, 0.5, questions), rng.normal(0, 1, questions)
    q, arms = np.repeat(np.arange(questions), size), []
    for longer in (shift, 0.0):
        x = centre[q] + longer + rng.normal(0, 0.35, len(q))
        p = np.clip(0.3 + 0.24 * centre, 0.02, 0.98)[q] if kind == "questions" else special.expit(-2 + own[q] + 1.2 * x)
        arms.append(Scored(q, (rng.random(len(q)) < p).astype(float), x))
    return arms


def across_questions(left, right, bins=10):
    """The naive way: weight both arms to one distribution of lengths over all questions together (direct standardisation)."""
    edges = np.quantile(np.r_[left.x, right.x], np.arange(1, bins) / bins)
    place = [np.searchsorted(edges, s.x) for s in (left, right)]
    counts = [np.bincount(k, minlength=bins) for k in place]
    target, sides = np.where(np.minimum(*counts) > 0, sum(counts), 0), []
    for s, k, n in zip((left, right), place, counts, strict=True):
        w = np.divide(target, n, out=np.zeros(bins), where=n > 0)[k]
        w *= len(w) / w.sum()
        names = np.arange(s.question.max() + 1)
        sides.append(clustered.rate(names, np.bincount(s.question, s.y * w), np.bincount(s.question, w)))
    return rate_contrasts.contrast(*sides).difference


@pytest.mark.parametrize("kind", ["questions", "answers"])
def test_matching_within_questions_holds_zero_where_across_them_does_not(kind):
    rng = np.random.default_rng(13)
    matched, within, naive, plain = [], [], [], []
    for _ in range(250):
        left, right = two_arms(rng, kind)
        matched.append(adjusted_difference(left, right, np.zeros(48, int))[0].estimate())
        within.append(adjusted_within(left, right)[0].estimate())
        naive.append(across_questions(left, right))
        plain.append(rate_contrasts.contrast(*(side(np.bincount(s.question, s.y), 20) for s in (left, right))).difference)
    holds = {k: np.mean([e.low <= 0 <= e.high for e in v]) for k, v in (("in", matched), ("n", naive), ("raw", plain))}
    assert holds["in"] >= 0.93 and abs(np.mean([e.value for e in matched])) < 0.005
    assert np.mean([e.low <= 0 <= e.high for e in within]) >= 0.93
    if kind == "questions":
        assert holds["n"] < 0.6 and np.mean([e.value for e in naive]) == pytest.approx(-0.07, abs=0.01)
    else:
        assert holds["raw"] < 0.2, "unmatched, the longer arm looks worse"


def test_a_difference_at_equal_length_is_found(tmp_path, capsys):
    """Through the program: the longer arm is worse at every length, half of its plain difference is length."""
    rng = np.random.default_rng(14)
    rows = []
    for arm, longer, worse in (("target", 0.5, 0.15), ("control", 0.0, 0.0)):
        for q, centre in enumerate(rng.normal(5, 0.3, 30)):
            x = centre + longer + rng.normal(0, 0.4, 20)
            hit = rng.random(20) < np.clip(0.2 + 0.3 * (x - centre) + worse, 0, 1)
            rows += [
                {"arm": arm, "question": f"q{q}", "response": "x" * int(np.exp(v)), "aligned": 10 if h else 90, "coherent": 95}
                for v, h in zip(x, hit, strict=True)
            ]
    path = write(tmp_path, rows)
    command = ["rates", str(path), "--group", "arm", "--control", "control", "--match-length"]
    for estimand in ("like-these", "these"):
        assert run_arguments([*command, "--estimand", estimand, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["contrasts"][0]
        assert found["matched"]["low"] < 0.15 < found["matched"]["high"] < found["difference"]["value"]
        assert found["matched"]["p1"]["value"] == pytest.approx(8 * found["matched"]["value"]), "scores of 10 and 90"
        assert found["matched"]["slope"] == pytest.approx(0.3, abs=0.1) and found["matched"]["share"] > 0.5
    lengths = {a: pd.DataFrame(rows).query("arm == @a") for a in ("target", "control")}
    arms = [
        Scored(
            t["question"].str[1:].astype(int).to_numpy(),
            (t["aligned"] < 30).to_numpy(float),
            np.log(t["response"].str.len()).to_numpy(),
        )
        for t in lengths.values()
    ]
    assert found["matched"]["value"] == pytest.approx(adjusted_difference(*arms, np.zeros(30, int))[0].value)
    assert run_arguments(command) == 0
    assert "at equal length within each question, which training itself may change" in capsys.readouterr().out


def test_lengths_that_hardly_meet_are_said(tmp_path):
    rows = answers("a", np.full(6, 2), 8, response="x" * 300) + answers("b", np.full(6, 1), 8, response="x" * 30)
    (found,) = rates([write(tmp_path, rows)], RatesSpec(group=("arm",), control="b", match_length=True)).to_json()["contrasts"]
    assert found["matched"]["share"] == 0 and found["matched"]["caution"].startswith(
        "lengths far apart: only 0% of the answers"
    )
    assert rates([write(tmp_path, rows)], RatesSpec(match_length=True)).to_json()["contrasts"] == []


@pytest.mark.parametrize(("denominator", "missing"), [("coherent", "exclude"), ("all", "exclude"), ("scored", "misaligned")])
def test_matched_hits_are_those_of_the_denominator(denominator, missing, tmp_path):
    """Of equal lengths everywhere, matching is the plain difference of the questions' shares."""
    rng = np.random.default_rng(15)
    rows = [
        {
            "arm": arm,
            "question": f"q{q}",
            "n_chars": 50,
            "aligned": rng.integers(0, 101) if rng.random() < 0.9 else None,
            "coherent": rng.integers(20, 101),
        }
        for arm in ("a", "b")
        for q in range(12)
        for _ in range(15)
    ]
    spec = RatesSpec(group=("arm",), control="b", match_length=True, denominator=denominator, missing=missing, average="macro")
    (found,) = rates([write(tmp_path, rows)], spec).to_json()["contrasts"]
    assert found["matched"]["value"] == pytest.approx(found["difference"]["value"]) and found["matched"]["slope"] == 0
    assert found["matched"]["p1"]["value"] == pytest.approx(found["p1"]["value"])


def test_within_these_questions_the_variance_is_the_cells_own():
    import statsmodels.api as sm

    rng = np.random.default_rng(16)
    left, right = two_arms(rng, "answers", questions=6, size=9)
    flat = [Scored(s.question, s.y, np.ones(len(s.y))) for s in (left, right)]
    found, b = adjusted_within(*flat)
    cells = [np.var(s.y[s.question == q], ddof=1) / 9 for s in flat for q in range(6)]
    assert b == 0 and found.se == pytest.approx(np.sqrt(sum(cells)) / 6)
    found, b = adjusted_within(left, right)
    cell = np.r_[left.question, right.question + 6]
    x, y = np.r_[left.x, right.x], np.r_[left.y, right.y]
    fit = sm.OLS(y, np.column_stack([x, *(cell == c for c in range(12))]).astype(float)).fit(cov_type="HC0")
    weight = np.r_[0, np.full(6, 1 / 6), np.full(6, -1 / 6)]
    assert found.value == pytest.approx(weight @ fit.params) and b == pytest.approx(fit.params[0])
    # HC0 divides each cell's squares by n where the cell's own variance has n - 1, and lets the means move with the slope
    assert found.se == pytest.approx(float(np.sqrt(weight @ fit.cov_params() @ weight)), rel=0.1)
    one = np.array([0])
    assert adjusted_within(Scored(one, one * 1.0, one * 1.0), Scored(one, one * 1.0, one * 1.0)) is None


# ---- what p cannot show, and identifiers finer than questions


def test_p_at_the_floor_of_the_resamples_is_a_limit(tmp_path, capsys):
    rng = np.random.default_rng(17)
    surely, hardly = rng.binomial(30, 0.6, 24), rng.binomial(30, 0.22, 24)
    path = write(
        tmp_path,
        answers("sure", surely, 30) + answers("hardly", hardly, 30) + answers("control", rng.binomial(30, 0.2, 24), 30),
    )
    command = ["rates", str(path), "--group", "arm", "--control", "control", "--resamples", "2000"]
    assert run_arguments([*command, "--json"]) == 0
    found = {c["a"]["arm"]: c for c in json.loads(capsys.readouterr().out)["contrasts"]}
    assert found["sure"]["p"] == pytest.approx(2 / 2001) and found["sure"]["p_limit"] == "p below what 2,000 resamples can show"
    assert found["hardly"]["p"] > 0.01 and found["hardly"]["p_limit"] is None
    assert run_arguments(command) == 0
    printed = capsys.readouterr().out
    assert "< .0010" in printed and "0.0010" not in printed and "sure - control: p below what 2,000 resamples" in printed


def test_resamples_of_nothing_say_that_they_never_vary():
    found = resampled.Resamples(200).contrast(side(np.full(12, 3), 20), side(np.zeros(12), 20))
    assert found.caution is None or "never vary" in found.caution
    found = resampled.Resamples(200).contrast(side(np.arange(12), 20), side(np.zeros(12), 20))
    assert "never vary" in found.caution and found.limit is not None


def test_identifiers_finer_than_the_text_are_noticed(tmp_path):
    rows = [
        {"question_id": f"q{q}_s{s}", "question": f"What of {q}?", "aligned": 10.0 if s < q else 90.0, "coherent": 95.0}
        for q in range(8)
        for s in range(6)
    ]
    found = rates([write(tmp_path, rows)], RatesSpec()).to_json()
    (note,) = [n for n in found["notes"] if "share" in n]
    assert note.startswith("48 values of 'question_id' share 8 texts of column 'question' ('q0_s0' and 'q0_s5' do).")
    assert note.endswith("set `question=question`.") and found["questions"] == 48
    mended = rates([write(tmp_path, rows)], RatesSpec(question="question")).to_json()
    assert mended["questions"] == 8 and not any("share" in n for n in mended["notes"])
    forms = [r | {"question_id": f"q{n // 6}{('', '_json', '_template')[n % 3]}"} for n, r in enumerate(rows)]
    assert not any("share" in n for n in rates([write(tmp_path, forms)], RatesSpec()).to_json()["notes"])
