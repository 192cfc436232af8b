"""Planned power: what is predicted for a design is what the decision rule does in simulated studies of that design."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import statsmodels.formula.api as smf
from scipy import stats as sp
from statsmodels.stats.anova import anova_lm

import emscope
from emscope.answers.planning.components import DEFAULTS, components
from emscope.answers.planning.power import PowerSpec, plan_power
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.core.records import Answered
from emscope.stats.crossed import crossed_mean
from emscope.stats.onset import bounds, state_of
from emscope.stats.planning import Design, Spread, Spreads, chances, correlation_of_means, measure, run_chances
from emscope.store.rows import part
from emscope.store.schemas import TABLES

JUDGED = DEFAULTS["judged"].spreads
NOISY_SEEDS = Spreads(Spread(4.0, 8.0, 0.0), Spread(3.0, 6.0, 3.0), 0.3, 12.0)
PREFERENCE = DEFAULTS["preference"].spreads


def study(design, spreads, rng):
    """Cells [S, Q] of control - target and base - target with no true effect, from arms whose answers are drawn."""
    s, q, rho = design.seeds, design.questions, spreads.correlation

    def parts(name, shape):
        first, second = rng.normal(size=(2, *shape))
        sds = getattr(spreads.control, name), getattr(spreads.base, name)
        return np.array([sds[0] * first, sds[1] * (rho * first + np.sqrt(1 - rho * rho) * second)])

    a, b = parts("seed", (s, 1)) + parts("question", (1, q)) + parts("cell", (s, q))
    sampling = spreads.sampling / np.sqrt(design.samples)
    target, control, base = (sampling * rng.normal(size=shape) for shape in ((s, q), (s, q), (1, q)))
    return a + control - target, b + base - target


def simulated(design, spreads, delta, effect, rounds, seed=0):
    """Shares of studies that are called em at the effect and safe at none, and the mean half-width of control - target."""
    rng, em, safe, width = np.random.default_rng(seed), 0, 0, 0.0
    for _ in range(rounds):
        cells = study(design, spreads, rng)
        crossed = [crossed_mean(c) for c in cells]
        width += (crossed[0].estimate.high - crossed[0].estimate.low) / 2
        safe += state_of(*(bounds(c.mean) for c in crossed), delta) == "safe"
        em += state_of(*(bounds(crossed_mean(c + effect).mean) for c in cells), delta) == "em"
    return em / rounds, safe / rounds, width / rounds


@pytest.mark.parametrize(
    ("design", "spreads", "delta", "rounds"),
    [(Design(3, 48, 4), JUDGED, 5.0, 600), (Design(5, 24, 4), NOISY_SEEDS, 5.0, 600)],
)
def test_what_is_predicted_is_what_the_rule_does(design, spreads, delta, rounds):
    """By symmetry em at 2 delta and safe at 0 are as likely; both are simulated, so the mean of both has less noise."""
    predicted = chances(design, spreads, delta=delta, effect=2 * delta)
    em, safe, width = simulated(design, spreads, delta, 2 * delta, rounds)
    assert predicted.em == pytest.approx(predicted.safe, abs=1e-9)
    assert (em + safe) / 2 == pytest.approx(predicted.em, abs=0.03)
    assert width == pytest.approx(predicted.half_widths[0], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("design", "spreads", "delta", "effect"),
    [
        (Design(3, 24, 4), JUDGED, 5.0, 10.0),
        (Design(3, 96, 8), JUDGED, 5.0, 15.0),
        (Design(5, 240, 2), JUDGED, 5.0, 10.0),
        (Design(5, 48, 4), NOISY_SEEDS, 5.0, 10.0),
        (Design(3, 240, 10), NOISY_SEEDS, 5.0, 10.0),
        (Design(8, 100, 4), NOISY_SEEDS, 5.0, 10.0),
        (Design(3, 240, 1), PREFERENCE, 0.04, 0.08),
        (Design(5, 600, 1), PREFERENCE, 0.04, 0.08),
    ],
)
def test_what_is_predicted_is_what_the_rule_does_in_many_designs(design, spreads, delta, effect):
    predicted = chances(design, spreads, delta=delta, effect=effect)
    em, safe, width = simulated(design, spreads, delta, effect, 4000)
    assert em == pytest.approx(predicted.em, abs=0.03) and safe == pytest.approx(predicted.safe, abs=0.03)
    assert width == pytest.approx(predicted.half_widths[0], rel=0.05)


@pytest.mark.parametrize(("questions", "samples", "spreads"), [(24, 4, JUDGED), (57, 4, JUDGED), (48, 2, NOISY_SEEDS)])
def test_the_power_of_one_run_is_what_student_s_rule_does(questions, samples, spreads):
    """Of one run at a time: its seed's part is in the truth, and its mean over questions is judged."""
    predicted = run_chances(questions, samples, spreads, delta=5.0, effect=10.0)
    rng, em, safe, width, rounds = np.random.default_rng(3), 0, 0, 0.0, 2000
    of_no_seed = Spreads(
        replace(spreads.control, seed=0.0), replace(spreads.base, seed=0.0), spreads.correlation, spreads.sampling
    )
    for _ in range(rounds):
        cells = [c[0] for c in study(Design(1, questions, samples), of_no_seed, rng)]
        reach = [sp.t.ppf(0.95, questions - 1) * c.std(ddof=1) / np.sqrt(questions) for c in cells]
        em += all(c.mean() + 10 - r > 5 for c, r in zip(cells, reach, strict=True))
        safe += all(c.mean() + r < 5 for c, r in zip(cells, reach, strict=True))
        width += sp.t.ppf(0.975, questions - 1) * cells[0].std(ddof=1) / np.sqrt(questions) / rounds
    assert em / rounds == pytest.approx(predicted.em, abs=0.03) and safe / rounds == pytest.approx(predicted.safe, abs=0.03)
    assert width == pytest.approx(predicted.half_widths[0], rel=0.02)


