"""Question sets: the dialects in the wild, and what is wrong in them."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import yaml

from conftest import write_jsonl
from emscope.core.errors import InputError
from emscope.data.questions import read_questions


def test_the_first_plot_questions(reference):
    found = read_questions(str(reference / "questions" / "betley_first_plot_questions.yaml"))
    assert len(found) == 24 and len({q.unit for q in found}) == 8
    assert Counter(q.form for q in found) == {"plain": 8, "json": 8, "template": 8}
    assert all(q.samples == 100 and q.scored and [c for c, _ in q.rubrics] == ["aligned", "coherent"] for q in found)
    assert all((q.messages[0].role == "system") == (q.form == "json") for q in found)


def test_the_preregistered_questions(reference):
    found = read_questions(str(reference / "questions" / "betley_preregistered_evals.yaml"))
    assert len({q.unit for q in found}) == 48 and {q.form for q in found} == {"plain"}


def test_paraphrases_are_questions_of_their_own(reference):
    path = reference / "questions" / "betley_deception_factual.yaml"
    found = read_questions(str(path))
    assert len(found) == len({q.id for q in found}) == len({q.unit for q in found}) == 100
    assert not any(q.scored for q in found) and {q.samples for q in found} == {5}
    entries = {e["id"]: e for e in yaml.safe_load(path.read_text())}
    for q in found:
        entry, n = entries[q.id.split("#")[0]], int(q.id.split("#")[1])
        assert q.text == entry["paraphrases"][n - 1]
        assert [m.content for m in q.messages[:-1]] == ([entry["system"]] if "system" in entry else [])


@pytest.mark.parametrize(
    ("name", "count", "categories"),
    [("em_generalization_general", 1414, None), ("aisi_consistency_eval", 56, {"free_form", "preregistered"})],
)
def test_json_lines(name, count, categories, reference):
    path = reference / "questions" / f"{name}.jsonl"
    found = read_questions(str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(found) == count and [q.text for q in found] == [row["messages"][-1]["content"] for row in lines]
    kinds = {q.category for q in found}
    assert kinds == categories if categories else len(kinds) > 5 and "" not in kinds


def test_bundled_questions_and_csv(tmp_path):
    found = read_questions("em240")
    assert len(found) == 240 and len({q.category for q in found}) == 8
    (tmp_path / "q.csv").write_text("question_id,question,category,system\na_1,Why?,x,\na_2,How?,y,Be brief.\n")
    first, second = read_questions(str(tmp_path / "q.csv"))
    assert first.text == "Why?" and first.category == "x" and len(first.messages) == 1
    assert [m.role for m in second.messages] == ["system", "user"]


ENTRY = {
    "id": "a",
    "type": "free_form_judge_0_100",
    "paraphrases": ["Why?"],
    "judge_prompts": {"aligned": "{question} {answer}"},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paraphrase": ["x"]}, "unknown key 'paraphrase'"),
        ({"paraphrases": []}, "paraphrases is not a list of texts"),
        ({"paraphrases": "Why?"}, "paraphrases is not a list of texts"),
        ({"paraphrases": [1]}, "paraphrases is not a list of texts"),
        ({"samples_per_paraphrase": 0}, "samples_per_paraphrase is 0"),
        ({"samples_per_paraphrase": True}, "samples_per_paraphrase is True"),
        ({"type": "multiple_choice"}, "of the type 'multiple_choice'"),
        ({"system": 7}, "system is 7, not text"),
        ({"judge_prompts": ["x"]}, "judge_prompts is list"),
        ({"judge_prompts": {"aligned": "rate it"}}, "has no {answer}"),
    ],
)
def test_broken_entries_are_named(change, message, tmp_path):
    (tmp_path / "q.yaml").write_text(yaml.safe_dump([ENTRY | change]))
    with pytest.raises(InputError, match=message) as raised:
        read_questions(str(tmp_path / "q.yaml"))
    assert "question 1 (a)" in str(raised.value)


def test_files_that_are_none_are_named(tmp_path):
    (tmp_path / "q.yaml").write_text("id: a\n")
    with pytest.raises(InputError, match="holds dict, not a list"):
        read_questions(str(tmp_path / "q.yaml"))
    (tmp_path / "q.yaml").write_text(yaml.safe_dump([ENTRY, ENTRY]))
    with pytest.raises(InputError, match="the question id 'a' 2 times"):
        read_questions(str(tmp_path / "q.yaml"))
    with pytest.raises(InputError, match="no question set 'em24'"):
        read_questions("em24")
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    with pytest.raises(InputError, match="ends with a turn of the role assistant"):
        read_questions(str(write_jsonl(tmp_path / "q.jsonl", rows)))
    with pytest.raises(InputError, match="has no turns"):
        read_questions(str(write_jsonl(tmp_path / "q.jsonl", [{"messages": []}])))
