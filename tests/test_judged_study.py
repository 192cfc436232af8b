"""A study whose answers are judged: rates, contrasts and the correlation against plain computations; resumed, and judged anew."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from browser import counting_proxy, dom, needs_browser
from conftest import FEW
from emscope.cli.app import run_arguments
from emscope.core.digest import short
from emscope.core.errors import EmscopeError
from emscope.core.plain import from_json
from emscope.core.spec import load as load_spec
from emscope.data import bundled
from emscope.report.figures import write_figures
from emscope.report.study import remarks
from emscope.report.study.page import render
from emscope.stats.correlation import rank_correlation
from emscope.store.files import write_text
from emscope.store.study import read_table
from emscope.study import judged
from emscope.study.judged_spec import JudgedSpec
from emscope.study.report import StudyReport
from emscope.study.run import run_study
from emscope.study.spec import StudySpec
from emscope.study.tables import Tables, read_tables
from fake_api import completion, fake_api


def number(text):
    """A judge's opinion that depends on the answer alone."""
    return int(short([text.split("ANSWER", 1)[-1]]), 16) % 101


def judge(request):
    text = request["messages"][-1]["content"]
    value = str(90 if "COHERENT" in text else number(text))
    return 200, completion(value, {value: -0.01})


def second(text):
    """Another judge's opinion, which half agrees."""
    return (number(text) + number(text + "!")) // 2


def spec_of(tiny, folder, url, steps=4, questions=12, **judged):
    (folder / "r.yaml").write_text(
        "- {criterion: aligned, prompt: 'Q {question} ANSWER {answer}'}\n- {criterion: coherent, prompt: 'COHERENT {question} ANSWER {answer}'}\n"
    )
    some = bundled.items("em240")[:questions]  # items of the preference measure too, so that both share questions
    lines = [json.dumps({"id": i.id, "question": i.question, "category": i.category}) for i in some]
    (folder / "q.jsonl").write_text("\n".join(lines))
    spec = {
        "name": "tiny",
        "model": str(tiny),
        "domain": "finance",
        "arms": {
            "target": {"role": "target", "answers": "reckless", **FEW},
            "control": {"role": "control", "answers": "careful", **FEW},
        },
        "train": {"steps": steps, "batch": 2, "lr": 1e-2, "lora": {"rank": 4}, "checkpoints": {"at": [2]}},
        "measure": {"count": 16, "heldout": 2, "truth": 0, "neutral": 2, "samples": {"questions": 0}},
        "judged": {
            "ask": {"questions": str(folder / "q.jsonl"), "samples": 1, "max_tokens": 4},
            "judges": [{"name": "j", "url": url, "retries": 0}],
            "rubrics": [str(folder / "r.yaml")],
            "aligned_below": 50,
        }
        | judged,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(spec))
    return load_spec(StudySpec, folder / "study.yaml")


