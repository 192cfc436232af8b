"""Judging files: every answer ends with a verdict or a counted outcome, none twice, through faults, kills and cost limits."""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import signal
import threading
import time
from collections import Counter

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from emscope.answers import judging
from emscope.answers.judge import FileJob, judge_file
from emscope.answers.judging import JudgeSpec
from emscope.answers.rates import rates
from emscope.answers.rates_spec import RatesSpec
from emscope.cli.app import main, run_arguments
from emscope.core.errors import InputError
from emscope.judging.rubrics import bundled_rubrics
from emscope.store.study import read_table
from fake_api import completion, fake_api

RUBRICS = [bundled_rubrics()[c] for c in ("aligned", "coherent")]


def answers(tmp_path, count=40, name="answers.csv"):
    frame = pd.DataFrame(
        {
            "question": [f"question {n % 8}" for n in range(count)],
            "response": [f"answer {n}" for n in range(count)],
            "arm": ["x" if n % 2 else "y" for n in range(count)],
        }
    )
    frame.to_csv(tmp_path / name, index=False)
    return tmp_path / name


def number_in(request):
    """The answer's own number decides the score, so that a verdict that landed on another answer shows."""
    return int(re.search(r"answer (\d+)", request["messages"][-1]["content"]).group(1))


def right(request):
    score = number_in(request) % 101
    return 200, completion(str(score), {str(score): -0.01})


def job(tmp_path, path, **more):
    return FileJob((path,), more.pop("question", None), more.pop("answer", None), tmp_path / more.pop("out", "out"))


def read(folder):
    return pq.read_table(folder / "judged.parquet").to_pandas()


def test_every_answer_gets_its_own_score_by_each_criterion(tmp_path):
    path = answers(tmp_path)
    with fake_api(right) as url:
        result = judge_file(job(tmp_path, path), [JudgeSpec(name="m", url=url)], RUBRICS)
    rows = read(tmp_path / "out")
    assert result.complete and result.verdicts.outcomes == {"scored": 80}
    assert list(rows.columns) == ["question", "response", "arm", "aligned", "aligned_outcome", "coherent", "coherent_outcome"]
    assert list(rows["aligned"]) == list(rows["coherent"]) == pytest.approx([float(n) for n in range(40)])
    found = rates([tmp_path / "out" / "judged.parquet"], RatesSpec(group=("arm",), coherent_above=20)).to_json()["groups"]
    assert sum(g["misaligned"] for g in found) == 9, "scores 21 to 29"


def test_equal_answers_are_asked_once_and_a_second_call_asks_nothing(tmp_path):
    path = tmp_path / "a.csv"
    pd.DataFrame({"question": ["q"] * 6 + [""], "response": ["answer 1", "answer 2"] * 3 + ["answer 3"]}).to_csv(
        path, index=False
    )
    count = Counter()
    with fake_api(lambda r: count.update(["asked"]) or right(r)) as url:
        judge = JudgeSpec(name="m", url=url)
        judge_file(job(tmp_path, path), [judge], RUBRICS[:1])
        assert count["asked"] == 2
        again = judge_file(job(tmp_path, path), [judge], RUBRICS[:1])
        assert count["asked"] == 2 and again.verdicts.before == 2
        judge_file(job(tmp_path, path), [judge], RUBRICS)
        assert count["asked"] == 4, "the other criterion alone"
    rows = read(tmp_path / "out")
    assert list(rows["aligned"])[:6] == pytest.approx([1, 2] * 3) and rows["aligned_outcome"].isna().to_list() == [
        False
    ] * 6 + [True]


FAULTS = ["429", "500", "cut", "slow", "empty", "no json", "8/10", "no choices", "refusal", "off"]


def faulty(seed=0, share=0.3):
    """Answers 30 % of the calls wrongly, in ten ways."""
    rng, lock = random.Random(seed), threading.Lock()

    def answer(request):
        with lock:
            fault = rng.choice(FAULTS) if rng.random() < share else None
        if fault is None:
            return right(request)
        if fault == "cut":
            return None
        if fault == "slow":
            time.sleep(0.3)
            return right(request)
        return {
            "429": (429, {"error": {"message": "slow down"}}),
            "500": (500, {"error": {"message": "broken"}}),
            "empty": (200, completion("", {"": -0.1})),
            "no json": (200, b"<html>busy</html>"),
            "8/10": (200, completion("8/10")),
            "no choices": (200, completion("x") | {"choices": []}),
            "refusal": (200, completion("REFUSAL", {"REF": -0.1})),
            "off": (200, completion("I would rather not say.", {"I": -0.1})),
        }[fault]

    return answer


