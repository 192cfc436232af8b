"""Files of answers as they come: folders that look like partitions, marks of comments, keys met late."""

from __future__ import annotations

import json

import pytest

from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable


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