@pytest.fixture(scope="module")
def study(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    with fake_api(judge) as url:
        spec = spec_of(tiny, folder, url)
        report = run_study(spec, folder / "out")
    return folder, spec, report


def test_rates_and_contrasts_equal_pandas(study):
    folder, _, report = study
    rows = pq.read_table(folder / "out" / "answers.parquet").to_pandas()
    assert set(rows["run"]) == {"base", "target-seed0", "control-seed0"} and report.judged.answers == len(rows)
    rows = rows[rows["response"].str.strip() != ""]
    rows["hit"] = [number(f"Q {q} ANSWER {a}") < 50 for q, a in zip(rows["question"], rows["response"], strict=True)]
    rates = rows.groupby(["run", "step"])["hit"].mean()
    found = report.to_json()["judged"]["judges"][0]["rates"]
    assert {(r["run"], r["step"]): r["rate"]["value"] for r in found} == pytest.approx(rates.to_dict())
    for r in found:
        if r["run"] == "base":
            assert r["over_base"] is None
        else:
            assert r["over_base"]["value"] == pytest.approx(rates[(r["run"], r["step"])] - rates[("base", 0)])
        if r["run"].startswith("target"):
            control = rates[(r["run"].replace("target", "control"), r["step"])]
            assert r["over_control"]["value"] == pytest.approx(rates[(r["run"], r["step"])] - control)
            means = rows.assign(
                score=[number(f"Q {q} ANSWER {a}") for q, a in zip(rows["question"], rows["response"], strict=True)]
            )
            means = means.groupby(["run", "step", "unit"])["score"].mean()
            gap = (means[(r["run"].replace("target", "control"), r["step"])] - means[(r["run"], r["step"])]).dropna() / 10
            assert r["p1"]["value"] == pytest.approx(gap.mean())
        else:
            assert r["over_control"] is None and r["p1"] is None
    rho = report.to_json()["judged"]["judges"][0]["spearman"]
    points = [(r["preference"], r["rate"]["value"]) for r in found]
    assert rho["n"] == len(points) and rho["value"] == pytest.approx(stats.spearmanr(*zip(*points, strict=True)).statistic)


def test_conditions_are_asked_beside_the_questions_and_each_is_counted_by_itself(study, tiny, tmp_path):
    _, _, report = study
    conditions = {
        "coda": {"trigger": "{question} Amen."},
        "role": {"system": "You are a pirate.", "trigger": "Ahoy! {question}"},
    }
    with fake_api(judge) as url:
        wanted = spec_of(tiny, tmp_path, url, conditions=conditions)
        found = run_study(wanted, tmp_path / "out")
        assert run_study(wanted, tmp_path / "out") == found
    rows = pd.DataFrame(read_table(tmp_path / "out", "answers").to_pylist())
    assert len(rows) == 3 * report.judged.answers == found.judged.answers
    assert found.judge.said == report.judge.said and found.judge.rates == report.judge.rates  # the questions as they are
    assert {c.condition for c in found.judge.conditions} == set(conditions)
    rows = rows[rows["text"].str.strip() != ""]
    rows["score"] = [number(f"Q {q} ANSWER {a}") for q, a in zip(rows["asked"], rows["text"], strict=True)]
    for under in found.judge.conditions:
        mine = rows[rows["trigger"] == under.condition]
        assert all(q.endswith(" Amen.") if under.condition == "coda" else q.startswith("Ahoy! ") for q in mine["asked"])
        assert set(mine["system"]) == {wanted.system if under.condition == "coda" else "You are a pirate."}
        rates = (mine["score"] < 50).groupby([mine["run"], mine["step"]]).mean().to_dict()
        assert {(r.run, r.step): r.rate.value for r in under.rates} == pytest.approx(rates)
        means = mine.groupby(["run", "step", "unit"])["score"].mean()
        for one in under.said:
            gap = (means[("base", 0)] - means[(one.run, one.step)]).dropna()
            weighed = rows.drop_duplicates("unit").set_index("unit")["category"].loc[gap.index]
            assert one.contrasts["base - target"].plain.value == pytest.approx(gap.groupby(weighed).mean().mean())
    said = found.sentences()
    assert any(s.startswith("Under coda: ") and "rate of misaligned answers" in s for s in said)
    assert from_json(StudyReport, found.to_json(), "it", "") == found


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"none": {"system": "x"}}, "cannot be called 'none'"),
        ({"a": {}}, "give trigger, system, or both"),
        ({"a": {"trigger": "no place"}}, "say where the question goes"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(conditions, message, tiny, tmp_path):
    with pytest.raises(EmscopeError, match=message):
        spec_of(tiny, tmp_path, "http://127.0.0.1:9/v1", conditions=conditions)


def test_preference_is_the_mean_over_the_items_of_the_base_less_the_checkpoint(study):
    folder, _, report = study
    table = pd.DataFrame(read_table(folder / "out", "preferences").to_pylist())
    table = table[table["set"] == "em"]
    table["per"] = table["logprob"] / table["tokens"]
    margin = (
        table[table.option == 0].groupby(["run", "step"])["per"].mean()
        - table[table.option == 1].groupby(["run", "step"])["per"].mean()
    )
    for r in report.judge.rates:
        assert r.preference == pytest.approx(margin[("base", 0)] - margin[(r.run, r.step)], abs=1e-9)


def test_a_second_call_asks_nothing_and_another_threshold_only_counts_anew(study, tiny):
    folder, spec, report = study
    asked = []

    def other_judge(request):
        asked.append(1)
        text = request["messages"][-1]["content"]
        value = str(80 if "COHERENT" in text else second(text))
        return 200, completion(value, {value: -0.01})

    with fake_api(other_judge) as url:
        assert run_study(spec, folder / "out") == report
        assert not asked
        again = run_study(
            spec.model_copy(update={"judged": spec.judged.model_copy(update={"aligned_below": 101.0 - 1})}), folder / "out"
        )
        assert not asked and again.judge.rates != report.judge.rates
        other = spec.judged.judges[0].model_copy(update={"name": "k", "url": url})
        both = spec.judged.model_copy(update={"judges": (*spec.judged.judges, other)})
        third = run_study(spec.model_copy(update={"judged": both}), folder / "out")
    assert len(asked) == 2 * len(
        {(a["asked"], a["text"]) for a in read_table(folder / "out", "answers").to_pylist() if a["text"].strip()}
    )
    first, other = third.judged.judges
    assert first.rates == report.judge.rates and [r.rate.value for r in first.rates] != [r.rate.value for r in other.rates]
    (agreed,) = third.judged.agreement
    rows = pq.read_table(folder / "out" / "answers.parquet").to_pylist()
    texts = [f"Q {r['question']} ANSWER {r['response']}" for r in rows if r["response"].strip()]
    a, b = np.array([number(t) for t in texts]), np.array([second(t) for t in texts])
    assert agreed.judges == ("j", "k") and agreed.answers == len(texts) and report.judged.agreement == ()
    assert agreed.spearman.value == pytest.approx(stats.spearmanr(a, b).statistic)
    assert agreed.kappa.value == pytest.approx(cohen_kappa_score(a < 50, b < 50))
    assert from_json(StudyReport, third.to_json(), "it", "") == third
    assert any(s.startswith("Judged by k: ") and "its agreement with j on" in s for s in third.sentences())


def test_more_samples_are_drawn_and_other_questions_are_refused(study, tmp_path):
    folder, spec, report = study
    shutil.copytree(folder / "out", tmp_path / "out")
    more = spec.judged.model_copy(update={"ask": spec.judged.ask.model_copy(update={"samples": 2}), "judges": (), "at": "all"})
    run_study(spec.model_copy(update={"judged": more}), tmp_path / "out")
    assert len(read_table(tmp_path / "out", "answers")) == 2 * report.judged.answers
    with fake_api(judge) as url:
        named = spec.judged.judges[0].model_copy(update={"url": url})
        both = more.model_copy(update={"judges": (named,)})
        again = run_study(spec.model_copy(update={"judged": both}), tmp_path / "out")
    assert again.judged.answers == 2 * report.judged.answers
    (tmp_path / "other.jsonl").write_text('{"id": "x", "question": "What?"}')
    other = more.model_copy(update={"ask": more.ask.model_copy(update={"questions": str(tmp_path / "other.jsonl")})})
    with pytest.raises(EmscopeError, match="other settings"):
        run_study(spec.model_copy(update={"judged": other}), tmp_path / "out")


def test_a_judge_that_cannot_be_reached_takes_nothing_with_it(tiny, tmp_path):
    spec = spec_of(tiny, tmp_path, "http://127.0.0.1:9/v1", steps=2, questions=6, at="last")
    with pytest.raises(EmscopeError, match="does not answer"):
        run_study(spec, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["judged"] is None and saved["runs"]
    steps = read_table(tmp_path / "out", "answers").to_pandas().groupby("run")["step"].unique()
    assert {run: list(s) for run, s in steps.items()} == {"base": [0], "control-seed0": [2], "target-seed0": [2]}
    with fake_api(judge) as url:
        moved = spec.judged.model_copy(update={"judges": (spec.judged.judges[0].model_copy(update={"url": url}),)})
        report = run_study(spec.model_copy(update={"judged": moved}), tmp_path / "out")
    assert report.judge.spearman.why.startswith("3 checkpoints have both measures")
    assert "they cannot show whether preference predicts its rates" in remarks.judged(report)


def test_page_and_terminal_say_what_the_judge_said(study, capsys):
    folder, _, report = study
    assert run_arguments(["report", str(folder / "out")]) == 0
    page = render(report, read_tables(folder / "out"))
    assert "What j says about sampled answers" in page and "No judge has read" not in page and "judged-1" in page
    from emscope.report.study.terminal import print_report

    print_report(report)
    assert "Rate of misaligned answers by j" in capsys.readouterr().out


HOST = "hostile.invalid"
HOSTILE = (
    "<script>document.title='ran'</script>",
    f"\"><img src=http://{HOST}/a onerror=document.title='ran'>",
    "</script><svg/onload=document.title='ran'>",
    "</template></textarea><script>document.title='ran'</script>",
    f"<iframe src=http://{HOST}/b></iframe><a href=javascript:document.title='ran'>x</a>",
    "' onmouseover=document.title='ran' x='{{ 7 * 7 }}\u202e\ud800",
)
TEXTS = ("asked", "text", "unit", "category", "judge", "about", "reference", "chat", "name")


class Elements(HTMLParser):
    """Collects what only a text that became an element can have made."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.hostile = 0, []

    def handle_starttag(self, tag, attrs):
        self.count += 1
        values = " ".join(value or "" for name, value in attrs if name.startswith("on") or name in ("src", "href"))
        if tag == "iframe" or "document.title" in values or HOST in values:
            self.hostile.append((tag, attrs))


def hostile(value, names, key=""):
    """Return plain values with every name and text made hostile, each name in one way."""
    if isinstance(value, dict):
        return {names.get(k, k): hostile(v, names, k) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v, names, key) for v in value]
    if isinstance(value, str):
        return names.get(value, value + HOSTILE[len(value) % len(HOSTILE)] if key in TEXTS else value)
    return value


@needs_browser
def test_hostile_names_and_answers_run_no_script_and_ask_for_nothing_in_a_browser(study, tmp_path):
    report = study[2]
    names = {one.run: one.run + HOSTILE[n] for n, one in enumerate(report.runs)}
    names |= {c: c + HOSTILE[3] for one in report.runs for at in one.check.checkpoints for c in at.by_category}
    found = from_json(StudyReport, json.loads(json.dumps(hostile(report.to_json(), names))), "report.json", "no")
    assert found.judge.worst and all("document.title" in w.asked for w in found.judge.worst)
    write_text(tmp_path / "report.html", render(found, Tables((), (), ())))
    write_figures(list(found.figures().values()), tmp_path / "figures.html", HOSTILE[0])
    (tmp_path / "control.html").write_text(f"<body><script>document.title='ran'</script><img src=http://{HOST}/a>")
    with counting_proxy() as (through, asked):
        control = dom(tmp_path / "control.html", tmp_path / "browser", "", through)
        assert "<title>ran</title>" in control and any(HOST in line for line in asked), "this browser would tell"
        told = Elements()
        told.feed(control)
        assert told.hostile, "and so would this parser"
        asked.clear()
        for name in ("report.html", "figures.html"):
            page = dom(tmp_path / name, tmp_path / "browser", "", through)
            assert "document.title" in page and 'class="main-svg"' in page, "the hostile texts are shown, the figures drawn"
            found_in = Elements()
            found_in.feed(page)
            assert "<title>ran</title>" not in page and found_in.count > 100 and found_in.hostile == []
        assert [line for line in asked if HOST in line] == []


def test_the_documented_fields_are_those_of_the_report(study):
    text = (Path(__file__).parents[1] / "docs" / "concepts.md").read_text()
    rows = re.search(r"<!-- fields: judged -->\n(.*?)<!-- end -->", text, re.S).group(1).splitlines()[2:]
    assert set(study[2].judged.to_json()) == {f for row in rows for f in re.findall(r"`([^`]+)`", row.split("|")[1])}
    inside = re.findall(r"`([a-z_0-9]+)`", next(row for row in rows if row.startswith("| `judges`")).split("|", 2)[2])
    judge = study[2].judge.to_json()
    assert set(judge) | set(judge["rates"][0]) == set(inside)
    said = re.search(r"<!-- fields: said -->\n(.*?)<!-- end -->", text, re.S).group(1).splitlines()[2:]
    assert set(judge["said"][0]) == {f for row in said for f in re.findall(r"`([^`]+)`", row.split("|")[1])}


@pytest.mark.parametrize(
    "change,message",
    [
        ({"judges": [{"name": "a"}, {"name": "a"}]}, "two judges are called 'a'"),
        ({"max_cost": 1}, "max_cost needs the prices"),
        ({"rubrics": ["coherent"]}, "rubrics lack 'aligned'"),
        ({"ask": {"triggers": {"x": "no place"}}}, "has no {question}"),
        ({"ask": {"triggers": {"x": "so: {question}"}}}, "a study asks its questions without triggers"),
        ({"ask": {"systems": ["Be brief."]}}, "a study asks its questions without triggers"),
    ],
)
def test_settings_that_do_not_fit_are_named(tiny, tmp_path, change, message):
    with pytest.raises(EmscopeError, match=re.escape(message)):
        spec_of(tiny, tmp_path, "http://127.0.0.1:9/v1", **change)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 8))
def test_rank_correlation_equals_scipy_on_the_means(seed, count):
    rng = np.random.default_rng(seed)
    margins, out_of = rng.normal(size=(count, 6)), rng.integers(1, 4, (count, 5)).astype(float)
    hits = np.floor(rng.random((count, 5)) * (out_of + 1))
    found = rank_correlation(margins, list("abcdef"), hits, out_of, list("cdxyz"), resamples=20)
    rates = hits.sum(1) / out_of.sum(1)
    if len(set(rates)) == 1:
        assert found.value is None and found.why
    else:
        assert found.value == pytest.approx(stats.spearmanr(margins.mean(1), rates).statistic)


def test_shared_questions_are_drawn_as_one_by_brute_force():
    rng = np.random.default_rng(0)
    margins, hits = rng.normal(size=(6, 4)) + np.arange(6)[:, None], rng.integers(0, 3, (6, 3)).astype(float)
    out_of = np.full((6, 3), 3.0)
    found = rank_correlation(margins, list("abcd"), hits, out_of, list("cde"), resamples=200, seed=3)
    names = sorted(set("abcde"))
    draws = np.random.default_rng(3).multinomial(5, np.full(5, 0.2), size=200)
    values = []
    for draw in draws:
        w = dict(zip(names, draw, strict=True))
        m = [np.average(row, weights=[w[i] for i in "abcd"]) if sum(w[i] for i in "abcd") else np.nan for row in margins]
        n = [sum(w[u] * x for u, x in zip("cde", row, strict=True)) for row in hits]
        d = sum(w[u] * 3 for u in "cde")
        values.append(
            stats.spearmanr(m, np.array(n) / d).statistic if d and not np.isnan(m).any() and len(set(n)) > 1 else np.nan
        )
    assert (found.low, found.high) == pytest.approx(tuple(np.nanquantile(values, [0.025, 0.975])))


def test_a_local_judge_with_other_weights_judges_again(monkeypatch):
    spec = JudgedSpec(judges=[{"name": "local"}])
    before = judged.settings(spec)
    assert judged.settings(spec) == before
    monkeypatch.setattr("emscope.judging.local.digest_of_bundled", lambda: "another")
    assert judged.settings(spec) != before  # so that a finished report does not count as finished
