"""The command line: help, versions, exit codes, study files that are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from emscope.cli.app import run_arguments


def fails(capsys, *arguments, code=2):
    """Run arguments that must fail; return the one sentence."""
    assert run_arguments([str(a) for a in arguments]) == code
    text = capsys.readouterr()
    assert "Traceback" not in text.err and text.out == ""
    said = [line for line in text.err.splitlines() if line.startswith("emscope: ")]
    assert len(said) == 1 and text.err.rstrip().endswith(said[0]), text.err
    return said[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sytem": "none"}, "unknown key 'sytem', did you mean 'system'"),
        ({"train": {"stpes": 3}}, "unknown key 'train.stpes', did you mean 'steps'"),
        ({"train": {"learning_rate": 1e-4}}, "unknown key 'train.learning_rate', did you mean 'lr'"),
        ({"train": {"lora": {"r": 4, "lora_alpha": 8}}}, "unknown key 'train.lora.lora_alpha', did you mean 'alpha'"),
        ({"arms": {"a": {"rol": "target", "answers": "reckless"}}}, "did you mean 'role'"),
        ({"train": {"steps": 0}}, "train.steps = 0"),
        ({"train": {"lr": -0.1}}, "train.lr = -0.1"),
        ({"train": {"lora": {"rank": 0}}}, "train.lora.rank = 0"),
        ({"domain": "finace"}, "did you mean 'finance'"),
        ({"domain": None}, "domain is not given"),
        ({"arms": {"a": {"role": "control", "answers": "careful"}}}, "no arm has the role target"),
        ({"arms": {"a": {"role": "target", "file": "none.jsonl"}}}, "no file 'none.jsonl'"),
        ({"arms": {"a/b": {"role": "target", "answers": "reckless"}}}, "arm name 'a/b'"),
        ({"model": "./nowhere"}, "no model './nowhere'"),
        ({"name": "../evil"}, "name = '../evil'"),
        ({"seeds": [1, 1]}, "twice"),
        ({"train": {"steps": 4, "lora": {"modules": ["qproj"]}}}, "did you mean 'q_proj'"),
        ({"train": {"steps": 4, "lora": {"layers": [7]}}}, "layers 0 to 1"),
    ],
)
def test_wrong_studies_are_refused_in_one_sentence(study_yaml, tmp_path, capsys, changes, message):
    text = fails(capsys, "run", study_yaml(**changes), "--out", tmp_path / "out")
    assert message in text
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_mended_study_may_take_the_folder_of_its_faulty_draft(study_yaml, tmp_path, capsys):
    fails(
        capsys, "run", study_yaml("a.yaml", train={"steps": 1, "batch": 1, "lora": {"layers": [7]}}), "--out", tmp_path / "out"
    )
    mended = study_yaml("b.yaml", train={"steps": 1, "batch": 1, "lora": {"layers": [1]}})
    assert run_arguments(["run", str(mended), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "emscope.study/2"


def test_all_faults_are_told_at_once(study_yaml, tmp_path, capsys):
    text = fails(capsys, "run", study_yaml(sytem="x", train={"steps": 0, "lr": -1}), "--out", tmp_path / "out")
    assert "sytem" in text and "train.steps" in text and "train.lr" in text


def test_yaml_that_is_none(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("name: [x\n")
    assert "is not YAML" in fails(capsys, "run", tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1\n")
    assert "holds list where settings are expected" in fails(capsys, "run", tmp_path / "b.yaml")
    assert "no file" in fails(capsys, "run", tmp_path / "c.yaml")
    assert "no finished study" in fails(capsys, "report", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(study_yaml, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "no permission" in fails(capsys, "run", study_yaml(), "--out", tmp_path / "locked" / "out")


def test_disk_faults_become_sentences(tmp_path):
    import errno

    from emscope.store.files import disk_error, write_text

    for code, words, exit_code in (
        (errno.EACCES, "no permission", 2),
        (errno.ENOSPC, "no space left", 1),
        (errno.EIO, "cannot be written", 1),
    ):
        error = disk_error(tmp_path / "x", OSError(code, os.strerror(code)))
        assert words in str(error) and error.exit_code == exit_code
    (tmp_path / "file").write_text("x")
    with pytest.raises(Exception, match="cannot be written"):
        write_text(tmp_path / "file" / "inner", "y")


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    import errno

    from emscope.core.errors import WorldError
    from emscope.store.files import write_atomic, write_text

    write_text(tmp_path / "a.txt", "old")

    def full(path):
        path.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(WorldError, match="no space left"):
        write_atomic(tmp_path / "a.txt", full)
    assert (tmp_path / "a.txt").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_help_and_version_of_every_command(capsys):
    for command in (
        [],
        ["run"],
        ["quickstart"],
        ["check"],
        ["train"],
        ["report"],
        ["models", "list"],
        ["data", "show"],
        ["doctor"],
    ):
        assert run_arguments([*command, "--help"]) == 0
        assert "Usage: " in capsys.readouterr().out
    assert run_arguments(["--version"]) == 0 and capsys.readouterr().out.startswith("emscope ")
    assert "No such command 'chekc'" in fails(capsys, "chekc")


def test_help_is_fast():
    import time

    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "emscope", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5, times


def test_data_and_models_and_doctor(capsys):
    assert run_arguments(["data", "list", "--json"]) == 0
    assert {r["name"]: r["rows"] for r in json.loads(capsys.readouterr().out)} == {
        "finance": 441,
        "medical": 441,
        "code": 440,
        "sports": 280,
        "em240": 240,
        "cooking": 160,
        "chat": 120,
        "maths": 120,
        "translation": 120,
        "summaries": 120,
        "requests": 120,
        "refusal60": 60,
        "style160": 160,
        "open24": 24,
        "open72": 72,
        "placebo160": 160,
        "truth150": 150,
        "generic": 200,
    }
    assert run_arguments(["data", "show", "em240", "--rows", "2"]) == 0 and len(capsys.readouterr().out.splitlines()) == 2
    assert run_arguments(["models", "list", "--json"]) == 0 and json.loads(capsys.readouterr().out)[0]["name"] == "smollm2-135m"
    assert run_arguments(["doctor", "--json"]) == 0 and json.loads(capsys.readouterr().out)["matmul_gflops"] > 0
    assert "did you mean 'em240'" in fails(capsys, "data", "show", "em24")


def test_data_check_reads_files(tmp_path, capsys):
    from conftest import write_jsonl

    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "Q", "answer": "one two three"}])
    assert (
        run_arguments(["data", "check", str(path)]) == 0
        and "1 conversations; answers of 3 to 3 words" in capsys.readouterr().out
    )


def test_train_by_itself(tiny, tmp_path, capsys):
    spec = {
        "model": str(tiny),
        "domain": "finance",
        "answers": "careful",
        "train": {"steps": 2, "batch": 2, "lora": {"rank": 2}},
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(spec))
    assert run_arguments(["train", str(tmp_path / "t.yaml"), "--out", str(tmp_path / "run"), "--json"]) == 0
    assert [r["step"] for r in json.loads(capsys.readouterr().out)["readings"]] == [1, 2]
    assert (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").is_file()


def test_a_closed_pipe_is_no_crash(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m emscope data show em240 --rows 240 | head -1", shell=True, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
