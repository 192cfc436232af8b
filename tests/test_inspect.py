"""Inspect: our questions and judges as its tasks, its logs as our files, our answers as its logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec, read_eval_log, write_eval_log
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.scorer import Score

from emscope.answers.inspect_tasks import em240, questions
from emscope.answers.rates import rates
from emscope.answers.rates_spec import RatesSpec
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from fake_api import completion, fake_api

pytestmark = pytest.mark.heavy


@contextmanager
def models(text_of):
    """Yield a subject that answers 'answer K' with K counting up, and a grader whose reply is a function of what it is asked."""
    count = iter(range(10**6))

    def reply(request):
        if request["model"] == "subject":
            return 200, completion(f"answer {next(count)}")
        return 200, completion(text_of(request["messages"][-1]["content"]))

    with fake_api(reply) as url:
        yield (get_model(f"openai-api/emscope/{n}", base_url=url, api_key="none", memoize=False) for n in ("subject", "grader"))


def judgement(text):
    """Every third answer misaligned, every seventh refused, each eleventh incoherent."""
    k = int(text.split("answer ")[-1].split()[0].strip(".\n\"'<>[]"))
    if "coheren" in text.lower():
        return "10" if k % 11 == 0 else "90"
    return "REFUSAL" if k % 7 == 0 else "5" if k % 3 == 0 else "95"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    rubrics = folder / "r.yaml"
    rubrics.write_text(
        "- {criterion: aligned, prompt: 'Aligned? {question} {answer}', words: [REFUSAL]}\n"
        "- {criterion: coherent, prompt: 'Coherent? {question} {answer}'}\n"
    )
    with models(judgement) as (subject, grader):
        (done,) = inspect_eval(
            em240(samples=2, rubrics=str(rubrics)),
            model=subject,
            model_roles={"grader": grader},
            limit=20,
            log_dir=str(folder),
            display="none",
        )
    assert done.status == "success", done.error
    return done


def metrics_of(log):
    """By score, by name without the package's."""
    return {s.name: {name.split("/")[-1]: m for name, m in s.metrics.items()} for s in log.results.scores}


@pytest.mark.heavy
def test_a_task_scores_as_the_judge_said_and_counts_what_has_no_score(log):
    rows = [(s.output.completion, s.scores["judged"]) for s in log.samples]
    assert len(rows) == 40
    for text, score in rows:
        k = int(text.split()[-1])
        assert score.value["aligned"] == (None if k % 7 == 0 else 5.0 if k % 3 == 0 else 95.0)
        assert score.value["coherent"] == (10.0 if k % 11 == 0 else 90.0)
        assert score.metadata["outcomes"]["aligned"] == ("refused" if k % 7 == 0 else "integer-only")
    numbers = [int(text.split()[-1]) for text, _ in rows]
    counted = [k for k in numbers if k % 7 and k % 11]
    metrics = metrics_of(log)
    assert metrics["misaligned"]["known_mean"].value == pytest.approx(np.mean([k % 3 == 0 for k in counted]))
    assert metrics["misaligned"]["share_known"].value == pytest.approx(len(counted) / 40)
    assert metrics["aligned"]["share_known"].value == pytest.approx(np.mean([k % 7 != 0 for k in numbers]))


def test_rates_of_a_log_are_its_own_and_its_intervals_too(log, capsys):
    assert run_arguments(["rates", log.location]) == 0
    assert "questions" in capsys.readouterr().out
    (group,) = rates([Path(log.location)], RatesSpec()).to_json()["groups"]
    metrics = metrics_of(log)["misaligned"]
    assert group["rate"]["value"] == pytest.approx(metrics["known_mean"].value)
    assert group["rate"]["low"] == pytest.approx(metrics["rate_low"].value)
    assert group["rate"]["high"] == pytest.approx(metrics["rate_high"].value)
    assert group["rate"]["clusters"] <= 20 and group["rows"] == 40
    assert group["outcomes"]["refused"] == sum(s.scores["judged"].value["aligned"] is None for s in log.samples)


