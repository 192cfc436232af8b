"""Cells: what decides a key, rows that land whole, a study that goes on from its rows alone, claims that end with their holder."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from conftest import FEW
from emscope.answers.planning.components import DEFAULTS
from emscope.cli.app import run_arguments
from emscope.core.errors import Diverged, InputError
from emscope.core.spec import parse
from emscope.data.questions import read_questions
from emscope.judging.rubrics import read_rubrics
from emscope.report.study.foreseen import _power
from emscope.stats.planning import run_chances
from emscope.store import claims as module
from emscope.store.cells import NAMED, Part, Record, begun, land, record_of, settled, sort_loose, write_record
from emscope.store.claims import Claims, Holder
from emscope.store.rows import Rows, part, parts_of, read_table
from emscope.store.study import extends
from emscope.study.cells import doing, foreseen
from emscope.study.cells.planning import BASE, unfold
from emscope.study.cells.standing import standing
from emscope.study.run import prepare, run_study
from emscope.study.spec import StudySpec, load_study
from test_study import contents, same

SMALL = {
    "arms": {
        "target": {"role": "target", "answers": "reckless", **FEW},
        "control": {"role": "control", "answers": "careful", **FEW},
    },
    "train": {"steps": 2, "batch": 2, "lr": 1e-2, "lora": {"rank": 4, "alpha": 8}, "checkpoints": {}},
    "measure": {"count": 16, "heldout": 2, "truth": 0, "neutral": 2, "samples": {"questions": 1, "max_tokens": 2}},
}


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """A finished small study: (spec, folder, report)."""
    root = tmp_path_factory.mktemp("cells")
    spec = parse(StudySpec, {"name": "small", "model": str(tiny), "domain": "finance"} | SMALL, "study")
    return spec, root / "out", run_study(spec, root / "out")


@pytest.fixture(scope="module")
def fresh(done, tmp_path_factory):
    """The same study done from nothing with two seeds, of which only the last weights stay: (folder, report)."""
    out = tmp_path_factory.mktemp("fresh") / "out"
    return out, run_study(done[0].model_copy(update={"seeds": (0, 1), "weights": "last"}), out)


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(".lock"))
    return to


def keys_of(spec: StudySpec) -> dict[str, str]:
    return {cell.name: cell.key for cell in prepare(spec).cells}


def test_a_key_changes_with_what_decides_its_rows_and_with_nothing_else(done):
    spec, _, _ = done
    before = keys_of(spec)
    assert list(before) == [BASE, "target-seed0", "control-seed0"] and len(set(before.values())) == 3
    assert keys_of(spec) == before
    grown = keys_of(spec.model_copy(update={"seeds": (0, 7), "weights": "none"}))
    assert {name: grown[name] for name in before} == before and len(set(grown.values())) == 5
    decide = spec.decide.model_copy(update={"delta_share": 0.2})
    assert keys_of(spec.model_copy(update={"decide": decide})) == before, "what readings mean is no part of them"
    other_rate = keys_of(spec.model_copy(update={"train": spec.train.model_copy(update={"lr": 2e-2})}))
    assert other_rate[BASE] == before[BASE] and other_rate["target-seed0"] != before["target-seed0"]
    fewer = spec.arms["target"].model_copy(update={"unique": 23})
    other_data = keys_of(spec.model_copy(update={"arms": spec.arms | {"target": fewer}}))
    assert [other_data[n] == before[n] for n in before] == [True, False, True]
    items = spec.measure.model_copy(update={"count": 17})
    assert not set(keys_of(spec.model_copy(update={"measure": items})).values()) & set(before.values())
    threads = keys_of(spec.model_copy(update={"threads": 3}))
    import torch

    assert torch.cuda.is_available() or not set(threads.values()) & set(before.values())


def test_each_cell_is_its_rows_and_a_record(done):
    spec, out, _ = done
    for name, key in keys_of(spec).items():
        record = record_of(out, key)
        assert record.name == name and record.why is None and record.seconds > 0 and record.peak_bytes > 1e7
        assert record.tokens["read"] > 0 and (record.tokens["trained"] > 0) == (name != BASE)
        for table, one in record.parts.items():
            rows = read_table(out, table).to_pylist()
            assert one.rows == sum(row["run"] == name for row in rows) > 0
    assert not (out / "work").exists() and not (out / "claims").exists()
    size = sum(path.stat().st_size for path in (out / "tables").rglob("*.parquet"))
    assert size < 20e6


def test_a_study_goes_on_from_its_rows_alone_and_trains_only_what_is_new(done, fresh, tmp_path, monkeypatch):
    spec, out, report = done
    moved = copied(out, tmp_path / "out")
    shutil.rmtree(moved / "runs")
    (moved / "report.json").unlink()
    shutil.rmtree(moved / "recipes")
    trained = []
    real = doing.train_cell

    def watched(shared, rows, cell, progress):
        trained.append(cell.name)
        return real(shared, rows, cell, progress)

    monkeypatch.setattr(doing, "train_cell", watched)
    assert run_study(spec, moved).to_json() == report.to_json() and not trained
    run_study(spec.model_copy(update={"seeds": (0, 1), "weights": "none"}), moved)
    assert trained == ["target-seed1", "control-seed1"] and not (moved / "runs" / "target-seed0").exists()
    assert not steps_left(moved, "target-seed1") and not steps_left(moved, "control-seed1"), "no weights stay"
    same(contents(fresh[0]), contents(moved), tolerance=1e-5)


def test_seeds_may_be_added_to_a_finished_study_and_what_is_there_stays(done, fresh, tmp_path):
    spec, grown = done[0], copied(done[1], tmp_path / "out")
    kept = grown / "runs" / "target-seed0" / "checkpoint-2" / "adapter_model.safetensors"
    before = (kept.stat().st_mtime_ns, kept.read_bytes())
    report = run_study(spec.model_copy(update={"seeds": (0, 1)}), grown)
    assert (kept.stat().st_mtime_ns, kept.read_bytes()) == before
    same(contents(fresh[0]), contents(grown), tolerance=1e-5)
    assert [r.run for r in report.runs] == [r.run for r in fresh[1].runs]
    with pytest.raises(InputError, match=r"other settings \(seeds: \[0, 1\] -> \[1\]\)"):
        run_study(spec.model_copy(update={"seeds": (1,)}), grown)


@pytest.mark.parametrize(
    ("old", "new", "grows"),
    [
        ([0, 1], [0, 1, 2], True),
        ([0, 1], [1, 0, 2], False),
        ({"a": 1}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"b": 2}, False),
        ({}, {"a": 1}, False),
        ({"a": {"methods": ["x"], "mix": [1]}}, {"a": {"methods": ["x", "y"], "mix": [1]}}, True),
        ({"a": {"methods": ["x"], "mix": [1]}}, {"a": {"methods": ["x", "y"], "mix": [1, 2]}}, False),
        ({"a": {"methods": ["x", "y"]}}, {"a": {"methods": ["y", "x"]}}, False),
        ({"a": {"methods": []}}, {"a": {"methods": ["x"]}}, False),  # none named: all of them
        ({"a": 1}, [1], False),
    ],
)
def test_settings_grow_at_their_end_or_by_further_names(old, new, grows):
    assert extends(new, old) is grows


def test_arms_and_methods_may_be_added_and_give_what_a_new_study_gives(done, tmp_path, monkeypatch):
    trained, real = [], doing.train_cell
    plain = {"name": "small", "model": done[0].model, "domain": "finance"} | SMALL
    arms = {"other": {"role": "style", "answers": "brash", **FEW}, **SMALL["arms"]}
    arms = {name: {**arm, "methods": ["usual", "long"]} for name, arm in arms.items()}
    careful = arms | {"target": {**arms["target"], "answers": "careful"}}
    named, more, other = (
        parse(StudySpec, plain | {"arms": of, "methods": methods}, "study")
        for of, methods in (
            ({name: {**arm, "methods": ["usual"]} for name, arm in SMALL["arms"].items()}, {"usual": {}}),
            (arms, {"long": {"steps": 3}, "usual": {}}),
            (careful, {"long": {"steps": 3}, "usual": {}}),
        )
    )
    run_study(named, tmp_path / "grown")

    def watched(shared, folder, cell, *rest, **options):
        trained.append(cell.name)
        return real(shared, folder, cell, *rest, **options)

    monkeypatch.setattr(doing, "train_cell", watched)
    report = run_study(more, tmp_path / "grown")
    assert sorted(trained) == ["long-control-seed0", "long-other-seed0", "long-target-seed0", "usual-other-seed0"]
    anew = run_study(more, tmp_path / "anew")
    assert [r.to_json() for r in report.runs] == [r.to_json() for r in anew.runs]
    same(contents(tmp_path / "anew"), contents(tmp_path / "grown"), tolerance=1e-5)
    trained.clear()
    assert run_study(more, tmp_path / "grown").to_json() == report.to_json() and not trained
    with pytest.raises(InputError, match="holds a study with other settings"):
        run_study(named, tmp_path / "grown")
    with pytest.raises(InputError, match="holds a study with other settings"):
        run_study(other, tmp_path / "grown")


def test_a_lost_or_cut_off_part_is_made_again_and_the_rest_is_not(done, tmp_path, monkeypatch):
    """As on a shared folder that loses a write."""
    spec, out, _ = done
    before, keys = contents(out), keys_of(spec)
    broken = copied(out, tmp_path / "out")
    (broken / "report.json").unlink()
    part(broken, "preferences", NAMED + keys["target-seed0"]).unlink()
    path = part(broken, "preferences", NAMED + keys[BASE])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    did = []
    real = doing.do_cell
    monkeypatch.setattr(doing, "do_cell", lambda shared, cell, progress: did.append(cell.name) or real(shared, cell, progress))
    run_study(spec, broken)
    assert did == [BASE, "target-seed0"]
    same(before, contents(broken), tolerance=1e-5)


def test_bytes_that_changed_without_a_change_of_size_are_noticed(done, tmp_path):
    spec, out, _ = done
    keys = keys_of(spec)
    broken = copied(out, tmp_path / "out")
    (broken / "report.json").unlink()
    path = part(broken, "preferences", NAMED + keys["control-seed0"])
    rows = pq.read_table(path)  # other numbers in a file that opens
    other = pa.array([value - 1 for value in rows.column("logprob").to_pylist()])
    pq.write_table(rows.set_column(rows.column_names.index("logprob"), "logprob", other), path)
    record = record_of(broken, keys["control-seed0"])
    parts = dict(record.parts) | {"preferences": replace(record.parts["preferences"], bytes=path.stat().st_size)}
    write_record(broken, replace(record, parts=parts))
    assert settled(broken, record.key, 0) is not None
    run_study(spec, broken)
    same(contents(out), contents(broken), tolerance=1e-5)


def steps_left(folder: Path, run: str) -> set[int]:
    """The steps of a run whose weights are there."""
    return {int(path.name.split("-")[1]) for path in (folder / "runs" / run).glob("checkpoint-*")}


def test_weights_stay_as_the_study_says(done, fresh, tmp_path):
    """And what is read does not depend on it."""
    spec, out, report = done
    nothing = run_study(spec.model_copy(update={"weights": "none"}), tmp_path / "out")
    for run in ("target-seed0", "control-seed0"):
        assert [steps_left(folder, run) for folder in (out, fresh[0], tmp_path / "out")] == [{1, 2}, {2}, set()]
    same(contents(out), contents(tmp_path / "out"))
    assert nothing.to_json()["runs"] == report.to_json()["runs"]


def test_what_16_bits_change_is_read_though_no_weights_stay(done, tmp_path, monkeypatch):
    from emscope.study.reading import precision

    monkeypatch.setattr(precision, "SHARE", 1.0)  # a tiny study's 5 % are too few items
    spec, found = done[0].model_copy(update={"dtype": "bfloat16"}), {}
    for weights in ("all", "none"):
        out = tmp_path / weights
        found[weights] = run_study(spec.model_copy(update={"weights": weights}), out).precision
    assert found["all"] == found["none"] and found["all"].items >= 8
    assert not list((tmp_path / "none" / "runs").glob("*/checkpoint-*"))
    rows = [row for row in read_table(out, "preferences").to_pylist() if "float32" not in row["run"]]
    for path in parts_of(out, "preferences"):
        if not path.stem.startswith(NAMED):
            path.unlink()
    (out / "report.json").unlink()
    again = run_study(spec.model_copy(update={"weights": "none"}), out)
    assert again.precision == found["all"] and not list((out / "runs").glob("*/checkpoint-*"))
    assert [r for r in read_table(out, "preferences").to_pylist() if "float32" not in r["run"]] == rows


def test_rows_of_an_earlier_layout_are_gone_on_with(done, tmp_path, monkeypatch):
    spec, out, _ = done
    old = copied(out, tmp_path / "out")
    shutil.rmtree(old / "cells")
    for name in ("plan.json", "report.json"):
        (old / name).unlink()
    for table in ("runs", "checkpoints", "train_log", "preferences", "responses"):
        rows = read_table(old, table).to_pylist()
        for path in parts_of(old, table):
            path.unlink()
        for run in {row["run"] for row in rows}:
            Rows(old).append(table, [row for row in rows if row["run"] == run])
    monkeypatch.setattr(doing, "train_cell", lambda *a: pytest.fail("trained again"))
    run_study(spec, old)
    assert contents(old) == contents(out)
    assert all(path.stem.startswith(NAMED) for path in parts_of(old, "preferences")), "nothing is there twice"


def test_rows_of_others_stay_where_they_are(tmp_path):
    row = {"step": 0, "scale": 1.0, "set": "em", "item": "i", "option": 0, "logprob": -1.0, "tokens": 1}
    Rows(tmp_path).append("preferences", [{"key": "a", "run": "base"} | row, {"key": "b", "run": "base in float32"} | row])
    Rows(tmp_path).append("preferences", [{"key": "c", "run": "base"} | row])
    sort_loose(tmp_path, {"base": "k"})
    assert Rows(tmp_path).keys("preferences") == {"a", "b"} and begun(tmp_path, "k").keys("preferences") == {"c"}


def test_a_cell_done_twice_is_one_cell(tmp_path):
    row = {"step": 0, "scale": 1.0, "set": "em", "item": "i", "option": 0, "tokens": 1, "run": "base"}
    for value in (-1.0, -2.0):
        rows = begun(tmp_path, "k") if value == -1.0 else Rows(tmp_path / "elsewhere")
        rows.append("preferences", [{"key": "a", "logprob": value} | row])
        parts = land(tmp_path, "k", rows)
        write_record(tmp_path, Record("k", "base", parts, 0, 1.0, {}, "h", 1, 1))
        assert settled(tmp_path, "k", 0) is not None and settled(tmp_path, "k", 2) is None
    assert [r["logprob"] for r in read_table(tmp_path, "preferences").to_pylist()] == [-2.0]
    assert len(parts_of(tmp_path, "preferences")) == 1
    write_record(tmp_path, Record("k", "base", {"preferences": Part(1, 5, "x")}, 0, 1.0, {}, "h", 1, 1))
    assert settled(tmp_path, "k", 0) is None, "its rows are not those it names"


@pytest.mark.parametrize(
    "change",
    [
        {"key": True},
        {"key": "other"},
        {"parts": {"preferences": {"rows": "1", "bytes": 1, "digest": "x"}}},
        {"parts": {"../elsewhere": {"rows": 1, "bytes": 1, "digest": "x"}}},
        {"seconds": "1"},
        {"tokens": [1]},
        {"why": 3},
        {"more": 1},
    ],
)
def test_a_record_of_another_shape_is_none(change, tmp_path):
    write_record(tmp_path, Record("k", "base", {}, 0, 1.5, {"read": 3}, "h", 1, 1))
    path = tmp_path / "cells" / "k.json"
    sound = json.loads(path.read_text())
    assert record_of(tmp_path, "k") == Record("k", "base", {}, 0, 1.5, {"read": 3}, "h", 1, 1)
    path.write_text(json.dumps(sound | change))
    assert record_of(tmp_path, "k") is None


def test_a_cell_without_memory_is_recorded_and_the_others_go_on(done, fresh, tmp_path, monkeypatch):
    spec, out = done[0], copied(done[1], tmp_path / "out")
    real = doing.train_run

    def short_of_memory(rows, root, loaded, study, one, *more):
        if one.name == "control-seed1":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real(rows, root, loaded, study, one, *more)

    monkeypatch.setattr(doing, "train_run", short_of_memory)
    both = spec.model_copy(update={"seeds": (0, 1)})
    report = run_study(both, out)
    assert [d.run for d in report.diverged] == ["control-seed1"] and "not enough memory" in report.diverged[0].why
    found = standing(out)
    assert (found.finished, found.failed, found.left) == (4, 1, 0) and found.seconds_left == 0
    assert next(c.why for c in found.cells if c.state == "failed").startswith("not enough memory")
    monkeypatch.setattr(doing, "train_run", real)
    assert not run_study(both, out).diverged, "it is tried again"
    same(contents(fresh[0]), contents(out), tolerance=1e-5)


def test_weights_without_numbers_leave_their_cell_out(done, tmp_path, monkeypatch):
    """In a study of which one run's rows are lost and its weights are there, so that nothing has to be trained."""
    spec, out = done[0], copied(done[1], tmp_path / "out")
    key = keys_of(spec)["control-seed0"]
    for path in (out / "report.json", out / "cells" / f"{key}.json", *out.glob(f"tables/*/{NAMED}{key}.parquet")):
        path.unlink()
    from emscope.study.reading import measuring

    real = measuring.score_rows

    def broken(loaded, reading, asked, name, scores):
        if reading.run == "control-seed0":
            raise Diverged(f"{reading.run} gives no numbers")
        return real(loaded, reading, asked, name, scores)

    monkeypatch.setattr(measuring, "score_rows", broken)
    report = run_study(spec, out)
    assert [d.run for d in report.diverged] == ["control-seed0"]
    assert not [r for r in read_table(out, "runs").to_pylist() if r["run"] == "control-seed0"]


