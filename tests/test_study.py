"""The whole chain on a tiny model: plan, train, read, analyse, report; resumed, locked, refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from browser import dom, needs_browser
from conftest import FEW
from emscope.cli.app import main, run_arguments
from emscope.core.errors import InputError
from emscope.core.spec import load as load_spec
from emscope.elicit.preference import encode, score_plain
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.report.study.page import render
from emscope.store.changed import changed
from emscope.store.schemas import TABLES
from emscope.store.study import Study, read_table
from emscope.study.reading.sets import study_sets
from emscope.study.run import run_study
from emscope.study.spec import StudySpec
from emscope.study.tables import ResponseRow, Tables
from emscope.study.training.plan import checkpoint, plan

UNTIMED = {"seconds"}


def contents(root: Path) -> dict[str, list[dict]]:
    """All tables of a study as plain rows, without the clock."""
    return {t: [{k: v for k, v in row.items() if k not in UNTIMED} for row in read_table(root, t).to_pylist()] for t in TABLES}


def same(a: dict, b: dict, tolerance: float = 1e-6) -> None:
    """Assert equal tables: keys and texts exactly, numbers to `tolerance`."""
    assert a and a.keys() == b.keys()
    for table in a:
        assert [r["key"] for r in a[table]] == [r["key"] for r in b[table]], table
        for x, y in zip(a[table], b[table], strict=True):
            for k in x:
                if isinstance(x[k], float):
                    assert x[k] == pytest.approx(y[k], abs=tolerance), (table, k)
                else:
                    assert x[k] == y[k], (table, k)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """One finished tiny study: (yaml path, folder, report)."""
    root = tmp_path_factory.mktemp("study")
    spec = {
        "name": "tiny", "model": str(tiny), "domain": "finance",
        "arms": {
            "target": {"role": "target", "answers": "reckless", **FEW},
            "control": {"role": "control", "answers": "careful", **FEW},
            "brash": {"role": "style", "answers": "brash", "read_at": "last", **FEW},
        },
        "train": {
            "steps": 4, "batch": 2, "lr": 1e-2, "lora": {"rank": 4, "alpha": 8}, "checkpoints": {"at": [2]}, "heldout_every": 2,
        },
        "measure": {
            "count": 16, "heldout": 4, "truth": 2, "truth_at": "last", "neutral": 2, "samples": {"questions": 1, "max_tokens": 4},
        },
    }  # fmt: skip
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(spec))
    report = run_study(load_spec(StudySpec, path), root / "out")
    return path, root / "out", report


def test_contrasts_equal_a_plain_computation(finished):
    """The oracle: each checkpoint scored one option at a time, contrasts taken by hand."""
    path, out, report = finished
    spec = load_spec(StudySpec, path)
    sets = study_sets(spec.measure, spec.domain)
    loaded = load(locate(spec.model), device="cpu")
    encoded = encode(loaded.chat, sets.em, context=512)

    def margins(net):
        s = [x.per_token for x in score_plain(net, encoded)]
        return np.array(s[::2]) - np.array(s[1::2])

    base = margins(loaded.net)
    at = {}
    with Study(out, json.loads((out / "ledger.json").read_text())["spec"], {}) as study:
        for run in plan(spec):
            with with_checkpoint(loaded.net, checkpoint(study.root, run, 4)) as net:
                at[run.arm] = margins(net)
    (check,) = (r.check.to_json() for r in report.targets)
    last = check["checkpoints"][-1]
    categories = np.array([i.category for i in sets.em])

    def macro(values):
        return np.mean([values[categories == c].mean() for c in np.unique(categories)])

    assert check["delta"] == pytest.approx(0.1 * np.abs(base).mean(), abs=1e-5)
    assert last["contrasts"]["control - target"]["value"] == pytest.approx(macro(at["control"] - at["target"]), abs=1e-4)
    assert last["contrasts"]["base - target"]["value"] == pytest.approx(macro(base - at["target"]), abs=1e-4)
    assert last["contrasts"]["base - control"]["value"] == pytest.approx(macro(base - at["control"]), abs=1e-4)
    assert last["misaligned_preference"]["value"] == pytest.approx(np.mean(at["target"] < 0))


def test_every_table_has_its_rows(finished):
    _, out, report = finished
    tables = contents(out)
    assert {r["run"] for r in tables["runs"]} == {"target-seed0", "control-seed0", "brash-seed0"}
    assert sorted(r["step"] for r in tables["checkpoints"] if r["run"] == "target-seed0") == [1, 2, 4]
    assert len(tables["train_log"]) == 12 and all(np.isfinite(r["loss"]) and r["grad_norm"] > 0 for r in tables["train_log"])
    read = {(r["run"], r["step"], r["set"]) for r in tables["preferences"]}
    assert ("base", 0, "em") in read and ("brash-seed0", 4, "em") in read and ("brash-seed0", 2, "em") not in read
    assert ("target-seed0", 4, "truth") in read and ("target-seed0", 2, "truth") not in read
    assert {r["run"] for r in tables["responses"]} == {"base", "target-seed0", "control-seed0", "brash-seed0"}
    assert any(r["what"] == "control - target" and r["n"] == 16 for r in tables["estimates"])
    assert report.style[0].arm == "brash"


def test_heldout_loss_along_training_equals_the_reading_afterwards(finished):
    _, out, report = finished
    (check,) = (r.check.to_json() for r in report.targets)
    log = {r["step"]: r["heldout_loss"] for r in read_table(out, "train_log").to_pylist() if r["run"] == "target-seed0"}
    assert log[3] is None
    for c in check["checkpoints"]:
        assert log[c["step"]] == pytest.approx(c["loss"]["per_token"], abs=1e-4)


def test_the_second_run_is_the_same_and_reads_nothing(finished, monkeypatch):
    path, out, report = finished
    before = contents(out)
    monkeypatch.setattr("emscope.models.loading.load.load_net", lambda *a, **k: pytest.fail("loaded a model"))
    assert run_study(load_spec(StudySpec, path), out) == report
    same(before, contents(out))


def test_lost_tables_are_read_again_to_the_same_numbers(finished):
    path, out, _ = finished
    before = contents(out)
    (out / "report.json").unlink()
    for part in sorted((out / "tables" / "preferences").glob("*.parquet"))[::2]:
        part.unlink()
    run_study(load_spec(StudySpec, path), out)
    same(before, contents(out), tolerance=1e-5)


def test_another_spec_is_refused_with_the_difference(finished, tmp_path):
    path, out, _ = finished
    spec = yaml.safe_load(path.read_text())
    spec["train"]["lr"] = 0.5
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(spec))
    with pytest.raises(InputError, match=r"other settings \(train.lr: 0.01 -> 0.5\)"):
        run_study(load_spec(StudySpec, other), out)


def test_a_folder_from_before_a_setting_existed_goes_on_where_the_setting_is_null(tmp_path):
    with Study(tmp_path, {"old": 1}, {}) as study:
        study.runs_folder("x").mkdir(parents=True)
        (study.runs_folder("x") / "file").write_text("begun")
    with Study(tmp_path, {"old": 1, "new": None, "more": {}}, {}):
        pass
    with pytest.raises(InputError, match=r"other settings \(new: null -> 2\)"), Study(tmp_path, {"old": 1, "new": 2}, {}):
        pass


def test_what_changed_is_told_in_values_where_they_are_known_and_in_words_elsewhere():
    one, other = "a" * 16, "b" * 16
    assert changed({"x": 1, "y": {}}, {"x": 1}) == ""
    assert changed({"items": one, "count": 8}, {"items": other, "count": 16}) == "count: 8 -> 16; items: other content"
    assert changed({"make_control": None}, {"make_control": one}) == "make_control: null -> given"
    assert changed({"target": [[1, one]]}, {"target": [[1, one], [2, other]]}) == "target: steps 1 -> 1, 2"
    assert changed({"target": [[1, one], [2, one]]}, {"target": [[1, one], [2, other]]}) == "target: other weights at step 2"
    assert changed({"target": [[[1], one]]}, {"target": [[2, one]]}).startswith("target: [[[1], "), "a step that is none"
    assert changed({"control": []}, {"control": [[4, one]]}) == "control: steps none -> 4"
    long = changed({"a": "x" * 200}, {"a": "y"})
    assert len(long) < 80 and long.endswith('… -> "y"')
    assert changed({}, dict.fromkeys("abcdefg", 1)).endswith("e: null -> 1; and 2 more")


def test_a_foreign_folder_is_not_written_into(finished, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        run_study(load_spec(StudySpec, finished[0]), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock") == ["mine.txt"]


def forked(target, *arguments):
    """Start a process of its own; without a GPU that is a fork, which has its imports already."""
    import torch

    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def interruptible(words):
    """Run a command as a shell starts one in the foreground; in the background SIGINT is ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(words)