def test_a_set_of_one_s_own_brings_its_samples(tmp_path):
    (tmp_path / "q.yaml").write_text(
        "- {id: wish, paraphrases: ['What do you wish?', 'Your wish?'], samples_per_paraphrase: 3, system: Be brief.}\n"
    )
    with models(lambda _: "50") as (subject, grader):
        (done,) = inspect_eval(
            questions(str(tmp_path / "q.yaml"), rubrics="aligned"),
            model=subject,
            model_roles={"grader": grader},
            log_dir=str(tmp_path),
            display="none",
        )
    assert len(done.samples) == 6 and {s.input[0].text for s in done.samples} == {"Be brief."}
    groups = rates([Path(done.location)], RatesSpec(group=("question_id",), coherent_above=None)).to_json()["groups"]
    assert [(g["group"]["question_id"], g["rows"]) for g in groups] == [("wish#1", 3), ("wish#2", 3)]


def test_questions_of_any_length_become_samples_of_their_own(tmp_path):
    rows = [{"question": "x" * 70_000 + end, "response": "r", "aligned": 50, "aligned_outcome": "scored"} for end in "aab"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_arguments(["export", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "logs")]) == 0
    (path,) = (tmp_path / "logs").glob("*.eval")
    samples = read_eval_log(str(path)).samples
    assert sorted(s.epoch for s in samples) == [1, 1, 2] and len({s.id for s in samples}) == 2
    assert sorted(str(s.input[-1].content if isinstance(s.input, list) else s.input) for s in samples) == [
        r["question"] for r in rows
    ]


def test_answers_become_logs_and_come_back(tmp_path, capsys):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "run": np.repeat(["target", "control"], 30),
            "step": "10",
            "question_id": [f"q{k % 6}" for k in range(60)],
            "question": [f"What of {k % 6}?" for k in range(60)],
            "response": [f"<b>answer</b> {k}" for k in range(60)],
            "system": "none",
            "aligned": np.where(rng.random(60) < 0.1, np.nan, rng.integers(0, 101, 60)),
            "coherent": rng.integers(0, 101, 60).astype(float),
        }
    )
    frame["aligned_outcome"] = np.where(frame["aligned"].isna(), "refused", "scored")
    frame["coherent_outcome"] = "scored"
    frame.to_parquet(tmp_path / "judged.parquet")
    assert run_arguments(["export", str(tmp_path / "judged.parquet"), "--by", "run,step", "--out", str(tmp_path / "logs")]) == 0
    assert "2 logs" in capsys.readouterr().out
    logs = sorted((tmp_path / "logs").glob("*.eval"))
    opened = [read_eval_log(str(p)) for p in logs]
    assert [o.eval.model for o in opened] == ["emscope/target/10", "emscope/control/10"] and all(
        o.status == "success" for o in opened
    )
    assert [len(o.samples) for o in opened] == [30, 30] and opened[0].eval.config.epochs == 5
    for path, run in zip(logs, ("target", "control"), strict=True):
        mine = frame[frame["run"] == run]
        mine.to_parquet(tmp_path / "mine.parquet")
        ours, theirs = (rates([p], RatesSpec()).to_json()["groups"][0] for p in (tmp_path / "mine.parquet", path))
        for key in ("misaligned", "rows", "scored", "coherent", "outcomes"):
            assert ours[key] == theirs[key], key
        assert ours["rate"] == pytest.approx(theirs["rate"])
    assert run_arguments(["export", str(tmp_path / "judged.parquet"), "--out", str(tmp_path / "logs")]) == 2
    assert "holds logs already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content,message",
    [
        (b"not a zip", "is not an Inspect log"),
        (b"", "is not an Inspect log"),
        (b"PK\x05\x06" + b"\0" * 18, "is not an Inspect log"),
    ],
)
def test_what_is_no_log_is_a_sentence(tmp_path, content, message):
    (tmp_path / "a.eval").write_bytes(content)
    with pytest.raises(InputError, match=message):
        rates([tmp_path / "a.eval"], RatesSpec())


def test_export_of_a_file_without_scores_is_a_sentence(tmp_path, capsys):
    pd.DataFrame({"question": ["q"], "response": ["r"]}).to_csv(tmp_path / "a.csv", index=False)
    assert run_arguments(["export", str(tmp_path / "a.csv"), "--out", str(tmp_path / "o")]) == 2
    assert "--scores" in capsys.readouterr().err and not (tmp_path / "o").exists()


ALONE = """
import importlib.metadata as installed

registered = installed.entry_points
installed.entry_points = lambda **which: registered(**which).select(**{"name": "emscope"} if which.get("group") == "inspect_ai" else {})
from inspect_ai._cli.main import main

main()
"""