def test_status_from_any_terminal(done, capsys, tmp_path):
    spec, out, _ = done
    assert run_arguments(["status", str(out)]) == 0
    assert "small: 3 of 3 cells finished, 0 running, 0 waiting, 0 failed" in capsys.readouterr().out
    half = copied(out, tmp_path / "half")
    (half / "cells" / f"{keys_of(spec)['control-seed0']}.json").unlink()
    with Claims(half / "claims").take(keys_of(spec)["control-seed0"]):
        assert run_arguments(["status", str(half), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "emscope.status/1" and (found["finished"], found["running"], found["waiting"]) == (2, 1, 0)
    running = next(c for c in found["cells"] if c["state"] == "running")
    assert running["cell"] == "control-seed0" and running["pid"] == os.getpid()
    took = next(c["seconds"] for c in found["cells"] if c["cell"] == "target-seed0")
    assert found["seconds_left"] == pytest.approx(took / 2)


def test_status_says_what_is_wrong_with_a_folder(done, capsys, tmp_path):
    out = done[1]
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("no study")
    earlier, other = copied(out, tmp_path / "earlier"), copied(out, tmp_path / "other")
    for folder in (earlier, other):
        (folder / "plan.json").unlink()
    (other / "ledger.json").write_text(json.dumps({"tables": 1, "spec": {"questions": "q"}}))
    copied(out, tmp_path / "several" / "first")
    for name, said in {
        "nowhere": "'nowhere' is not there",
        "note.txt": "is a file",
        "empty": "holds no study; give the folder that emscope run wrote",
        "several": "is not a study itself; give one of the studies in it: first",
        "earlier": "an earlier version of emscope made it",
        "other": "holds results of another command, not of emscope run",
    }.items():
        where = name if name == "nowhere" else str(tmp_path / name)
        assert run_arguments(["status", where]) == 2
        assert said in capsys.readouterr().err


def held(folder: Path, held_now, end) -> None:
    with Claims(folder).take("w"):
        held_now.set()
        end.wait(60)


def test_a_claim_ends_with_its_process_however_it_ends(tmp_path):
    started_by = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"  # a fork has its imports already
    context = multiprocessing.get_context(started_by)
    now, end = context.Event(), context.Event()
    process = context.Process(target=held, args=(tmp_path, now, end))
    process.start()
    assert now.wait(60)
    claims = Claims(tmp_path)
    with claims.take("w") as mine:
        assert mine is None and claims.holder("w").pid == process.pid
    process.kill()
    process.join()
    assert claims.holder("w") is None
    with claims.take("w") as mine:
        assert mine is not None


def elsewhere(folder: Path, count: int, token: str = "t") -> None:  # noqa: S107
    module._put(folder / f"{module.short('w')}.json", Holder("w", "other boot", 1, token, 0), count)


def test_another_machine_s_claim_is_taken_over_only_where_its_count_stands_still(tmp_path, monkeypatch):
    """Its clock, and this machine's calendar, may say anything: only this machine's steady clock counts."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    monkeypatch.setattr(module.time, "time", lambda: pytest.fail("the calendar was asked"))
    claims = Claims(tmp_path)
    for count in range(20):  # it lives, however long that takes
        elsewhere(tmp_path, count)
        now[0] += module.LEASE * 0.9
        with claims.take("w") as mine:
            assert mine is None
    os.utime(tmp_path / f"{module.short('w')}.json", (0, 0))  # a file of 1970 is none to steal
    with claims.take("w") as mine:
        assert mine is None
    now[0] += module.LEASE + 1
    with Claims(tmp_path).take("w") as mine:
        assert mine is None, "who has only now begun to look has not seen it stand still"
    with claims.take("w") as mine:
        assert mine is not None


def test_who_stood_still_too_long_hears_that_its_claim_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    with Claims(tmp_path).take("w") as mine:
        deadline = time.monotonic() + 30
        while module.read(mine.path).count < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        elsewhere(tmp_path, 0, "another")
        assert mine.lost.wait(30)
        with pytest.raises(doing.ClaimLost):
            doing.heeding(mine, lambda *_: None)("what", 0, 1)
    found = module.read(tmp_path / f"{module.short('w')}.json")
    assert found.host == "other boot", "and leaves the other's claim alone"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"lrr": [1e-4]}}, "unknown key 'lrr', did you mean 'lr'"),
        ({"seeds": [0, 1, 0]}, "seeds lists a seed twice"),
        ({"grid": {"lr": [1e-4, 1.0000001e-4]}}, "have the same name"),
        ({"threads": 0}, "threads"),
        ({"weights": "some"}, "weights"),
        ({"judged": {"judges": [{"name": "j", "url": "http://127.0.0.1:9/v1"}], "max_cost": 1}}, "max_cost needs the prices"),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes, message, tiny, tmp_path, capsys):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"model": str(tiny), "domain": "finance"} | SMALL | changes))
    assert run_arguments(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_ten_thousand_cells_are_planned_in_seconds(tiny):
    """Processor time, so that a busy machine does not count."""
    settings = {"name": "big", "model": str(tiny), "domain": "finance"} | SMALL
    settings |= {"grid": {"lr": [1e-5 * n for n in range(1, 51)]}, "seeds": list(range(100))}
    spec = parse(StudySpec, settings, "study")
    prepared = prepare(spec.model_copy(update={"seeds": (0,)}))  # the model is found, its data read
    began = time.process_time()
    planned = unfold(spec.model_copy(update={"dtype": "float32"}), prepared.base, prepared.recipes, prepared.sets)
    took = time.process_time() - began
    assert len(planned.cells) == 10_001 and len({cell.key for cell in planned.cells}) == 10_001
    assert took < 5, f"{took:.1f} s"


def test_two_settings_of_an_engine_that_exclude_each_other(done, tmp_path, capsys):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"model": "x", "domain": "finance"} | SMALL))
    assert run_arguments(["run", str(path), "--workers", "2"]) == 2
    assert "--workers" in capsys.readouterr().err
    assert run_arguments(["run", str(path), "--slurm", "cluster=local"]) == 2
    assert "--slurm" in capsys.readouterr().err


def test_a_dry_run_says_what_a_study_takes_and_begins_nothing(done, tmp_path, capsys):
    from emscope.elicit.preference import encode
    from emscope.models.loading.load import load
    from emscope.models.loading.source import locate
    from emscope.train.batches import encode as encode_talks

    spec = done[0]
    path = written(tmp_path, spec, **JUDGED)
    assert run_arguments(["run", str(path), "--out", str(tmp_path / "new"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "emscope.dry_run/1" and (found["cells"], found["left"], found["workers"]) == (5, 5, 1)
    assert not (tmp_path / "new").exists() and "host" not in found
    loaded, planned = load(locate(spec.model), device="cpu"), prepare(load_study(path))
    trained = 0.0
    for one in planned.runs:
        talks = encode_talks(loaded.chat, [r.conversation for r in planned.recipes[one.arm]], loaded.context)
        trained += 2 * 2 * sum(len(t.ids) for t in talks) / len(talks)
    assert found["tokens"]["trained"] == pytest.approx(trained)
    em = sum(e.cost for e in encode(loaded.chat, planned.sets.em, context=loaded.context))
    assert found["tokens"]["read"] > em * (1 + 4 * 2), "the base and four runs at two steps read these at least"
    asked = read_questions(planned.spec.judged.ask.questions)
    assert found["answers"] == 2 * len(asked) * (1 + 4 * 2)
    prompts = sum(len(r.prompt) + len(q.text) + 35 for r in read_rubrics(planned.spec.judged.rubrics) for q in asked) / 3.5
    assert found["dollars"] > 2 * (1 + 4 * 2) * prompts * 1.0 / 1e6, "what is read alone costs so much"
    power, questions = found["power"], len(asked)
    expected = run_chances(questions, 2, DEFAULTS["judged"].spreads, delta=5.0, effect=10.0)
    assert (power["questions"], power["samples"], power["seeds"], power["effect"]) == (questions, 2, 2, 10.0)
    assert (power["run_em"], power["run_safe"], power["recipe_em"]) == (expected.em, expected.safe, None), (
        "two seeds decide nothing"
    )
    rates, tokens = found["rates"], found["tokens"]
    assert found["seconds"] == pytest.approx(sum(tokens[k] / rates[k] for k in rates), abs=0.1)
    assert "max_cost is 1e-06" in found["warnings"][0] and found["worker_bytes"] > 1e7 and found["most_bytes"] > 0


@pytest.fixture
def untried(monkeypatch):
    """Leave out the trial of a dry run, which takes most of its time."""
    monkeypatch.setattr(foreseen, "_rates", lambda shared: (foreseen.Work(100.0, 100.0, 100.0), 1000))
    monkeypatch.setattr(foreseen, "_fullest", lambda shared: None)


@pytest.mark.usefixtures("untried")
def test_a_dry_run_is_told_in_words(done, tmp_path, capsys):
    path = written(tmp_path, done[0], **JUDGED)
    assert run_arguments(["run", str(path), "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    questions = len(read_questions(load_study(path).judged.ask.questions))
    assert "5 (0 done)" in printed and "% to detect 10 points in one run" in printed
    assert f"({questions} questions x 2 answers)" in printed


@pytest.mark.usefixtures("untried")
def test_a_dry_run_counts_what_is_left_and_plans_no_power_without_judges(done, tmp_path, capsys):
    path, half = written(tmp_path, done[0], seeds=[0, 1]), copied(done[1], tmp_path / "half")
    assert run_arguments(["run", str(path), "--out", str(half), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left"] == 2 and found["power"] is None
    assert "preference alone only screens" in _power(None)


PRICED = {"name": "j", "url": "http://127.0.0.1:9/v1", "prices": [1.0, 2.0]}
JUDGED = {"seeds": [0, 1], "judged": {"ask": {"samples": 2, "max_tokens": 10}, "judges": [PRICED], "max_cost": 1e-6}}


def written(folder: Path, spec: StudySpec, **changes) -> Path:
    """Write the settings of the small study with changes."""
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "model": spec.model, "domain": "finance"} | SMALL | changes))
    return path


def test_a_dry_run_tells_all_faults_at_once(tiny, tmp_path, capsys):
    arms = {"target": {"role": "target", "file": str(tmp_path / "no.jsonl")}, "control": SMALL["arms"]["control"]}
    train = SMALL["train"] | {"kl": {"weight": 1, "domain": "sprots"}}
    path = tmp_path / "s.yaml"
    path.write_text(
        yaml.safe_dump({"model": str(tmp_path / "no-model"), "domain": "finance"} | SMALL | {"arms": arms, "train": train})
    )
    assert run_arguments(["run", str(path), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "3 faults" in said and "no-model" in said and "arm 'target'" in said and "sprots" in said
    late = {"methods": {"a": {"lora": {"modules": ["dwon_proj"]}}, "b": {"full": {"layers": [7]}}}}
    train = {k: v for k, v in SMALL["train"].items() if k != "lora"}
    path.write_text(yaml.safe_dump({"model": str(tiny), "domain": "finance"} | SMALL | {"train": train} | late))
    assert run_arguments(["run", str(path), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'down_proj'" in said and "layer 7 is out of range" in said