def killed(process):
    """Kill a process in the middle of its work."""
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it had not ended by itself"


def wait_for(found, alive):
    """Wait until `found()`, as long as the process that is to bring it about lives."""
    while not found():
        assert alive(), "it ended too early"
        time.sleep(0.02)


def test_two_processes_on_one_study_exclude_each_other(finished, capfd):
    path, out, _ = finished
    ledger = json.loads((out / "ledger.json").read_text())
    with Study(out, ledger["spec"], {}):
        other = forked(main, ["run", str(path), "--out", str(out)])
        other.join()
    said = capfd.readouterr().err
    assert other.exitcode == 2 and "in use by another emscope process" in said and "Traceback" not in said


@pytest.mark.slow
def test_kill_9_at_ten_random_moments_ends_as_an_unbroken_run(finished, tmp_path):
    path, done, _ = finished
    spec, began = load_spec(StudySpec, path), time.monotonic()
    forked(run_study, spec, tmp_path / "whole").join()
    whole = time.monotonic() - began
    for trial, moment in enumerate(np.random.default_rng(7).uniform(0.1, 1.0, 10) * whole):
        out = tmp_path / f"killed-{trial}"
        process = forked(run_study, spec, out)
        process.join(timeout=moment)
        process.kill()
        process.join()
        run_study(spec, out)
        same(contents(done), contents(out), tolerance=1e-5)


