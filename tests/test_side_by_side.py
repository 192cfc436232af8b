"""Finished studies side by side: differences of effects paired by item and not, against plain computations on the tables."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import emscope
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.core.estimate import undefined
from emscope.core.spec import parse
from emscope.stats.means import stratified_mean
from emscope.store.files import write_json
from emscope.store.rows import Rows, read_table
from emscope.study import compare
from emscope.study.compare import compare_studies
from emscope.study.decision.analysis import check
from emscope.study.decision.opinions import Judged, Opinion
from emscope.study.decision.recipe import recipe
from emscope.study.report import BaseModel, Distributions, RunChecked, StudyReport, read_report
from emscope.study.spec import StudySpec
from test_checkpoints import make_adapter
from test_overview import STUDY
from test_schemas import hold
from test_stats import CATEGORY, MEASURE, RISE, STEPS, arm_of, evidence

CHAT = MEASURE.chat_digest


def write(root, drift, seeds=1, *, noise=0.03, measure=MEASURE, **settings):
    """Write a study's report and preferences into a folder, and return (folder, control - target by seed and item [S, Q])."""
    spec = parse(StudySpec, STUDY | {"seeds": list(range(seeds))} | settings, "study")
    rows, runs, found, seen = Rows(root), [], [], {}
    for seed in range(seeds):
        drifts = tuple(d + 0.01 * seed for d in drift)
        e = evidence(
            target=arm_of("target", STEPS, drifts, noise=noise), control=(0.002 * seed,) * 4, task=None, measure=measure
        )
        seen[seed] = e
        runs.append(RunChecked(f"target-seed{seed}", "target", "", "target", seed, None, check(e)))
        found.append(e.control.margins[-1] - e.target.margins[-1])
        for name, arm in (("target", e.target), ("control", e.control)):
            preferences(rows, f"{name}-seed{seed}", arm.margins[-1])
    report = StudyReport(
        name=root.name, distributions=Distributions((), {}), spec=spec.model_dump(mode="json"), versions={"emscope": "0"},
        base=BaseModel("toy", "plain"), judged=None, ship=(), runs=tuple(runs),
        recipes=tuple(r for r in [recipe("target", seen)] if r),
    )  # fmt: skip
    write_json(root / "report.json", report.counted().to_json())
    return root, np.array(found)


def preferences(rows, run, margins):
    """Write margins [Q] as log-probabilities of two answers of 4 and 5 tokens."""
    parts = [
        {"key": f"{run}-{n}-{option}", "run": run, "step": STEPS[-1], "scale": 1.0, "set": "em", "item": f"i{n:02}",
         "category": CATEGORY[n], "half": "A", "option": option, "logprob": (m if option == 0 else 0.0) * (4 + option) - 8 * (4 + option),
         "tokens": 4 + option, "chat": CHAT}
        for n, m in enumerate(margins) for option in (0, 1)
    ]  # fmt: skip
    rows.append("preferences", parts)


def test_single_runs_are_paired_by_item(tmp_path):
    (one, a), (two, b) = write(tmp_path / "one", RISE), write(tmp_path / "two", (0.0, 0.0, 0.1, 0.2), noise=0.06, seeds=1)
    found = compare_studies([one, two])
    (way,) = found.ways
    (difference,) = way.differences
    mean = stratified_mean(b[0] - a[0], CATEGORY)
    assert difference.pairing == "by item" and difference.why == ""
    assert difference.effect.value == pytest.approx(-0.1) == pytest.approx(mean.value)
    assert difference.effect.high - difference.effect.value == pytest.approx(stats.t.ppf(0.975, mean.df) * mean.se)
    assert [one.effect.value for one in way.studies] == pytest.approx([0.3, 0.2])
    assert "these runs" in found.notes[0] and found.alone == {}
    hold(type(found), found.to_json())