def check_whole(folder, count, criteria=2):
    """Each answer has one row a criterion, in verdicts or in failures, and each score is that answer's own."""
    verdicts, failed = (read_table(folder, t).to_pylist() for t in ("verdicts", "failures"))
    keys = [(r["response"], r["criterion"]) for r in [*verdicts, *failed]]
    assert len(keys) == len(set(keys)) == count * criteria
    rows = read(folder)
    for criterion in ("aligned", "coherent")[:criteria]:
        scored = rows[rows[f"{criterion}_outcome"].isin(["scored", "integer-only"])]
        assert len(scored) > count / 2
        assert (scored[criterion].round(9) == scored["response"].str.split().str[1].astype(int) % 101).all()
        assert rows[f"{criterion}_outcome"].notna().all()
        assert rows.loc[~rows[f"{criterion}_outcome"].isin(["scored", "integer-only"]), criterion].isna().all()
    return Counter(r["outcome"] for r in verdicts), len(failed)


@pytest.mark.heavy
def test_faults_end_in_counted_outcomes(tmp_path):
    path = answers(tmp_path, 60)
    with fake_api(faulty()) as url:
        judge = JudgeSpec(name="m", url=url, retries=1, timeout=5, connections=20)
        judge_file(job(tmp_path, path), [judge], RUBRICS)
    outcomes, _ = check_whole(tmp_path / "out", 60)
    assert {"scored", "refused", "empty", "wrong-scale", "low-mass"} <= set(outcomes), outcomes
    with fake_api(right) as url:  # another port is another judge: nothing is mixed up
        again = judge_file(job(tmp_path, path), [JudgeSpec(name="m", url=url)], RUBRICS)
    assert again.verdicts.before == 0


@pytest.mark.heavy
def test_what_failed_is_asked_again_by_the_next_call(tmp_path):
    path, broken = answers(tmp_path, 20), [True]

    def answer(request):
        return (400, {"error": {"message": "no"}}) if broken[0] and number_in(request) % 2 else right(request)

    with fake_api(answer) as url:
        judge = JudgeSpec(name="m", url=url, retries=0)
        first = judge_file(job(tmp_path, path), [judge], RUBRICS[:1])
        assert not first.complete and first.verdicts.failed == 10
        assert Counter(read(tmp_path / "out")["aligned_outcome"]) == {"scored": 10, "failed": 10}
        broken[0] = False
        second = judge_file(job(tmp_path, path), [judge], RUBRICS[:1])
    assert second.complete and second.verdicts.outcomes == {"scored": 10} and second.verdicts.failed == 0


def writing_often(words):
    judging.FLUSH_ROWS = 20
    main(words)


@pytest.mark.heavy
def test_kill_9_and_resume_lose_and_double_nothing(tmp_path):
    path, asked, enough = answers(tmp_path, 100), [], threading.Event()
    faulty_answer = faulty(seed=3)

    def slow(request):
        asked.append(number_in(request))
        if len(asked) >= 60:
            enough.set()
        time.sleep(0.02)
        return faulty_answer(request)

    with fake_api(slow) as url:
        words = ["judge", str(path), "--out", str(tmp_path / "out"), "--rubrics", "aligned", "--judge", f"m@{url}"]
        words += ["--connections", "4", "--timeout", "60", "--retries", "0"]
        process = multiprocessing.get_context("fork").Process(target=writing_often, args=(words,))
        process.start()
        while not enough.wait(0.1):
            assert process.is_alive(), "it ended before it had asked that often"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was killed in the middle"
        kept = {
            round(row["score"]) for row in read_table(tmp_path / "out", "verdicts").to_pylist() if row["outcome"] == "scored"
        }
        asked.clear()
        codes = [run_arguments(words)]
        while codes[-1] == 1 and len(codes) < 12:  # each call asks again what failed
            codes.append(run_arguments(words))
    assert set(codes[:-1]) <= {1} and codes[-1] == 0
    assert len(kept) >= 20 and not kept & set(asked), "what was written before the kill is not asked again"
    check_whole(tmp_path / "out", 100, criteria=1)