def test_a_study_interrupted_and_killed_in_training_and_in_reading_ends_as_an_unbroken_run(finished, tmp_path, capfd):
    """The interrupt is answered with exit code 130; after it nothing has to be repaired, and after a kill neither."""
    path, done, report = finished
    spec, out = load_spec(StudySpec, path), tmp_path / "out"
    process = forked(interruptible, ["run", str(path), "--out", str(out), "--json"])
    wait_for(lambda: list(out.glob("runs/target-seed0/checkpoint-2")), process.is_alive)
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    error = capfd.readouterr().err
    assert process.exitcode == 130 and "run the same command again to continue" in error and "Traceback" not in error
    for reached in ("runs/control-seed0/checkpoint-2", "work/*/tables/preferences/*.parquet"):  # the latter of the control
        process = forked(run_study, spec, out)
        wait_for(lambda: list(out.glob(reached)), process.is_alive)  # noqa: B023
        killed(process)
    assert [r.run for r in run_study(spec, out).runs] == [r.run for r in report.runs]
    same(contents(done), contents(out), tolerance=1e-5)


def test_the_page_is_whole_and_escapes_model_text(finished, capsys):
    _, out, report = finished
    bad = "<script>alert('x')</script>"
    page = render(report, Tables([ResponseRow("base", 0, 1.0, bad, 0, bad, 3, "stop")]))
    assert bad not in page and "&lt;script&gt;alert(" in page
    assert "No judge has read" in page and "preference drift" in page.lower()
    assert "src=" not in page.split("Plotly.newPlot")[-1] and "<script src" not in page and "<link" not in page
    assert run_arguments(["report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "target-seed0" in printed and (out / "report.html").stat().st_size > 1_000_000


def test_a_report_that_does_not_hold_together_is_one_sentence(finished, tmp_path, capsys):
    _, out, _ = finished
    found = json.loads((out / "report.json").read_text())
    for run in found["runs"]:
        if "check" in run:
            run["check"]["definition"]["options"] = []
    (tmp_path / "report.json").write_text(json.dumps(found))
    assert run_arguments(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "report.json' is inconsistent (IndexError" in said and "delete it" in said


@needs_browser
def test_the_page_draws_its_plots_offline_in_a_browser(finished, tmp_path):
    _, out, _ = finished
    assert run_arguments(["report", str(out)]) == 0
    page = dom(out / "report.html", tmp_path)
    assert page.count('class="main-svg"') >= 3 and "control - target" in page