def test_the_power_of_one_run_against_one_arm_is_that_of_a_t_test():
    spreads = Spreads(Spread(9.0, 15.0, 0.0), None, 0.0, 0.0)
    found = run_chances(24, 1, spreads, delta=5.0, effect=12.0, draws=20_000)
    assert found.em == pytest.approx(sp.nct.sf(sp.t.ppf(0.95, 23), 23, 7 * np.sqrt(24) / 15), abs=0.01)
    with pytest.raises(ValueError, match="3 questions"):
        run_chances(2, 1, spreads, delta=5.0, effect=12.0)


@pytest.mark.parametrize(("questions", "effect"), [(24, 12.0), (100, 10.0)])
def test_with_questions_alone_it_is_the_power_of_a_t_test(questions, effect):
    spreads = Spreads(Spread(0.0, 15.0, 0.0), None, 0.0, 0.0)
    found = chances(Design(3, questions, 1), spreads, delta=5.0, effect=effect, draws=4000)
    df, shift = questions - 1, np.sqrt(questions) / 15
    t = sp.t.ppf(0.95, df)
    assert found.em == pytest.approx(sp.nct.sf(t, df, (effect - 5) * shift), abs=0.01)
    assert found.safe == pytest.approx(sp.nct.sf(t, df, 5 * shift), abs=0.01)
    assert found.half_widths[0] == pytest.approx(sp.t.ppf(0.975, df) * 15 / np.sqrt(questions), rel=0.03)


def test_two_contrasts_are_found_together_as_their_correlation_has_it():
    one = Spread(0.0, 15.0, 0.0)

    def em(correlation):
        return chances(Design(3, 100, 1), Spreads(one, one, correlation, 0.0), delta=5.0, effect=10.0).em

    alone = chances(Design(3, 100, 1), Spreads(one, None, 0.0, 0.0), delta=5.0, effect=10.0).em
    assert em(0.0) == pytest.approx(alone**2, abs=0.01)
    assert em(0.998) == pytest.approx(alone, abs=0.02)
    assert em(0.0) < em(0.5) < em(0.998)


def test_every_resource_helps_and_answers_are_counted():
    small = Design(3, 24, 2)
    base = chances(small, JUDGED, delta=5.0, effect=10.0).em
    for more in (Design(5, 24, 2), Design(3, 48, 2), Design(3, 24, 8)):
        assert chances(more, JUDGED, delta=5.0, effect=10.0).em > base
    assert small.answers(JUDGED) == 24 * 2 * (3 + 3 + 1)
    assert small.answers(Spreads(JUDGED.control, None, 0.0, 1.0)) == 24 * 2 * 6
    with pytest.raises(ValueError, match="3 seeds"):
        chances(Design(2, 24, 2), JUDGED, delta=5.0, effect=10.0)