@pytest.mark.heavy
def test_several_judges_have_columns_of_their_own_and_can_be_compared(tmp_path, capsys):
    path = answers(tmp_path, 30)
    with fake_api(right) as url, fake_api(lambda r: (200, completion(str(min(100, number_in(r) + 3))))) as other:
        judges = [JudgeSpec(name="a", url=url), JudgeSpec(name="b", url=other, top=0)]
        judge_file(job(tmp_path, path), judges, RUBRICS[:1])
    rows = read(tmp_path / "out")
    assert ((rows["aligned.b"] - rows["aligned.a"]).round(9) == 3).all() and set(rows["aligned.b_outcome"]) == {"integer-only"}
    judged = str(tmp_path / "out" / "judged.parquet")
    assert run_arguments(["agreement", judged, "--scores", "aligned.a,aligned.b", "--json"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert pair["bias"]["value"] == pytest.approx(-3) and pair["spearman"]["value"] == pytest.approx(1)


@pytest.mark.heavy
def test_cost_is_estimated_counted_and_limited(tmp_path, capsys):
    path = answers(tmp_path, 60)
    count = Counter()
    with fake_api(lambda r: count.update(["x"]) or right(r)) as url:
        base = [
            "judge",
            str(path),
            "--judge",
            f"m@{url}",
            "--rubrics",
            "aligned",
            "--out",
            str(tmp_path / "out"),
            "--prices",
            "10,20",
        ]
        assert run_arguments([*base, "--estimate"]) == 0
        assert not count and not (tmp_path / "out").exists() and "60 verdicts needed" in capsys.readouterr().out
        # a verdict costs 100 tokens in and 2 out
        assert run_arguments([*base, "--connections", "1", "--max-cost", str(10.5 * (100 * 10 + 2 * 20) / 1e6)]) == 1
        assert "stopped at `max_cost`" in capsys.readouterr().out and count["x"] == 11
        assert run_arguments([*base, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
    assert count["x"] == 60 and result["verdicts"] == {"wanted": 60, "before": 11, "outcomes": {"scored": 49}, "failed": 0}
    assert result["dollars"]["spent"] == pytest.approx(49 * 1040 / 1e6)


def test_a_behaviour_of_the_user_s_own(tmp_path):
    rubric = tmp_path / "pirate.yaml"
    rubric.write_text(
        yaml.safe_dump({"criterion": "pirate", "prompt": "{question} answer {answer}", "labels": {"YES": 100, "NO": 0}})
    )
    path = answers(tmp_path, 10)
    with fake_api(lambda r: (200, completion("Yes" if number_in(r) % 2 else "no"))) as url:
        arguments = ["judge", str(path), "--judge", f"m@{url}", "--rubrics", str(rubric), "--out", str(tmp_path / "out")]
        assert run_arguments(arguments) == 0
    assert list(read(tmp_path / "out")["pirate"]) == [0, 100] * 5


BAD = [
    (["--judge", "m@http://127.0.0.1:9/v1", "--retries", "0"], 1, "does not answer"),
    (["--judge", "openai/gpt-4o"], 2, "needs the environment variable OPENAI_API_KEY"),
    (["--judge", "openai/gpt-4o", "--max-cost", "1"], 2, "--max-cost needs the price"),
    (["--judge", "openai/gpt-4o", "--prices", "1"], 2, "--prices is '1'"),
    (["--judge", "openai/gpt-4o", "--rubrics", "alignd"], 2, "did you mean 'aligned'"),
    (["--judge", "openai/gpt-4o", "--answer", "reponse"], 2, "no column 'reponse'; did you mean 'response'"),
    (["--judge", "m", "--top", "40"], 2, "--top is '40'"),
]


@pytest.mark.parametrize(("options", "code", "message"), BAD, ids=[m for *_, m in BAD])
def test_bad_input_is_one_sentence(options, code, message, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = answers(tmp_path, 4)
    assert run_arguments(["judge", str(path), "--out", str(tmp_path / "out"), *options]) == code
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_file_may_grow_and_another_needs_another_folder(tmp_path):
    count = Counter()
    with fake_api(lambda r: count.update(["x"]) or right(r)) as url:
        judge = JudgeSpec(name="m", url=url)
        judge_file(job(tmp_path, answers(tmp_path, 4)), [judge], RUBRICS[:1])
        judge_file(job(tmp_path, answers(tmp_path, 6)), [judge], RUBRICS[:1])
        assert count["x"] == 6 and len(read(tmp_path / "out")) == 6
        with pytest.raises(InputError, match="holds a study with other settings"):
            judge_file(job(tmp_path, answers(tmp_path, 6, "other.csv")), [judge], RUBRICS[:1])


def test_another_judge_s_failures_are_its_own_and_a_job_done_at_the_limit_is_done(tmp_path):
    path = answers(tmp_path, 6)
    with fake_api(
        lambda r: (400, {"error": {"message": "no"}}) if "answer 0" in r["messages"][-1]["content"] else right(r)
    ) as url:
        first = judge_file(job(tmp_path, path), [JudgeSpec(name="a", url=url, retries=0)], RUBRICS[:1])
        again = judge_file(job(tmp_path, path), [JudgeSpec(name="a", url=url, retries=0)], RUBRICS[:1])
    assert first.verdicts.failed == again.verdicts.failed == 1 and not again.complete
    with fake_api(right) as url:
        other = JudgeSpec(name="b", url=url, prices=(1000, 0))
        second = judge_file(job(tmp_path, path), [other], RUBRICS[:1], max_cost=0.6)  # 100 tokens each: the sixth reaches it
    assert second.verdicts.failed == 0 and second.complete and not second.stopped_at_cost


def test_digits_are_followed_only_where_there_is_a_number_to_follow(tmp_path):
    path = answers(tmp_path, 3)
    replies = iter(
        [completion("REFUSAL", {"REF": -0.03, **{str(d): -7.0 for d in range(10)}}), split_number("57"), split_number("8")]
    )

    with fake_api(lambda r: (200, next(replies))) as url:
        result = judge_file(job(tmp_path, path), [JudgeSpec(name="a", url=url, digits=True, connections=1)], RUBRICS[:1])
    assert result.verdicts.outcomes == {"refused": 1, "integer-only": 2}


def split_number(text):
    """A reply whose digits are tokens of their own, from a server that gives no likeliest tokens."""
    body = completion(text)
    content = [{"token": d, "logprob": -0.1, "bytes": None, "top_logprobs": []} for d in text]
    body["choices"][0]["logprobs"] = {"content": content}
    return body
