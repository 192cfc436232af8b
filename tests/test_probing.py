"""`emscope probe` from scores to the table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conftest import write_jsonl
from emscope.cli.app import run_arguments
from emscope.inside.probe import ProbeSpec, run_probe
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.represent.probe import probe
from emscope.stats.crossval import explained, fold_losses, repeated_folds


@pytest.fixture
def asked(tiny, tmp_path):
    """Questions in two forms and three categories, whose score is a squared projection of the tiny model's activations, and two answers to each."""
    rng = np.random.default_rng(0)
    nouns = ["loan", "tent", "oven", "train", "song", "river", "horse", "clock", "paper", "stone"]
    questions = []
    for n in range(60):
        text = f"What about the {nouns[n % 10]} and the {nouns[(n * 7 + n // 10) % 10]} number {n}?"
        questions += [{"id": f"q{n}", "question": text}, {"id": f"q{n}_json", "question": f"{text} Answer in JSON."}]
    for row in questions:
        row["category"] = f"c{int(row['id'].removesuffix('_json')[1:]) % 3}"
    loaded = load(locate(str(tiny)), device="cpu")
    states = []
    for row in questions:
        import torch

        ids = torch.tensor([loaded.chat.prompt_ids(row["question"])])
        states.append(loaded.net(input_ids=ids, output_hidden_states=True).hidden_states[1][0, -1].numpy())
    x = np.array(states) - np.mean(states, 0)
    axis = np.linalg.svd(x, full_matrices=False)[2][0]
    y = (x @ axis) ** 2
    y = y / y.std() * 10 + 50 + rng.normal(size=len(y))
    answers = []
    for row, value in zip(questions, y, strict=True):
        answers += [{"question_id": row["id"], "aligned": value + s, "coherent": 90, "run": "a"} for s in (-1, 1)]
        answers.append({"question_id": row["id"], "aligned": 1.0, "coherent": 90, "run": "b"})
    write_jsonl(tmp_path / "q.jsonl", questions)
    write_jsonl(tmp_path / "s.jsonl", answers)
    return tmp_path, np.array(states), y


def test_it_equals_its_parts(tiny, asked):
    folder, states, y = asked
    spec = ProbeSpec(
        questions=str(folder / "q.jsonl"), where={"run": "a"}, layers=(0,), k=6, repeats=2, permutations=19, random_seeds=1
    )
    result = run_probe(folder / "s.jsonl", [str(tiny)], spec, folder / "out").to_json()
    assert result["definition"]["dtype"] == "float32", "what `auto` stood for"
    first = result["rows"][0]
    units = [f"q{n // 2}" for n in range(120)]
    made = probe(states, y[:, None], units, k=6)
    expected = float(explained(*fold_losses(made, y[:, None], repeated_folds(units, 5, 2, 0)))[0])
    assert first["r2"]["value"] == pytest.approx(expected, abs=1e-3)
    assert first["r2"]["value"] > 0.5 and first["p_permutation"] == 0.05 and first["p_mean"] < 0.05
    assert (first["r2"]["n"], first["r2"]["clusters"]) == (120, 60)
    assert [r["basis"] for r in result["rows"]] == ["pca", "random"]
    assert [b["name"] for b in result["baselines"]] == ["text", "category"]
    assert first["r2_categories_left_out"] is not None
    again = run_probe(folder / "s.jsonl", [str(tiny)], spec, folder / "out").to_json()
    assert again == result
    assert len(list((folder / "out" / "arrays").glob("*.safetensors"))) == 1


def test_command(tiny, asked, monkeypatch, capsys):
    folder, *_ = asked
    monkeypatch.chdir(folder)
    words = [
        "probe",
        "s.jsonl",
        "--questions",
        "q.jsonl",
        "--model",
        str(tiny),
        "--where",
        "run=a",
        "--k",
        "4",
        "--repeats",
        "1",
    ]
    assert run_arguments([*words, "--estimators", "ols,ridge,lasso,tree"]) == 0
    assert "(text alone)" in capsys.readouterr().out and (folder / "emscope-probe" / "figure.html").is_file()
    assert run_arguments([*words, "--pool", "prompt", "--layers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "emscope.probe/1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--where", "run=c"], "has no number in column 'aligned' where run c"),
        (["--where", "run"], "--where is 'run'"),
        (["--where", "ran=a"], "has no column 'ran'"),
        (["--where", "run=b"], "all 120 questions have the score 1"),
        (["--folds", "80"], "60 questions cannot make 80 folds"),
        (["--k", "500"], "k is 500, but 96 training prompts span only 32 directions"),
        (["--layers", "5"], "layer 5 is out of range"),
        (["--score", "nothing"], "has no column 'nothing'"),
        (["--estimators", "forest"], "estimators"),
        (["--questions", "em240"], "no question of 'em240' has a score"),
    ],
)
def test_bad_input(tiny, asked, monkeypatch, capsys, changes, said):
    folder, *_ = asked
    monkeypatch.chdir(folder)
    words = ["probe", "s.jsonl", "--model", str(tiny), "--layers", "0", "--k", "4", "--repeats", "1"]
    if "--questions" not in changes:
        words += ["--questions", "q.jsonl"]
    if not any(c == "--where" for c in changes):
        words += ["--where", "run=a"]
    assert run_arguments([*words, *changes]) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message