def test_seeds_of_either_side_add_their_spread(tmp_path):
    (one, a), (two, b) = write(tmp_path / "one", RISE, 3), write(tmp_path / "two", (0.0, 0.0, 0.1, 0.2), 2, noise=0.06)
    (difference,) = compare_studies([one, two]).ways[0].differences
    items = stratified_mean(b.mean(0) - a.mean(0), CATEGORY)
    parts = [(items.se**2, items.df), *((side.mean(1).var(ddof=1) / len(side), len(side) - 1) for side in (a, b))]
    total = sum(v for v, _ in parts)
    df = total**2 / sum(v**2 / f for v, f in parts)
    assert difference.effect.value == pytest.approx(b.mean() - a.mean())
    assert difference.effect.value - difference.effect.low == pytest.approx(stats.t.ppf(0.975, df) * total**0.5)


def test_other_items_are_not_paired_and_the_intervals_join(tmp_path):
    one, a = write(tmp_path / "one", RISE)
    two, b = write(tmp_path / "two", RISE, measure=replace(MEASURE, items="others", items_digest="1a"))
    (difference,) = compare_studies([one, two]).ways[0].differences
    assert difference.pairing == "none" and difference.why == "the items differ (toy and others)"
    means = [stratified_mean(side[0], CATEGORY) for side in (a, b)]
    reach = difference.effect.high - difference.effect.value
    assert reach == pytest.approx(1.96 * sum(m.se**2 for m in means) ** 0.5, rel=0.05)
    own = replace(MEASURE, items_digest="2b")
    three, _ = write(tmp_path / "three", RISE, measure=own)
    assert "is not known" in compare_studies([one, three]).ways[0].differences[0].why


def test_without_tables_the_reports_are_compared(tmp_path):
    one, _ = write(tmp_path / "one", RISE)
    two, _ = write(tmp_path / "two", RISE)
    for part in (two / "tables" / "preferences").iterdir():
        part.unlink()
    (difference,) = compare_studies([one, two]).ways[0].differences
    assert difference.why == "the tables of a side are gone" and difference.effect.value == pytest.approx(0.0)


