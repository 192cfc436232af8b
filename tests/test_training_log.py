"""Training logs of checkpoints that others trained: what they carry, exports of trackers, and what they do in a check."""

from __future__ import annotations

import json

import pytest

from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.store.study import read_table
from emscope.study.reading.training_log import losses_at, training_log
from test_checkpoints import make_adapter

HISTORY = [
    {"step": 1, "loss": 3.0, "grad_norm": 1.5},
    {"step": 2, "loss": 2.5, "grad_norm": float("nan")},
    {"step": 2, "eval_loss": 2.6},
    {"step": 4, "loss": 2.0},
    {"step": 4, "train_runtime": 9.0},
]


def write(path, text):
    path.write_text(text)
    return path


def test_the_trainer_s_state_is_read_with_its_held_out_loss(tmp_path):
    path = write(tmp_path / "trainer_state.json", json.dumps({"log_history": HISTORY}))
    found = training_log(path, [])
    assert [(one.step, one.loss, one.heldout_loss, one.grad_norm) for one in found] == [
        (1, 3.0, None, 1.5),
        (2, 2.5, 2.6, None),
        (4, 2.0, None, None),
    ]
    assert training_log(None, [tmp_path]) == found and training_log(None, []) == []


def test_a_checkpoint_has_the_last_loss_logged_up_to_it(tmp_path):
    log = training_log(write(tmp_path / "s.json", json.dumps({"log_history": HISTORY})), [])
    assert losses_at(log, [1, 3, 4, 9]) == {1: 3.0, 3: 2.5, 4: 2.0} and losses_at([], [1]) == {}


@pytest.mark.parametrize(
    "text",
    [
        "Wall time,Step,Value\n1.5,10,2.5\n2.5,20,2.25\n",
        '"Step","my run - train/loss","my run - train/loss__MIN","my run - train/loss__MAX"\n"10","2.5","2","3"\n"20","2.25","2","3"\n',
        "_step,train/global_step,eval/loss,train/loss\n0,10,9,2.5\n1,15,9,\n2,20,9,2.25\n3,25,9,NaN\n",
        "step,loss\n20,2.25\n10,2.5\n",
    ],
    ids=["TensorBoard", "W&B panel", "W&B run", "plain"],
)
def test_exports_of_trackers_are_read(text, tmp_path):
    found = training_log(write(tmp_path / "log.csv", text), [])
    assert [(one.step, one.loss) for one in found] == [(10, 2.5), (20, 2.25)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "epoch,loss\n1,2\n", "has no column of steps"),
        ("a.csv", "step,accuracy\n1,2\n", "has no training-loss column"),
        ("a.csv", "step,a loss,b loss\n1,2,3\n", "has 2 training-loss columns"),
        ("a.csv", "step,loss\nx,y\n", "no row with a number in both"),
        ("a.json", "{}", "has no readable log_history"),
        ("a.json", '{"log_history": [3]}', "has no readable log_history"),
        ("a.txt", "x", "ends in .txt"),
    ],
)
def test_what_is_no_log_is_refused(name, text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        training_log(write(tmp_path / name, text), [])


def test_a_damaged_state_that_a_checkpoint_carries_is_passed_over(tmp_path):
    write(tmp_path / "trainer_state.json", "{")
    assert training_log(None, [tmp_path]) == []


def test_a_check_shows_the_log_that_it_is_given(tiny, tmp_path, capsys):
    for step in (2, 4):
        make_adapter(tiny, tmp_path / "run" / f"checkpoint-{step}", seed=step)
    log = write(tmp_path / "log.csv", "step,loss\n1,3.5\n2,3.25\n3,3.0\n")
    words = ["check", str(tmp_path / "run"), "--base", str(tiny), "--measure", "preference", "--count", "32", "--truth", "0"]
    assert run_arguments([*words, "--log", str(log), "--out", str(tmp_path / "out"), "--json"]) in (0, 4)
    found = json.loads(capsys.readouterr().out)["runs"][0]["check"]
    assert [c["train_loss"] for c in found["checkpoints"]] == [3.25, 3.0] and "train_loss" not in found["why"]
    rows = read_table(tmp_path / "out", "train_log").to_pylist()
    assert [(r["run"], r["step"], r["loss"], r["grad_norm"]) for r in rows] == [
        ("target", 1, 3.5, None),
        ("target", 2, 3.25, None),
        ("target", 3, 3.0, None),
    ]
    assert "Read step by step during training" in (tmp_path / "out" / "report.html").read_text()
