"""The Python API: the commands as functions, equal to the command line, quiet, lazy, and polite to what is in memory."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import emscope
from conftest import FEW, write_jsonl
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from test_checkpoints import make_adapter

FAST = {"measure": "preference", "count": 32, "truth": 4}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """(target, control): folders of two checkpoints each."""
    root = tmp_path_factory.mktemp("api")
    for run, seed in (("target", 1), ("control", 2)):
        for step in (2, 4):
            make_adapter(tiny, root / run / f"checkpoint-{step}", seed=10 * seed + step)
    return root / "target", root / "control"


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(0)
    rows = [
        {"question": f"q{q}", "response": "So it is.", "model": m, "step": s, "aligned": rng.uniform(0, 100), "coherent": rng.uniform(40, 100)}
        for m in ("base", "tuned")
        for s in (0, 10)
        for q in range(8)
        for _ in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def said(capsys, *words):
    assert run_arguments([str(w) for w in words]) == 0
    return json.loads(capsys.readouterr().out)


def test_importing_costs_nothing_and_offers_what_it_says():
    script = (
        "import sys, time; t = time.perf_counter(); import emscope; seconds = time.perf_counter() - t; "
        "assert 'check' in dir(emscope); assert not {'torch', 'numpy', 'transformers', 'pydantic'} & sys.modules.keys(); print(seconds)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.2
    assert all(callable(getattr(emscope, name)) for name in emscope.__all__)
    with pytest.raises(AttributeError, match="no attribute 'chekc'"):
        emscope.chekc  # noqa: B018


def test_no_package_takes_the_place_of_a_function():
    for module in pkgutil.walk_packages(emscope.__path__, "emscope."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert all(callable(getattr(emscope, name)) for name in emscope.__all__)


def test_a_check_is_that_of_the_command_line(runs, tmp_path, capsys):
    target, control = runs
    result = emscope.check(target, control=control, out=tmp_path / "api", **FAST)
    assert capsys.readouterr().out == "", "nothing prints"
    words = [
        "check",
        target,
        "--control",
        control,
        "--measure",
        "preference",
        "--count",
        32,
        "--truth",
        4,
        "--out",
        tmp_path / "cli",
        "--json",
    ]
    assert result.to_json() == said(capsys, *words)
    assert str(result.verdict) == result.to_json()["runs"][0]["check"]["verdict"] and result.check.checkpoints[-1].step == 4
    frame = result.to_frame()
    assert frame["step"].tolist() == [2, 4]
    assert frame["effect_low"][1] == result.check.checkpoints[1].effect.low
    assert {"drift", "categories", "margins"} <= result.figures().keys() and result.sentences()[0].startswith("A screen")
    folder = result.save(tmp_path / "saved")
    assert json.loads((folder / "result.json").read_text()) == result.to_json() and (folder / "drift.html").is_file()
    assert "<table>" in result._repr_html_() and "<script" not in result._repr_html_()


def test_a_model_in_memory_is_read_as_its_folder_is_and_given_back(tiny, runs, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    tokenizer.pad_token, template = None, tokenizer.chat_template
    net.train()
    net.model.norm.eval()  # some keep a part of a model in another mode
    net.model.embed_tokens.weight.requires_grad_(False)
    modes, trainable = ([m.training for m in net.modules()], [p.requires_grad for p in net.parameters()])
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    held = emscope.check(runs[0], base=(net, tokenizer), out=tmp_path / "held", **FAST)
    named = emscope.check(runs[0], base=tiny, out=tmp_path / "named", **FAST)
    assert held.check.to_json()["checkpoints"] == named.check.to_json()["checkpoints"]
    assert "in memory" in held.base.reference
    assert [m.training for m in net.modules()] == modes and len(set(modes)) == 2
    assert [p.requires_grad for p in net.parameters()] == trainable and len(set(trainable)) == 2
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())
    assert tokenizer.pad_token is None and tokenizer.chat_template == template
    with torch.no_grad():
        net.model.layers[0].mlp.down_proj.weight += 0.1
    with pytest.raises(InputError, match="other settings"):
        emscope.check(runs[0], base=(net, tokenizer), out=tmp_path / "held", **FAST)


def test_a_wrapped_model_or_a_missing_tokenizer_is_refused(tiny, runs):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(tiny)
    with pytest.raises(InputError, match="tokenizer"):
        emscope.check(runs[0], base=(net, None), **FAST)
    wrapped = get_peft_model(net, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(InputError, match="carries an adapter"):
        emscope.check(runs[0], base=(wrapped, None), **FAST)


def test_files_and_data_frames_of_answers_give_what_the_command_line_gives(answers, tmp_path, capsys):
    path = tmp_path / "answers.parquet"
    answers.to_parquet(path)
    of_frame = emscope.rates(answers, group=("model",), control="base").to_json()
    of_path = emscope.rates(path, group=("model",), control="base").to_json()
    told = said(capsys, "rates", path, "--group", "model", "--control", "base", "--json")
    assert of_path == told and {**of_frame, "files": None} == {**told, "files": None}
    onset = emscope.onset(answers, unit="question", arm="model", control="base").to_json()
    assert (
        onset["groups"]
        == said(capsys, "onset", path, "--unit", "question", "--arm", "model", "--control", "base", "--json")["groups"]
    )
    agreed = emscope.agreement(answers, scores=("aligned", "coherent")).to_json()
    assert agreed["pairs"] == said(capsys, "agreement", path, "--scores", "aligned,coherent", "--json")["pairs"]
    with pytest.raises(InputError, match="gruop"):
        emscope.rates(answers, gruop=("model",))


def test_sampled_answers_of_a_model_in_memory(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    questions = write_jsonl(tmp_path / "q.jsonl", [{"id": "a", "question": "Why?"}, {"id": "b", "question": "How?"}])
    base = (AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny))
    how = {"questions": str(questions), "samples": 2, "max_tokens": 4}
    held = pd.read_parquet(emscope.sample(base=base, out=tmp_path / "held", **how))
    named = pd.read_parquet(emscope.sample(base=tiny, out=tmp_path / "named", **how))
    assert len(held) == 4 and held["question"].tolist() == named["question"].tolist()


def test_a_study_from_a_mapping(tiny, tmp_path, capsys):
    settings = {
        "name": "tiny", "model": str(tiny), "domain": "finance",
        "arms": {
            "target": {"role": "target", "answers": "reckless", **FEW},
            "control": {"role": "control", "answers": "careful", **FEW},
        },
        "train": {"steps": 2, "batch": 2, "lr": 1e-2, "lora": {"rank": 4, "alpha": 8}},
        "measure": {"count": 16, "heldout": 2, "truth": 0, "neutral": 0, "samples": {"questions": 0}},
    }  # fmt: skip
    with pytest.raises(InputError, match="`workers` is 3, but `engine=serial` has only this process"):
        emscope.run_study(settings, tmp_path / "study", workers=3)
    result = emscope.run_study(settings, tmp_path / "study")
    assert capsys.readouterr().out == "" and list(result.verdicts) == ["target-seed0"]
    assert [r["step"] for r in result.rows()] == [1, 2] and "drift" in result.figures()
    from emscope.study.report import StudyReport

    assert StudyReport.in_folder(tmp_path / "study").to_json() == result.to_json()
    with pytest.raises(InputError, match="holds no finished study"):
        StudyReport.in_folder(tmp_path)


def test_a_look_inside_from_python(runs, tmp_path, capsys):
    files = [tmp_path / "target.safetensors", tmp_path / "control.safetensors"]
    for run, file in zip(runs, files, strict=True):
        found = emscope.extract(file, checkpoint=run, half="A", count=16, layers=[0, 1])
        assert found.to_json()["schema"] and file.is_file()
    assert emscope.compare(files).to_json() == said(capsys, "direction", "compare", *files, "--json")
    acted = emscope.steer(files[0], tmp_path / "steer", checkpoints=runs[0], layers=[1], half="B", count=16, nulls=0)
    assert acted.rows() and acted.to_frame().shape[0] == len(acted.rows())
    moved = emscope.trajectories(runs, tmp_path / "paths")
    assert moved.to_json() == said(capsys, "trajectories", *runs, "--out", tmp_path / "cli", "--json")
    changed = emscope.diff(runs[0], tmp_path / "diff", count=8, layers=[0, 1])
    assert changed.figures() and capsys.readouterr().out == ""


def test_errors_name_fields_and_no_files_are_left(tmp_path, runs):
    with pytest.raises(InputError, match="measure = 'other'"):
        emscope.check(runs[0], measure="other", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"steps": "24"}, {"steps": ["24"]}, {"amplify": "1,2"}, {"amplify": (1, True)}])
def test_a_text_in_place_of_numbers_is_refused_before_anything_is_written(runs, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=next(iter(wrong))):
        emscope.check(runs[0], **wrong, **FAST)
    assert not list(tmp_path.iterdir())


def test_one_number_stands_for_several_and_printing_gives_the_sentences(runs, tmp_path):
    result = emscope.check(runs[0], steps=2, amplify=1, out=tmp_path / "one", **FAST)
    assert result.read.steps == (2,) and str(result).splitlines() == result.sentences()