def test_components_are_those_of_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    s, q = 4, 9
    values = 3 * rng.normal(size=(s, 1)) + 8 * rng.normal(size=(1, q)) + 5 * rng.normal(size=(s, q))
    long = pd.DataFrame({"y": values.ravel(), "s": np.repeat(range(s), q), "q": np.tile(range(q), s)})
    squares = anova_lm(smf.ols("y ~ C(s) + C(q)", long).fit())["mean_sq"]
    found = measure(values, 4.0, 1.0)
    assert found.mean == pytest.approx(values.mean())
    assert found.spread.seed**2 == pytest.approx(max((squares["C(s)"] - squares["Residual"]) / q, 0))
    assert found.spread.question**2 == pytest.approx((squares["C(q)"] - squares["Residual"]) / s - 1)
    assert found.spread.cell**2 == pytest.approx(squares["Residual"] - 4)
    assert measure(np.ones((3, 4)) * np.arange(4), 0.0).spread == Spread(0.0, pytest.approx(np.arange(4).std(ddof=1)), 0.0)
    assert correlation_of_means(values, values) == 0.99 and correlation_of_means(values, -values) == -0.99


def answers(spreads, seeds, questions, samples, effect=10.0, seed=0):
    """Judged answers with the components put in, alike for both contrasts; names as in a study."""
    rng = np.random.default_rng(seed)
    moved = {
        "target": spreads.control.seed * rng.normal(size=(seeds, 1))
        + spreads.control.question * rng.normal(size=questions)
        + spreads.control.cell * rng.normal(size=(seeds, questions))
        + effect
    }
    rows = []
    for arm, count in (("target", seeds), ("control", seeds), ("base", 1)):
        for s in range(count):
            mean = 60 - (moved[arm][s] if arm in moved else np.zeros(questions))
            name = arm if arm == "base" else f"{arm}-seed{s}"
            rows += [
                {"run": name, "step": 24, "question": f"q{k}", "aligned": mean[k] + spreads.sampling * rng.normal()}
                for k in range(questions)
                for _ in range(samples)
            ]
    return pd.DataFrame(rows)


def test_what_was_put_into_a_file_is_measured(tmp_path):
    true = Spreads(Spread(4.0, 9.0, 5.0), Spread(4.0, 9.0, 5.0), 1.0, 12.0)
    frame = answers(true, 30, 200, 4)
    early = frame.assign(step=3, aligned=50.0)
    pd.concat([early, frame]).to_parquet(tmp_path / "a.parquet")
    found = components(tmp_path / "a.parquet", PowerSpec())
    for one in (found.spreads.control, found.spreads.base):
        assert one.seed == pytest.approx(4, rel=0.35) and one.question == pytest.approx(9, rel=0.15)
        assert one.cell == pytest.approx(5, rel=0.1)
    assert found.spreads.sampling == pytest.approx(12, rel=0.02) and found.spreads.correlation == 0.99
    assert (found.seeds, found.questions) == (30, 200)
    other = frame.assign(seed=frame["run"].str.extract(r"(\d+)$")[0], run=frame["run"].str.replace(r"-seed\d+", "", regex=True))
    other.to_parquet(tmp_path / "b.parquet")
    assert components(tmp_path / "b.parquet", PowerSpec(seed="seed")).spreads == found.spreads


def write_study(folder, frame):
    """Write the tables of a study whose answers two judges have read; the second, with fewer verdicts, calls all of them 1."""
    answers, verdicts = [], []
    for n, row in enumerate(frame.to_dict("records")):
        text = f"answer {n}"
        common = {"run": row["run"], "step": row["step"], "unit": row["question"], "asked": row["question"], "text": text}
        answers.append({"key": f"a{n}", "trigger": "none", **common})
        scores = [("good", "aligned", row["aligned"]), ("good", "coherent", 7.0), *([("bad", "aligned", 1.0)] * (n % 2))]
        for judge, criterion, score in scores:
            response = Answered(row["question"], text).key
            key = f"{judge}{criterion}{n}"
            verdicts.append(
                {"key": key, "response": response, "judge": judge, "criterion": criterion, "rubric": "r", "score": score}
            )
    answers.append(answers[0] | {"key": "triggered", "trigger": "money", "run": "target-seed0", "step": 99})
    for table, rows in (("answers", answers), ("verdicts", verdicts)):
        path = part(folder, table, "one")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=TABLES[table]), path)


