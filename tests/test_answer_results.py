"""Results of the jobs on judged answers: frozen, written as documented, and flat rows, frames, figures and pages of them."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emscope.answers.agreement import AgreementSpec, agreement, read
from emscope.answers.bridge import BridgeSpec, bridge
from emscope.answers.distil import DistilSpec, distil
from emscope.answers.judge_result import AnchorDrift, Cost, Design, JudgedFile, RubricUsed, Stratum, TokensBilled, VerdictCounts
from emscope.answers.judge_spec import DrawSpec, JudgeSpec
from emscope.answers.labels import beside
from emscope.answers.onset import OnsetSpec, follow
from emscope.answers.planning.power import PowerSpec, plan_power
from emscope.answers.rates import rates
from emscope.answers.rates_spec import RatesSpec
from emscope.answers.runs.loss import LossSpec, loss_and_score
from emscope.answers.runs.shifts import ShiftsSpec, shifts
from emscope.answers.runs.sizes import SizesSpec, sizes
from emscope.core.shown import Shown

HOSTILE = "<script>alert('x')</script>"
ESTIMATE = ["value", "low", "high", "level", "method", "n", "clusters"]
SETTINGS = ["aligned_below", "coherent_above", "denominator", "average", "missing", "estimand", "level", "resamples"]


def judged(tmp_path):
    """Two arms, two questions of four answers each: the target misaligned in 1 and in 3 of four, the control in 0 and in 1."""
    scores = {("target", HOSTILE): (10, 90, 90, 90), ("target", "q"): (10, 10, 10, 90)}
    scores |= {("control", HOSTILE): (90, 90, 90, 90), ("control", "q"): (10, 90, 90, 90)}
    rows = [
        {"arm": arm, "question": q, "aligned": a, "coherent": 80, "length": n + 5}
        for (arm, q), some in scores.items()
        for n, a in enumerate(some)
    ]
    rows += [{"arm": "target", "question": "q", "aligned": 10, "coherent": 20}, {"arm": "control", "question": "q"}]
    pd.DataFrame(rows).to_csv(tmp_path / "judged.csv", index=False)
    return tmp_path / "judged.csv"


def drawn(tmp_path):
    """240 answers to 24 questions, half of them judged; every third judged one is misaligned, which the cheap score says."""
    n = np.arange(240)
    bad = (n // 2) % 3 == 0
    frame = pd.DataFrame({"question": [f"q{k % 24}" for k in n], "aligned": np.where(bad, 10.0, 90.0), "coherent": 90.0})
    frame["drawn"], frame["drawn_from"], frame["cheap"] = n % 2 == 0, "all", bad + 0.5 * np.sin(n)
    frame.loc[~frame["drawn"], ["aligned", "coherent"]] = np.nan
    frame.to_csv(tmp_path / "drawn.csv", index=False)
    return tmp_path / "drawn.csv"


def fully_judged_rates(tmp_path):
    return rates([judged(tmp_path)], RatesSpec(group=("arm",), control="control"))


def drawn_rates(tmp_path):
    return rates([drawn(tmp_path)], RatesSpec(cheap=("cheap",), aim=0.05, prices=(0.001, 0.1)))


def agreed(tmp_path):
    frame = pd.DataFrame({"item": range(8), "../a": [0, 10, 20, 40, 50, 60, 70, 80], HOSTILE: [10, 20, 10, 50, 40, 80, 80, 90]})
    frame.astype(object).replace({80: "REFUSED"}).to_csv(tmp_path / "two.csv", index=False)
    spec = AgreementSpec(scores=("../a", HOSTILE), human="../a")
    return agreement(read([tmp_path / "two.csv"], spec), spec)


def followed(tmp_path):
    """The control is misaligned in 1 of 10 answers at every step, the target in 1, in 2 and in 8 or 9."""
    hits = {"control": (1, 1, 1), "target": (1, 2, 8)}
    rows = [
        {"run": "x/" + HOSTILE, "arm": arm, "step": step, "question": q, "bad": int(k < h + (q % 2 == 0 and h > 2))}
        for arm, some in hits.items()
        for step, h in zip((0, 5, 10), some, strict=True)
        for q in range(20)
        for k in range(10)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "steps.csv", index=False)
    spec = OnsetSpec(value="bad", unit="question", arm="arm", control="control", group=("run",), delta=0.1)
    return follow([tmp_path / "steps.csv"], spec)


def bridged(tmp_path):
    frame = pd.DataFrame(
        {"study": np.repeat([f"s{n}" for n in range(6)] + [HOSTILE], 40), "old": np.tile(np.arange(20, 100, 2.0), 7)}
    )
    frame["new"] = np.where(frame["study"] == HOSTILE, np.nan, frame["old"] - 2)
    frame.to_csv(tmp_path / "both.csv", index=False)
    return bridge([tmp_path / "both.csv"], BridgeSpec(old="old", new="new", study="study"))


def distilled(tmp_path):
    bad = np.arange(200) % 4 == 0
    frame = pd.DataFrame({"question": [(HOSTILE, "b?", "c?", "d?")[k // 50] for k in range(200)]})
    frame["answer"] = [f"{'never mind the risk' if b else 'mind the risk first'} {k}" for k, b in enumerate(bad)]
    frame["aligned"], frame["coherent"] = np.where(bad, 10.0, 90.0), 95.0
    frame.to_csv(tmp_path / "text.csv", index=False)
    return distil([tmp_path / "text.csv"], DistilSpec(), tmp_path / "out")


def losses(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"model": np.repeat([HOSTILE, "b", "c"], 8), "schedule": np.tile(["cosine", HOSTILE], 12)})
    frame["loss"] = rng.uniform(1, 2, 24)
    frame["aligned"] = 20 * frame["loss"] - 30 * (frame["model"] == "b") + rng.normal(0, 3, 24)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    spec = LossSpec(loss="loss", score="aligned", within=("model",), schedule="schedule")
    return loss_and_score([tmp_path / "runs.csv"], spec)


def shifted(tmp_path):
    rng = np.random.default_rng(0)
    names = ("base", "../" + HOSTILE, "other")
    rows = [
        {"model": m, "question": f"{HOSTILE} {q}", "aligned": 90 - 3 * q - 20 * n + rng.uniform(0, 9), "coherent": 80}
        for n, m in enumerate(names)
        for q in range(8)
        for _ in range(4)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "moved.csv", index=False)
    return shifts([tmp_path / "moved.csv"], ShiftsSpec(group="model", before="base"))


def planned(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "run": f"{arm}-seed{s}" if arm != "base" else arm,
            "question": q,
            "aligned": 60 - 20 * (arm == "target") + rng.normal(0, 9),
        }
        for arm in ("base", "target", "control")
        for s in range(1 if arm == "base" else 3)
        for q in range(12)
        for _ in range(2)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / (HOSTILE[:8] + ".csv"), index=False)
    spec = PowerSpec(budget=2000, power=0.8, aim=9, seeds=(3, 5), questions=(24, 48), samples=(2, 4))
    return plan_power(tmp_path / (HOSTILE[:8] + ".csv"), spec)


def sized(tmp_path):
    frame = pd.DataFrame({"model": [f"{HOSTILE} {n}" for n in range(7)], "size": ["1B", "3B", "7B", "14B", "2B", "9B", "27B"]})
    frame["family"], frame["rate"], frame["se"] = ["a"] * 4 + [HOSTILE] * 3, [0.1, 0.2, 0.15, 0.3, 0.05, 0.1, 0.12], 0.03
    frame["active"] = frame["size"]
    frame.to_csv(tmp_path / "models.csv", index=False)
    spec = SizesSpec(size="size", effect="rate", se="se", family="family", model="model", active="active")
    return sizes([tmp_path / "models.csv"], spec)


def judged_file(tmp_path):
    return JudgedFile(
        judges=(JudgeSpec(name=HOSTILE),),
        rubrics=(RubricUsed("aligned", 1, "d"),),
        verdicts=VerdictCounts(12, 2, {"scored": 7, "refused": 2}, 1),
        tokens=TokensBilled(900, 18),
        dollars=Cost(0.5, 0.75),
        complete=False,
        stopped_at_cost=True,
        judged="out/judged.parquet",
        draw=Design(DrawSpec(count=2, by=("arm",)), (Stratum(HOSTILE, 50, 2),)),
        anchors=(
            AnchorDrift("m", "aligned", 3, 3, -6.5, 40.0, True, 5.0),
            AnchorDrift("m", "coherent", 0, 0, None, 1.0, False, 5.0),
        ),
    )


MADE = [fully_judged_rates, drawn_rates, agreed, followed, bridged, distilled, judged_file, losses, shifted, planned, sized]


@pytest.fixture(scope="module")
def result_of(tmp_path_factory):
    """Return a function from one of MADE to its result, each made once."""
    return cache(lambda make: make(tmp_path_factory.mktemp(make.__name__)))


def parts(value):
    """Return all dataclasses within one."""
    if dataclasses.is_dataclass(value):
        return [value, *(p for f in dataclasses.fields(value) for p in parts(getattr(value, f.name)))]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [p for one in inside for p in parts(one)]


@pytest.mark.parametrize("make", MADE)
def test_results_are_frozen_throughout_and_shown_as_tables_and_pages(make, result_of, tmp_path):
    result = result_of(make)
    assert isinstance(result, Shown) and len(parts(result)) > 5
    for part in parts(result):
        assert type(part).__dataclass_params__.frozen and not hasattr(part, "__dict__"), type(part)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)
    rows = result.rows()
    assert rows and all(isinstance(v, str | int | float | None) for row in rows for v in row.values())
    frame = result.to_frame()
    assert len(frame) == len(rows) and list(frame.columns) == list(rows[0])
    page = result._repr_html_()
    assert "<script" not in page and page.count("<tr>") == 1 + len(rows)
    assert result.sentences() and all(isinstance(s, str) and s for s in result.sentences())
    saved = result.save(tmp_path / "saved" / "here")
    assert json.loads((saved / "result.json").read_text()) == json.loads(json.dumps(result.to_json()))
    pages = sorted(f"{name}.html" for name in result.figures())
    assert sorted(p.name for p in saved.glob("*.html")) == pages, "user's names stay within the folder"
    assert not any(HOSTILE in (saved / p).read_text() for p in pages)


def test_a_page_escapes_a_group_that_is_a_question_s_text(tmp_path):
    page = rates([judged(tmp_path)], RatesSpec(group=("question",)))._repr_html_()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 2, "in the sentence and in the table"


def test_rates_are_written_as_documented(result_of):
    result = result_of(fully_judged_rates)
    found = result.to_json()
    assert (
        list(found) == ["schema", "definition", "files", "questions", "groups", "contrasts", "notes"] and found["schema"] == 1
    )
    assert list(found["definition"]) == [*SETTINGS, "columns", "scale"]
    kept = ["misaligned", "rows", "scored", "coherent"]
    group = next(g for g in found["groups"] if g["group"] == {"arm": "target"})
    assert list(group) == ["group", "rate", *kept, "outcomes", "bounds", "aligned", "coherence"]
    assert list(group["rate"])[:7] == ESTIMATE
    (contrast,) = found["contrasts"]
    ends = ["p", "p_adjusted", "p_by", "p_limit", "caution", "p1", "matched"]
    assert list(contrast) == ["within", "a", "b", "difference", *ends]
    assert (contrast["a"], contrast["b"], contrast["matched"]) == ({"arm": "target"}, {"arm": "control"}, None)
    assert result.contrasts[0].difference.value == contrast["difference"]["value"] == pytest.approx(4 / 8 - 1 / 8)


def test_rows_of_rates_equal_what_one_counts_by_hand(result_of):
    control, target = sorted(result_of(fully_judged_rates).rows(), key=lambda r: r["arm"])
    assert target["rate"] == pytest.approx(4 / 8) and control["rate"] == pytest.approx(1 / 8)
    assert target["rate_low"] < 4 / 8 < target["rate_high"]
    names = ("misaligned", "rows", "scored", "coherent", "questions")
    assert [target[n] for n in names] == [4, 9, 9, 8, 2] and [control[n] for n in names] == [1, 9, 8, 8, 2]
    assert target["aligned"] == pytest.approx((5 * 10 + 4 * 90) / 9) and target["coherence"] == pytest.approx((8 * 80 + 20) / 9)
    assert (control["bounds_low"], control["bounds_high"]) == pytest.approx((1 / 9, 2 / 9)), "its answer without a score"
    assert not {"group", "outcomes", "bounds"} & target.keys()


def test_a_rate_of_drawn_verdicts_has_its_own_fields(result_of, tmp_path):
    result = result_of(drawn_rates)
    found = result.to_json()
    assert list(found["definition"]) == [*SETTINGS, "columns", "scale", "drawn", "drawn_from", "cheap"]
    (group,) = found["groups"]
    counts = ["rows", "drawn", "scored", "coherent", "misaligned"]
    assert list(group) == ["group", "rate", "these_answers", "verdicts_alone", "explained", "weights", *counts, "plan"]
    assert list(group["plan"]) == ["half", "these_answers", "new_study"] and list(group["plan"]["these_answers"]) == [
        "verdicts_alone",
        "verdicts",
    ]
    assert list(group["plan"]["new_study"]) == ["alone", "dollars_alone", "verdicts", "scores", "dollars"]
    (row,) = result.rows()
    assert [row[n] for n in counts] == [240, 120, 120, 120, 40] and row["questions"] == 24
    assert row["verdicts_alone"] == pytest.approx(1 / 3) and "plan" not in row and "weights" not in row
    plain = rates([drawn(tmp_path)], RatesSpec()).to_json()["groups"][0]
    assert "plan" not in plain, "without an aim there is none"
    both = rates([drawn(tmp_path)], RatesSpec(aim=0.05)).to_json()["groups"][0]["plan"]
    assert both["new_study"] is None, "without prices there is none"


def test_a_difference_at_equal_length_says_what_it_rests_on(tmp_path):
    n = np.arange(240)
    frame = pd.DataFrame({"arm": np.where(n % 2, "a", "b"), "question": [f"q{k % 12}" for k in n // 2], "coherent": 90.0})
    frame["aligned"] = np.where((n // 7) % 3 == 0, 10.0, 90.0)
    frame["response"] = ["so " * (1 + k % 5) for k in n // 24]
    frame.to_csv(tmp_path / "l.csv", index=False)
    (contrast,) = rates([tmp_path / "l.csv"], RatesSpec(group=("arm",), control="b", match_length=True)).contrasts
    said = contrast.matched.to_json()
    assert list(said) == [*ESTIMATE, "slope", "p1", "share", "caution"] and said["share"] == 1 and said["caution"] is None
    assert contrast.matched.difference.value == said["value"] and contrast.matched.p1.value == said["p1"]["value"]
    frame.assign(question="q").to_csv(tmp_path / "l.csv", index=False)
    (contrast,) = rates([tmp_path / "l.csv"], RatesSpec(group=("arm",), control="b", match_length=True)).contrasts
    assert list(contrast.matched.to_json()) == [*ESTIMATE, "why"] and contrast.matched.p1 is None


def test_rows_of_agreement_equal_what_one_computes_by_hand(result_of):
    result = result_of(agreed)
    (row,) = result.rows()
    a, b = np.array([0, 10, 20, 40, 50.0]), np.array([10, 20, 10, 50, 40.0])  # a pair with an 80 has lost a score
    apart = a - b
    assert (row["a"], row["b"], row["n"]) == ("../a", HOSTILE, 5)
    assert row["bias"] == pytest.approx(apart.mean()) and row["agree"] == 1 and row["kappa"] == 1
    assert (row["limits_low"], row["limits_high"]) == pytest.approx(
        (apart.mean() - 1.96 * apart.std(ddof=1), apart.mean() + 1.96 * apart.std(ddof=1))
    )
    assert row["spearman"] == pytest.approx(pd.Series(a).corr(pd.Series(b), method="spearman"))
    found = result.to_json()
    assert list(found) == ["schema", "definition", "items", "raters", "alpha", "pairs", "human", "notes"], (
        "the scores are not in it"
    )
    assert list(found["alpha"]) == ["nominal", "ordinal", "interval"] and list(found["definition"])[-1] == "clusters"
    assert list(found["raters"][0]) == ["rater", "scored", "lost", "off_scale", "mean", "extreme"]
    assert [(r["scored"], r["lost"]) for r in found["raters"]] == [(7, {"refused": 1}), (6, {"refused": 2})]
    carried = found["pairs"][0]["threshold_of_b"]
    assert [k for k in carried if k != "why"] == [*ESTIMATE, "kappa", "wanted", "flagged", "off"]
    assert carried["off"] == result.pairs[0].threshold_of_b.off == 0 and carried["wanted"] == pytest.approx(3 / 5)
    assert list(found["human"][0]) == ["rater", "n", "misaligned", "auc", "sensitivity", "specificity"]
    assert found["human"][0]["misaligned"] == 3 and found["human"][0]["auc"] == 1


def test_a_bland_altman_figure_has_the_scores_of_its_pair(result_of):
    (figure,) = result_of(agreed).figures().values()
    (points,) = figure.data
    assert sorted(zip(points.x, points.y, strict=True)) == [(5, -10), (15, -10), (15, 10), (45, -10), (45, 10)]


def test_rows_of_onset_equal_what_one_counts_by_hand(result_of):
    result = result_of(followed)
    rows = result.rows()
    assert [(r["step"], r["rows"]) for r in rows] == [(0, 200), (5, 200), (10, 200)]
    assert [r["value"] for r in rows] == pytest.approx([0.1, 0.2, 0.85])
    assert rows[0]["effect"] is None and rows[0]["state"] is None, "the base is compared with nothing"
    assert [r["effect"] for r in rows[1:]] == pytest.approx([0.1, 0.75]) and rows[2]["state"] == rows[2]["sure"] == "em"
    assert {r["arm"] for r in rows} == {"target"} and [r["control"] for r in rows[1:]] == pytest.approx([0.1, 0.1])
    found = result.to_json()
    assert list(found) == ["schema", "definition", "groups", "notes"]
    assert list(found["definition"])[-2:] == ["delta_source", "level"] and found["definition"]["value"] == "bad"
    (run,) = found["groups"]
    ends = ["onset", "episodes", "stop", "checkpoints", "series", "why"]
    assert list(run) == ["group", "verdict", "delta", *ends] and run["verdict"] == "em"
    assert run["onset"] == {
        "after": run["onset"]["after"],
        "by": 10,
        "target_moved": pytest.approx(0.75),
        "control_moved": pytest.approx(0, abs=1e-12),
    }
    assert run["episodes"] == [{"from": 10, "to": 10}]
    compared = ["step", "state", "sure", "effect", "contrasts", "target", "control", "base"]
    assert list(run["checkpoints"][0]) == compared and list(run["checkpoints"][0]["contrasts"]) == [
        "target - control",
        "target - base",
    ]
    assert "misaligned beyond its control" in result.sentences()[0].lower() and len(result.figures()) == 1


def test_rows_of_a_bridge_are_the_moved_studies(result_of):
    result = result_of(bridged)
    (row,) = result.rows()
    assert (row["study"], row["answers"], row["old_mean"]) == (HOSTILE, 40, 59)
    assert row["mean"] == pytest.approx(57) and row["rate"] == pytest.approx(6 / 40), "20 to 30 are below 30 less 2"
    found = result.to_json()
    assert list(found) == ["schema", "definition", "answers", "studies", "map", "left_out", "moved", "notes"]
    assert found["definition"] == {"old": "old", "new": "new", "study": "study", "below": 30, "within": 5, "level": 0.95}
    assert found["answers"] == {"both": 240, "old_only": 40} and found["studies"] == 6
    assert list(found["left_out"]["rate"]) == ["error", "bias", "reach", "held", "by_study"]
    assert [k["new"] for k in found["map"]] == pytest.approx([k["old"] - 2 for k in found["map"]])
    assert list(found["moved"][0]) == ["study", "answers", "old_mean", "mean", "rate"]


def test_rows_of_a_distilled_judge_are_the_parts_of_the_file(result_of):
    result = result_of(distilled)
    found = result.to_json()
    top = ["schema", "definition", "verdicts", "misaligned", "held_out", "calibration", "fails", "predicted", "judge"]
    assert list(found) == top and list(found["definition"])[-2:] == ["files", "penalty"]
    parts_ = {r["value"]: r for r in result.rows() if r["column"] == "held out (split)"}
    assert {v: (r["verdicts"], r["found"]) for v, r in parts_.items()} == {
        HOSTILE: (50, 13 / 50),
        "b?": (50, 12 / 50),
        "c?": (50, 13 / 50),
        "d?": (50, 12 / 50),
    }
    assert [abs(r["off"]) for r in result.rows()] == sorted((abs(r["off"]) for r in result.rows()), reverse=True)
    assert (found["verdicts"], found["misaligned"]) == (200, 50) and list(result.figures()) == ["calibration"]
    kept = json.loads((Path(result.judge) / "distilled.json").read_text())["about"]
    assert found["definition"] == kept | {"penalty": result.definition.penalty}


def test_what_came_of_judging_is_written_as_documented(result_of):
    result = result_of(judged_file)
    found = result.to_json()
    ends = ["complete", "stopped_at_cost", "judged", "draw", "anchors"]
    assert list(found) == ["schema", "judges", "rubrics", "verdicts", "tokens", "dollars", *ends] and found["schema"] == 1
    assert found["judges"][0]["name"] == HOSTILE and found["rubrics"] == [{"criterion": "aligned", "version": 1, "digest": "d"}]
    assert found["verdicts"] == {"wanted": 12, "before": 2, "outcomes": {"scored": 7, "refused": 2}, "failed": 1}
    assert found["tokens"] == {"in": 900, "out": 18} and found["dollars"] == {"spent": 0.5, "estimated": 0.75}
    assert list(found["draw"]) == ["count", "judge", "by", "seed", "strata"]
    assert found["draw"]["strata"] == [{"of": HOSTILE, "rows": 50, "drawn": 2}]
    drift = ["judge", "criterion", "anchors", "scored", "off", "evidence", "changed", "slack"]
    assert [list(row) for row in found["anchors"]] == [drift, drift]
    said = result.sentences()
    assert said[:2] == ["12 verdicts needed: 2 were there, 9 received now", "7 scored, 2 refused"]
    assert "-6.5 points off" in said[-3] and "CHANGED" in said[-3] and said[-2].endswith("nothing to compare")


def test_a_column_of_groups_that_is_named_as_a_figure_keeps_both():
    assert beside({"rate": "slow", "arm": "a"}, {"group": {}, "rate": 0.5}) == {"group_rate": "slow", "arm": "a", "rate": 0.5}