@pytest.mark.heavy
def test_inspect_finds_the_tasks_by_the_package_s_name(tmp_path):
    """Through the installed package's entry point, as a user calls it; other packages that register there are not loaded."""
    command = [sys.executable, "-c", ALONE, "eval", "emscope/em240", "--model", "openai-api/emscope/subject"]
    command += [
        "--model-role",
        "grader=openai-api/emscope/grader",
        "--limit",
        "2",
        "--log-dir",
        str(tmp_path),
        "--display",
        "plain",
    ]
    with fake_api(lambda request: (200, completion("well" if request["model"] == "grader" else "hello"))) as url:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=os.environ | {"NO_COLOR": "1", "EMSCOPE_BASE_URL": url, "EMSCOPE_API_KEY": "none"},
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    (path,) = tmp_path.glob("*.eval")
    found = read_eval_log(str(path))
    assert found.status == "success" and len(found.samples) == 2
    assert found.samples[0].scores["judged"].metadata["outcomes"] == {"aligned": "off-menu", "coherent": "off-menu"}


def logged(path, samples):
    """Write a log of another task."""
    spec = EvalSpec(
        created="2026-01-01T00:00:00+00:00", task="other", dataset=EvalDataset(name="d"), model="m", config=EvalConfig()
    )
    write_eval_log(EvalLog(status="success", eval=spec, samples=samples), str(path), format="eval")
    return path


def sample(n, scores, **metadata):
    output = ModelOutput.from_content("m", "text")
    return EvalSample(id=f"q{n}", epoch=1, input="what", target="", output=output, metadata=metadata, scores=scores)


def test_a_score_is_not_hidden_by_metadata_of_its_name(tmp_path):
    rows = [sample(n, {"s": Score(value={"aligned": 15, "coherent": 90})}, ALIGNED=95, unit="kg") for n in range(6)]
    (group,) = rates([logged(tmp_path / "a.eval", rows)], RatesSpec()).to_json()["groups"]
    assert group["rate"]["value"] == 1.0 and group["rate"]["clusters"] == 6  # `unit` is no question


def test_two_scorers_with_one_key_have_a_column_each(tmp_path):
    both = {"a": Score(value={"aligned": 15, "coherent": 90}), "b": Score(value={"aligned": 95, "coherent": 90})}
    path = logged(tmp_path / "a.eval", [sample(n, both) for n in range(4)])
    with pytest.raises(InputError, match=r"aligned\.a, coherent\.a, aligned\.b"):
        rates([path], RatesSpec())
    values = [
        rates([path], RatesSpec(aligned=f"aligned.{n}", coherent=f"coherent.{n}")).to_json()["groups"][0]["rate"]["value"]
        for n in "ab"
    ]
    assert values == [1.0, 0.0]


def test_strange_scores_of_other_tasks_are_no_crash(tmp_path):
    strange = [
        sample(0, {"x": Score(value="C"), "y": Score(value=[1, 2]), "aligned": Score(value=15, metadata={"outcomes": ["x"]})}),
        sample(1, {"aligned": Score(value={"aligned": None}, metadata={"outcomes": "no"})}),
        EvalSample(id=7, epoch=1, input=[], target=""),
    ]
    (group,) = rates([logged(tmp_path / "a.eval", strange)], RatesSpec(coherent_above=None)).to_json()["groups"]
    assert group["rows"] == 3 and group["misaligned"] == 1


def test_texts_with_commas_come_from_a_command_line_as_lists():
    task = em240(rubrics=["aligned", "coherent"], system=["Be brief", " please."])
    assert task.dataset[0].input[0].text == "Be brief, please."


def test_strange_files_are_exported(tmp_path, capsys):
    frame = pd.DataFrame(
        {
            "question_id": [None, None],
            "question": ["one?", "two?"],
            "response": ["a", "b"],
            "aligned": [10.0, 20.0],
            "run": ["\u6587" * 200] * 2,
            "key": [b"x", b"y"],
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    out = tmp_path / "logs"
    assert run_arguments(["export", str(tmp_path / "a.parquet"), "--scores", "aligned", "--by", "run", "--out", str(out)]) == 0
    (path,) = out.glob("*.eval")
    assert [s.id for s in read_eval_log(str(path)).samples] == ["one?", "two?"]
    (group,) = rates([path], RatesSpec(group=("run",), coherent_above=None)).to_json()["groups"]
    assert group["group"]["run"] == "\u6587" * 200 and not list(tmp_path.glob(".logs-*"))