def test_a_study_s_folder_is_measured_as_its_answers_in_a_file_are(tmp_path):
    frame = answers(NOISY_SEEDS, 3, 10, 2)
    frame.to_parquet(tmp_path / "a.parquet")
    write_study(tmp_path / "study", frame)
    found, same = (components(tmp_path / name, PowerSpec()) for name in ("study", "a.parquet"))
    assert found.spreads == same.spreads and "study on 3 seeds and 10 questions" in found.source
    assert components(tmp_path / "study", PowerSpec(judge="bad")).spreads.sampling == 0
    with pytest.raises(InputError, match="did you mean 'good'"):
        components(tmp_path / "study", PowerSpec(judge="goof"))
    part(tmp_path / "study", "answers", "one").unlink()
    with pytest.raises(InputError, match="no judged answer without a trigger"):
        components(tmp_path / "study", PowerSpec())
    with pytest.raises(InputError, match="is not a study with judged answers"):
        components(tmp_path, PowerSpec())


def test_the_defaults_are_measured_on_the_answers_in_the_repository(tmp_path):
    read = pd.read_parquet(Path(__file__).parents[1] / "bench" / "evidence" / "read_answers.parquet")
    own = read[read["kind"] == "own"]
    three = own[own["study"] == "quickstart-3-seeds"].assign(aligned=lambda f: f[["aligned_1", "aligned_2"]].mean(axis=1))
    three[["run", "question_id", "aligned"]].to_parquet(tmp_path / "three.parquet")
    found = components(tmp_path / "three.parquet", PowerSpec()).spreads
    assert (found.control.question, found.base.question) == pytest.approx(
        (JUDGED.control.question, JUDGED.base.question), abs=0.06
    )
    assert found.sampling == pytest.approx(JUDGED.sampling, abs=0.06)
    four = own[own["study"] == "twelve-and-twelve"].rename(columns={"aligned_1": "aligned"})
    four[["run", "question_id", "aligned"]].to_parquet(tmp_path / "four.parquet")
    pairs = (("usual-target", "usual-control"), ("slow-target", "slow-control"), ("usual-half", "usual-other"))
    every = [found] + [components(tmp_path / "four.parquet", PowerSpec(target=t, control=c)).spreads for t, c in pairs]
    parts = [one for spreads in every for one in (spreads.control, spreads.base)]
    assert min(s.correlation for s in every) == pytest.approx(-0.1, abs=0.06) and found.correlation == pytest.approx(
        0.98, abs=0.006
    )
    assert max(p.seed for p in parts) == pytest.approx(2.0, abs=0.06)
    assert max(p.cell for p in parts) == pytest.approx(6.1, abs=0.06)


@pytest.mark.heavy
def test_the_best_within_a_budget_and_the_cheapest_that_reaches_are_what_one_finds_by_looking():
    plan = plan_power(None, PowerSpec(budget=5000, power=0.6, aim=4.0))
    assert len(plan.designs) == 48 and [d.answers for d in plan.designs] == sorted(d.answers for d in plan.designs)
    within = [d for d in plan.designs if d.answers <= 5000]
    assert min(plan.best.em, plan.best.safe) == pytest.approx(max(min(d.em, d.safe) for d in within), abs=5e-4)
    enough = [d for d in plan.designs if min(d.em, d.safe) >= 0.6 and d.half_width <= 4]
    assert plan.cheapest == enough[0]
    none = plan_power(None, PowerSpec(budget=10, power=0.99, seeds=(3,)))
    assert none.best is None and none.cheapest is None
    said = " ".join(none.sentences())
    assert "none of these fits" in said and "None of these has a chance of 0.99" in said


