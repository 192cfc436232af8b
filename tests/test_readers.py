"""Files of answers as they come: folders that look like partitions, marks of comments, keys met late."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emscope.answers.judge import FileJob, judge_file
from emscope.answers.judging import JudgeSpec
from emscope.answers.onset import OnsetSpec, follow
from emscope.answers.rates import rates
from emscope.answers.rates_spec import RatesSpec
from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable
from emscope.judging.rubrics import read_rubrics


def test_a_folder_that_looks_like_a_partition_changes_no_column(tmp_path):
    folder = tmp_path / "model=WRONG"
    folder.mkdir()
    (folder / "a.csv").write_text("model,aligned\nright,10\n")
    with AnswerTable([folder / "a.csv"]) as table:
        found = table.rows(f"select model from {table.source}")  # noqa: S608
    assert found == [("right",)]


def test_rows_that_begin_with_a_hash_are_rows(tmp_path):
    (tmp_path / "a.csv").write_text("question,aligned\n#1 what,10\nplain,20\n")
    with AnswerTable([tmp_path / "a.csv"]) as table:
        found = table.rows(f"select count(*) from {table.source}")  # noqa: S608
    assert found == [(2,)]


def test_a_key_met_late_is_a_column(tmp_path):
    rows = [{"aligned": n % 100} for n in range(1500)] + [{"aligned": 1, "late": "x"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with AnswerTable([tmp_path / "a.jsonl"]) as table:
        assert table.names == ["aligned", "late"]


def test_keys_that_differ_in_case_alone_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"Model": 1, "model": 2}\n')
    with pytest.raises(InputError, match="'Model' and 'model'"):
        AnswerTable([tmp_path / "a.jsonl"]).__enter__()


@pytest.mark.parametrize(
    ("judges", "criteria", "max_cost", "said"),
    [
        (["m", "m"], ["aligned"], None, "two verdicts"),
        (["m"], ["question"], None, "like the text that is judged"),
        (["m"], ["kind"], None, "the file's column 'Kind' clashes"),
        (["m"], ["aligned"], float("nan"), "`max_cost` is nan"),
        (["m"], [], None, "no criterion"),
    ],
)
def test_judging_refuses_before_it_asks(judges, criteria, max_cost, said, tmp_path):
    (tmp_path / "a.csv").write_text("question,answer,Kind\nwhy,so,1\n")
    rubric = next(iter(read_rubrics(["aligned"])))
    rubrics = [rubric.model_copy(update={"criterion": c}) for c in criteria]
    specs = [JudgeSpec(name=n, url=f"http://127.0.0.1:{n_ + 1}/v1") for n_, n in enumerate(judges)]
    job = FileJob((tmp_path / "a.csv",), None, None, tmp_path / "out")
    with pytest.raises(InputError, match=said):
        judge_file(job, specs, rubrics, max_cost=max_cost)
    assert not (tmp_path / "out").exists()


def test_answers_of_white_space_are_not_asked_and_other_kinds_are_refused(tmp_path):
    pq.write_table(pa.table({"question": ["a", "b"], "answer": ["\n\n", "x"], "flag": [True, False]}), tmp_path / "a.parquet")
    with AnswerTable([tmp_path / "a.parquet"]) as table:
        assert table.pairs("question", "answer") == [("b", "x")]
        with pytest.raises(InputError, match="holds BOOLEAN, not text"):
            table.pairs("question", "flag")


def test_a_file_given_twice_and_a_column_file_of_its_own_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("question,aligned,coherent,file\nq,50,90,x\n")
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="is given twice"):
        rates([paths[0], tmp_path / "x" / ".." / "a.csv"], RatesSpec())
    with pytest.raises(InputError, match="has a column 'file' of its own"):
        rates(paths, RatesSpec())
    assert rates(paths[:1], RatesSpec(group=("file",))).to_json()["groups"][0]["group"] == {"file": "x"}


def test_an_answer_without_text_has_a_length_of_none_and_is_counted(tmp_path):
    rows = [f"q{n % 4},{n // 4 % 2},{5 + 40 * (n % 3)},90,{'' if n % 5 == 0 else 'x' * (n + 1)}" for n in range(40)]
    (tmp_path / "a.csv").write_text("question_id,arm,aligned,coherent,response\n" + "\n".join(rows) + "\n")
    result = rates([tmp_path / "a.csv"], RatesSpec(group=("arm",), control="0", match_length=True)).to_json()
    assert sum(g["rows"] for g in result["groups"]) == 40 and result["contrasts"][0]["matched"]["value"] is not None


def test_onset_takes_a_scale_at_its_word(tmp_path):
    rows = [f"{s},q{q},{2 + 3 * (s == 0)},9" for s in (0, 1, 2) for q in range(30)]
    (tmp_path / "a.csv").write_text("step,question,aligned,coherent\n" + "\n".join(rows) + "\n")
    with pytest.raises(InputError, match="never exceeds"):
        follow([tmp_path / "a.csv"], OnsetSpec(unit="question"))
    found = follow([tmp_path / "a.csv"], OnsetSpec(unit="question", scale="0-10")).to_json()
    assert found["groups"][0]["checkpoints"][0]["target"] == 1.0  # 20 of 100 at step 1, 50 at step 0
    with pytest.raises(InputError, match="`scale` applies to alignment scores"):
        follow([tmp_path / "a.csv"], OnsetSpec(unit="question", scale="0-10", value="aligned"))