def test_settings_verdicts_and_ways_that_differ_are_told(tmp_path, capsys):
    one, _ = write(tmp_path / "one", RISE)
    two, _ = write(tmp_path / "two", (0.0, 0.0, 0.001, 0.001), train={"steps": 80, "lr": 2e-5})
    assert run_arguments(["compare", str(one), str(two), "--page", str(tmp_path / "page.html")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "two differs from one in: train.lr:" in out and "-> 2e-05" in out and "Verdicts: target-seed0 em -> safe." in out
    page = (tmp_path / "page.html").read_text()
    assert "Verdicts: target-seed0 em -&gt; safe." in page and "default-src 'none'" in page
    assert run_arguments(["compare", str(one), str(two), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == emscope.compare_studies([one, two]).to_json()


def judged_by(key, error=None):
    """A judge's results that hold nothing but who judged."""
    nothing = undefined("none", level=0.95, method="none")
    opinion = Opinion("local", None, {}, (), nothing, (), (), (), (), ())
    return Judged({"keys": [key], "judge_error": error}, 5.0, "open24", 0, (opinion,), 0, False)


@pytest.mark.parametrize(
    ("left", "right", "told"),
    [
        (judged_by("a"), judged_by("a"), False),
        (judged_by("a"), judged_by("b"), True),
        (judged_by("a"), judged_by("a", {"slope": 0.35}), True),
        (judged_by("a"), None, True),
        (None, None, False),
    ],
)
def test_answers_judged_by_another_version_of_a_judge_are_not_compared(tmp_path, monkeypatch, left, right, told):
    folders = [write(tmp_path / name, RISE)[0] for name in ("one", "two")]
    reports = {str(f): replace(read_report(f), judged=j) for f, j in zip(folders, (left, right), strict=True)}
    monkeypatch.setattr(compare, "read_report", lambda folder: reports[str(folder)])
    assert any("different judges" in note for note in compare_studies(folders).notes) == told


def test_ways_are_matched_by_name_and_the_rest_is_named(tmp_path):
    one, _ = write(tmp_path / "one", RISE)
    report = StudyReport.in_folder(one)
    second = replace(report.runs[0], run="other-target-seed0", method="other")
    write_json(tmp_path / "two" / "report.json", replace(report, runs=(*report.runs, second)).to_json())
    found = compare_studies([one, tmp_path / "two"])
    assert [w.way for w in found.ways] == ["target"] and found.alone == {"two": ("other-target",)}
    assert [s.label for s in compare_studies([one, one]).studies] == ["1:one", "2:one"]


def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path):
    one, _ = write(tmp_path / "one", RISE)
    with pytest.raises(InputError, match="1 study to compare; give two or more folders"):
        compare_studies([one])
    two, _ = write(tmp_path / "two", RISE, measure=replace(MEASURE, behaviour="flattery"))
    with pytest.raises(InputError, match=r"did not measure the same \(behaviour: misalignment and flattery\)"):
        compare_studies([one, two])
    with pytest.raises(InputError, match="holds no finished study"):
        compare_studies([one, tmp_path / "none"])


@pytest.mark.heavy
def test_real_checks_are_paired_by_item_as_their_tables_say(tiny, tmp_path, capsys):
    """Two targets of two tiny models against one control: the difference is that of the targets' margins."""
    for run, seed in (("one", 1), ("two", 2), ("control", 3)):
        make_adapter(tiny, tmp_path / run / "checkpoint-4", seed=seed)
    for run in ("one", "two"):
        words = [
            "check",
            tmp_path / run,
            "--base",
            tiny,
            "--control",
            tmp_path / "control",
            "--measure",
            "preference",
            "--count",
            "32",
        ]
        assert run_arguments([str(w) for w in [*words, "--truth", "0", "--out", tmp_path / f"of-{run}"]]) == 0
    capsys.readouterr()
    found = compare_studies([tmp_path / "of-one", tmp_path / "of-two"])
    (difference,) = found.ways[0].differences
    tables = [read_table(tmp_path / f"of-{run}", "preferences").to_pylist() for run in ("one", "two")]
    read = [
        {(r["item"], r["option"]): r["logprob"] / r["tokens"] for r in of if r["run"] == "target" and r["set"] == "em"}
        for of in tables
    ]
    category = {r["item"]: r["category"] for r in tables[0] if r["set"] == "em"}
    gaps = [read[0][i, 0] - read[0][i, 1] - read[1][i, 0] + read[1][i, 1] for i in category]
    mean = stratified_mean(np.array(gaps), np.array(list(category.values())))
    assert difference.pairing == "by item" and difference.effect.value == pytest.approx(mean.value, abs=1e-9)
    assert difference.effect.high == pytest.approx(mean.value + stats.t.ppf(0.975, mean.df) * mean.se, abs=1e-9)
    assert "other weights at step 4" in found.studies[1].differs


def test_an_interval_of_a_paired_difference_holds_the_truth_as_often_as_it_says():
    """Two studies of 3 seeds on the same 60 items; the true difference is 0, seeds spread by .03, items by .3 in common."""
    from emscope.study.compare import _sum

    rng, inside = np.random.default_rng(1), 0
    for _ in range(1000):
        common = 0.3 * rng.normal(size=60)
        a, b = (common + 0.03 * rng.normal(size=(3, 1)) + 0.1 * rng.normal(size=(3, 60)) for _ in range(2))
        mean = stratified_mean(b.mean(0) - a.mean(0))
        parts = [(mean.se**2, mean.df), *((side.mean(1).var(ddof=1) / 3, 2.0) for side in (a, b))]
        found = _sum(parts, mean.value, 60).estimate()
        inside += found.low <= 0 <= found.high
    assert inside / 1000 >= 0.94