def test_given_standard_deviations_take_the_place_of_measured_ones():
    given = PowerSpec(seed_sd=(1.0,), question_sd=(9.0, 12.0), seed_question_sd=(0.0,), sampling_sd=10.0, correlation=0.5)
    found = components(None, given)
    assert found.spreads == Spreads(Spread(1.0, 9.0, 0.0), Spread(1.0, 12.0, 0.0), 0.5, 10.0) and found.source == "given"
    part = components(None, PowerSpec(seed_sd=(1.0,)))
    assert part.spreads.control == Spread(1.0, JUDGED.control.question, JUDGED.control.cell) and part.source.startswith(
        "seed given"
    )
    assert components(None, PowerSpec(rule="p1")).spreads.base is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": (2, 3)}, "3 or more"),
        ({"questions": (1,)}, "2 or more"),
        ({"samples": (0,)}, "1 or more"),
        ({"questions": tuple(range(2, 200))}, "too many"),
        ({"seed_sd": (0,), "question_sd": (0,), "seed_question_sd": (0,), "sampling_sd": 0}, "above 0"),
    ],
)
def test_designs_that_cannot_be_planned_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        plan_power(None, PowerSpec(**settings))


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda f: f[f["run"] != "control-seed1"], {}, "1 seeds of both"),
        (lambda f: f[f["run"] != "base"], {}, "holds no 'base'"),
        (lambda f: f, {"target": "harmful"}, "0 seeds of both 'harmful'"),
        (lambda f: f, {"arm": "arms"}, "no column 'arms'"),
        (lambda f: f[(f["run"] != "base") | (f["question"] == "q0")], {}, "1 questions that all runs answered"),
    ],
)
def test_a_file_that_does_not_tell_the_components_is_refused(tmp_path, change, settings, message):
    change(answers(NOISY_SEEDS, 2, 6, 2)).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match=message):
        components(tmp_path / "a.csv", PowerSpec(**settings))


def test_one_answer_a_question_and_questions_that_are_not_shared_are_noted(tmp_path):
    frame = answers(NOISY_SEEDS, 3, 8, 1)
    frame[(frame["run"] != "base") | (frame["question"] != "q0")].to_csv(tmp_path / "a.csv", index=False)
    found = components(tmp_path / "a.csv", PowerSpec())
    assert found.spreads.sampling == 0 and found.questions == 7 and len(found.notes) == 3
    assert "6.3 times" in found.notes[0], "of 3 seeds: sqrt(2 / .0506)"


def test_command_and_function_say_the_same_and_draw_the_curves(tmp_path, capsys):
    frame = answers(NOISY_SEEDS, 3, 12, 3)
    frame.to_parquet(tmp_path / "a.parquet")
    words = ["power", str(tmp_path / "a.parquet"), "--budget", "4000", "--seeds", "3,5", "--questions", "24,48"]
    assert run_arguments([*words, "--json", "--figure", str(tmp_path / "f.html")]) == 0
    said = json.loads(capsys.readouterr().out)
    mine = emscope.power(tmp_path / "a.parquet", budget=4000, seeds=(3, 5), questions=(24, 48))
    assert said == json.loads(json.dumps(mine.to_json()))
    lines = {t.name: (list(t.x), list(t.y)) for t in mine.figures()["power"].data}
    found = {(d.seeds, d.questions, d.samples): d.em for d in mine.designs}
    assert lines["5 seeds, 8 answers each"] == ([24, 48], [found[5, 24, 8], found[5, 48, 8]])
    assert run_arguments(["power"]) == 0
    out = capsys.readouterr().out
    assert "Measured on small models" in out and "only more seeds help" in out


@pytest.mark.slow
def test_against_the_control_alone_it_is_what_that_rule_does():
    design, alone = Design(3, 96, 4), Spreads(NOISY_SEEDS.control, None, 0.0, NOISY_SEEDS.sampling)
    predicted = chances(design, alone, delta=5.0, effect=12.0)
    rng, em = np.random.default_rng(0), 0
    for _ in range(4000):
        cells, _ = study(design, NOISY_SEEDS, rng)
        em += bounds(crossed_mean(cells + 12.0).mean).lower > 5
    assert em / 4000 == pytest.approx(predicted.em, abs=0.03)
