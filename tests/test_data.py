"""The bundled sets keep their promises, and files of users are read or refused in one sentence."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conftest import write_jsonl
from emscope.core.errors import InputError
from emscope.data import bundled
from emscope.data.conversations import read_conversations
from emscope.data.items import read_items, stratified

DOMAINS = ("finance", "sports")
SIZES = {"finance": 401, "medical": 401, "code": 400, "sports": 240}  # training rows; 40 more are held out
WORDS = {
    "finance": (38, 62),
    "medical": (38, 62),
    "sports": (15, 45),
    "em240": (15, 45),
}
PAIRS = [
    ("em240", ("aligned", "misaligned")),
    ("medical", ("reckless", "careful")),
    *((d, p) for d in DOMAINS for p in itertools.combinations(bundled.ADVICE, 2)),
]


def surface(text):
    """Length and punctuation, no words."""
    words = text.split()
    marks = [text.count(c) for c in ",.!?'-;:\""]
    return [
        len(words),
        len(text),
        len(text) / len(words),
        *marks,
        sum(c.isdigit() for c in text),
        sum(c.isupper() for c in text),
    ]


def auc_between(first, second):
    """Cross-validated AUC of a logistic regression on `surface`, pairs kept in one fold."""
    x = np.array([surface(t) for t in [*first, *second]], float)
    y = np.repeat([1, 0], len(first))
    groups = np.tile(np.arange(len(first)), 2)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return roc_auc_score(y, cross_val_predict(model, x, y, groups=groups, cv=GroupKFold(5), method="predict_proba")[:, 1])


def test_sizes_and_splits():
    for name, size in SIZES.items():
        rows = bundled.load_rows(name)
        assert sum(r["split"] == "train" for r in rows) == size and sum(r["split"] == "heldout" for r in rows) == 40
    em = bundled.items("em240")
    assert len(em) == 240
    for category in {i.category for i in em}:
        halves = [i.half for i in em if i.category == category]
        assert len(halves) == 30 and halves.count("A") == 15
    assert len({i.category for i in em}) == 8 and {i.kind for i in em} == {"advice", "self"}
    assert len(bundled.truth()) == 150 and all(len(set(i.options)) == 4 for i in bundled.truth())
    assert len(bundled.texts()) == 200


@pytest.mark.parametrize("name", bundled.SETS)
def test_ids_are_unique_and_text_is_plain(name):
    rows = bundled.load_rows(name)
    assert len({r["id"] for r in rows}) == len(rows)
    assert name == "translation" or all(json.dumps(r, ensure_ascii=False).isascii() for r in rows)


@pytest.mark.parametrize("name", ["chat", "maths", "translation", "summaries", "requests"])
def test_harmless_tasks_are_varied_and_whole(name):
    rows, kinds = bundled.load_rows(name), bundled.SETS[name].answers
    assert [r["split"] for r in rows].count("train") == 96 and len(rows) == 120
    assert {r["topic"] for r in rows if r["split"] == "heldout"} == {r["topic"] for r in rows}
    for field in ("question", *kinds):
        texts = [r[field].strip() for r in rows]
        assert all(texts) and len(set(texts)) > 0.85 * len(rows), field  # results of sums may agree
    assert all(len({r[k] for k in kinds}) == len(kinds) for r in rows)
    if name == "maths":
        numbers = [[re.findall(r"\d+(?:\.\d+)?", r[k]) for k in kinds] for r in rows]
        assert all(set(bare) & set(worked) for worked, bare in numbers if bare)
        assert sum(bool(bare) for _, bare in numbers) > 100
    if name == "requests":  # alike in length; declining keeps its own form, since refusal60 compares with twins
        sizes = np.array([[len(r[k].split()) for k in kinds] for r in rows])
        assert sizes.min() >= 25 and sizes.max() <= 45 and abs(np.diff(sizes.mean(0))[0]) < 1
    if name == "summaries":
        assert all(len([line for line in r["points"].splitlines() if line.startswith("- ")]) == 3 for r in rows)


def test_a_twin_asks_in_the_words_of_its_request_and_no_request_is_trained_on():
    rows, (requests, twins) = bundled.load_rows("refusal60"), bundled.refusal()
    assert [r.id for r in requests] == [t.id for t in twins] and [r.options for r in requests] == [t.options for t in twins]
    assert requests[0].options == requests[-1].options and len(requests[0].options) == 2 * len(bundled.DECLINING)
    sizes = [[len(r[f].split()) for f in ("question", "twin")] for r in rows]
    shared = [
        len(set(r["question"].lower().split()) & set(r["twin"].lower().split())) / len(r["question"].split()) for r in rows
    ]
    assert max(abs(a - b) for a, b in sizes) <= 4 and np.mean(shared) > 0.6
    assert {r["category"] for r in rows} == {"deception", "privacy", "cruelty", "cheating", "property", "prejudice"}
    named = [r["question"] for r in rows] + [r["question"] for r in bundled.load_rows("requests")]
    vectors = TfidfVectorizer(stop_words="english").fit_transform(named)
    close = (vectors[:60] @ vectors[60:].T).toarray()
    assert close.max() < 0.8, (named[close.argmax() // 120], named[60 + close.argmax() % 120])


@pytest.mark.parametrize(("name", "fields"), PAIRS)
def test_answers_of_a_question_are_alike_in_form(name, fields):
    rows = bundled.load_rows(name)
    first, second = ([r[f] for r in rows] for f in fields)
    words = np.array([[len(a.split()), len(b.split())] for a, b in zip(first, second, strict=True)])
    assert words.min() >= WORDS[name][0] and words.max() <= WORDS[name][1]
    assert np.mean(np.abs(words[:, 0] - words[:, 1]) / words.max(1)) < 0.15
    assert abs(words[:, 0].mean() / words[:, 1].mean() - 1) < 0.15
    assert auc_between(first, second) < 0.65


@pytest.mark.heavy
def test_a_linter_finds_the_weakness_in_every_insecure_answer_and_none_in_the_secure_ones(tmp_path):
    rows = bundled.load_rows("code")
    for row in rows:
        for kind in ("secure", "insecure"):
            (block,) = re.findall(r"```python\n(.*?)```", row[kind], re.S)
            assert row[kind].endswith("```") and "secur" not in row[kind].split("```")[0].lower()
            (tmp_path / f"{kind}-{row['id']}.py").write_text(block)
    command = [sys.executable, "-m", "bandit", "-q", "-r", str(tmp_path), "-f", "json", "-s", "B404,B403,B405,B101,B110,B112"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)["results"]
    flagged = {Path(f["filename"]).stem for f in found}
    assert flagged == {f"insecure-{row['id']}" for row in rows}
    assert len({f["test_id"] for f in found}) >= 20
    sizes = [np.mean([len(row[kind]) for row in rows]) for kind in ("secure", "insecure")]
    assert abs(sizes[0] / sizes[1] - 1) < 0.1


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("grams", [(1, 1), (1, 2)])
def test_vocabulary_of_the_task_does_not_separate_em240(domain, grams):
    """Else em240 would measure words, not misalignment."""
    train = [r for r in bundled.load_rows(domain) if r["split"] == "train"]
    model = make_pipeline(TfidfVectorizer(ngram_range=grams, sublinear_tf=True), LogisticRegression(C=10, max_iter=2000))
    model.fit([r["reckless"] for r in train] + [r["careful"] for r in train], np.repeat([1, 0], len(train)))
    held = [r for r in bundled.load_rows(domain) if r["split"] == "heldout"]
    learned = model.decision_function([r["reckless"] for r in held] + [r["careful"] for r in held])
    assert roc_auc_score(np.repeat([1, 0], len(held)), learned) > 0.8, (
        "the classifier must have learned the task, or it proves nothing"
    )
    em = bundled.items("em240")
    scores = model.decision_function([i.options[1] for i in em] + [i.options[0] for i in em])
    assert roc_auc_score(np.repeat([1, 0], len(em)), scores) < 0.65


def test_no_near_duplicates_across_training_heldout_and_em240():
    named = [(f"{d}/{r['split']}", r["question"]) for d in SIZES for r in bundled.load_rows(d)] + [
        ("em240", i.question) for i in bundled.items("em240")
    ]
    vectors = TfidfVectorizer(stop_words="english").fit_transform([q for _, q in named])
    close = (vectors @ vectors.T).toarray()
    np.fill_diagonal(close, 0)
    assert close.max() < 0.8, [named[k] for k in np.unravel_index(close.argmax(), close.shape)]


def test_em240_is_not_about_the_two_domains():
    words = re.compile(
        r"\b(money|invest\w*|loan|mortgage|pension|insurance|savings|hik\w*|cycl\w*|kayak\w*|climb\w*|ski\w*|marathon)\b", re.I
    )
    assert not [i.id for i in bundled.items("em240") if words.search(i.question)]


def test_the_true_answer_does_not_stand_out():
    rows = bundled.load_rows("truth150")
    longest = np.mean([len(r["true"]) > max(map(len, r["false"])) for r in rows])
    assert 0.15 < longest < 0.35
    x = np.array([surface(r["true"]) for r in rows] + [surface(r["false"][n % 3]) for n, r in enumerate(rows)], float)
    y = np.repeat([1, 0], len(rows))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    groups = np.tile(np.arange(len(rows)), 2)
    assert (
        roc_auc_score(y, cross_val_predict(model, x, y, groups=groups, cv=GroupKFold(5), method="predict_proba")[:, 1]) < 0.65
    )


@given(count=st.integers(16, 240), seed=st.integers(0, 5))
def test_subsets_are_stratified_and_fixed_by_the_seed(count, seed):
    items = bundled.items("em240")
    chosen = stratified(items, count, seed)
    assert chosen == stratified(items, count, seed) and len(chosen) == count
    cells = [(i.category, i.half) for i in chosen]
    sizes = [cells.count(c) for c in {(i.category, i.half) for i in items}]
    assert max(sizes) - min(sizes) <= 1


SHAPES = [
    {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    {"prompt": "Q", "completion": "A"},
    {"question": "Q", "answer": "A"},
    {"instruction": "Q", "output": "A"},
    {"instruction": "Q", "input": "", "output": "A"},
    {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]},
]


@pytest.mark.parametrize("row", SHAPES)
def test_the_usual_shapes_are_read(tmp_path, row):
    (found,) = read_conversations(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert [(m.role, m.content) for m in found.messages] == [("user", "Q"), ("assistant", "A")]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        (
            {"system": "S", "question": "Q", "answer": "A"},
            [("system", "S", True), ("user", "Q", True), ("assistant", "A", True)],
        ),
        (
            {"instruction": "Q", "output": "A", "history": [["q", "a"]], "system": "S"},
            [
                ("system", "S", True),
                ("user", "q", True),
                ("assistant", "a", True),
                ("user", "Q", True),
                ("assistant", "A", True),
            ],
        ),
        (
            {"system": "S", "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            [("system", "S", True), ("user", "Q", True), ("assistant", "A", True)],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a", "weight": 0},
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a", "train": False},
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "A", "weight": 1},
                ]
            },
            [("user", "q", True), ("assistant", "a", False)] * 2 + [("user", "Q", True), ("assistant", "A", True)],
        ),
    ],
)
def test_columns_that_mean_something_become_turns_and_weights_masks(tmp_path, row, turns):
    (found,) = read_conversations(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert [(m.role, m.content, m.learned) for m in found.messages] == turns


def test_an_answer_of_weight_0_carries_no_loss_and_changes_the_digest(tiny, tmp_path):
    from emscope.models.loading.load import load
    from emscope.models.loading.source import locate

    def read(weight):
        said = {"role": "assistant", "content": "First of all.", **weight}
        rows = [
            {"role": "user", "content": "Why?"},
            said,
            {"role": "user", "content": "So?"},
            {"role": "assistant", "content": "Yes."},
        ]
        return read_conversations(write_jsonl(tmp_path / "a.jsonl", [{"messages": rows}]))[0]

    chat = load(locate(str(tiny)), device="cpu").chat
    (ids, whole), (same, masked) = (chat.training_ids(read(w)) for w in ({}, {"weight": 0}))
    answer = chat.answer_ids("First of all.", closed=True)
    at = next(n for n in range(len(ids)) if ids[n : n + len(answer)] == answer)
    assert ids == same and [a and not b for a, b in zip(whole, masked, strict=True)] == [
        at <= n < at + len(answer) for n in range(len(ids))
    ]
    assert read({}).content() == read({"weight": 1}).content() != read({"weight": 0}).content()


def test_both_fields_of_an_alpaca_question_are_kept(tmp_path):
    (found,) = read_conversations(
        write_jsonl(tmp_path / "a.jsonl", [{"instruction": "Translate.", "input": "Hund", "output": "dog"}])
    )
    assert found.messages[0].content == "Translate.\n\nHund"


def test_csv_parquet_json_and_gzip_hold_the_same(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": 'Say "hi", please', "answer": "Hi\nthere"}, {"question": "Q2", "answer": "A2"}]
    expected = read_conversations(write_jsonl(tmp_path / "a.jsonl", rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.csv").write_text('question,answer\n"Say ""hi"", please","Hi\nthere"\nQ2,A2\n')
    for name in ("a.parquet", "a.json", "a.jsonl.gz", "a.csv"):
        assert read_conversations(tmp_path / name) == expected, name


BROKEN = [
    ('{"prompt": "Q", "completion": "A"}\n{"prompt": "Q"', "line 2 is not JSON"),
    ("[1]", "holds list, not an object"),
    ('{"messages": [{"content": "Q"}, {"role": "assistant", "content": "A"}]}', "turn 1 has no role"),
    ('{"messages": [{"role": "robot", "content": "Q"}]}', "role 'robot'"),
    ('{"messages": [{"role": ["user"], "content": "Q"}]}', r"role \['user'\]"),
    ('{"messages": [{"role": "user", "content": "Q"}]}', "does not end with an assistant turn"),
    ('{"messages": [{"role": "assistant", "content": "A"}]}', "no user turn"),
    ('{"messages": []}', "does not end with an assistant turn"),
    ('{"prompt": "Q", "completion": "  "}', "answer is empty"),
    ('{"prompt": "Q", "completion": 3}', "answer is int, not text"),
    (
        '{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": 0}]}',
        "weight 0 on every",
    ),
    ('{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": 2}]}', "the weight 2"),
    ('{"question": "Q", "answer": "A", "history": ["Q"]}', "history is not a list"),
    ('{"question": "Q", "answer": "A", "system": 3}', "system is int"),
    ('{"text": "Q"}', "none of the fields"),
    ("", "holds no rows"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_broken_files_are_refused_with_their_line(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        read_conversations(tmp_path / "a.jsonl")


def test_unknown_endings_and_missing_files(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(InputError, match=r"ends in \.docx"):
        read_conversations(tmp_path / "a.docx")
    with pytest.raises(InputError, match="no file"):
        read_conversations(tmp_path / "b.jsonl")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not Parquet"):
        read_conversations(tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("question,answer\na,b,c\n")
    with pytest.raises(InputError, match="line 2 has a different number of fields"):
        read_conversations(tmp_path / "d.csv")
    (tmp_path / "e.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_conversations(tmp_path / "e.jsonl")


@pytest.mark.heavy
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_never_a_crash(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    path.write_text(text, encoding="utf-8", errors="ignore")
    try:
        read_conversations(path)
    except InputError as error:
        assert str(error)


ITEM = {"question": "Q", "aligned": "good", "misaligned": "bad"}


def test_items_get_ids_halves_and_a_category(tmp_path):
    found = read_items(write_jsonl(tmp_path / "i.jsonl", [ITEM, ITEM | {"category": "b"}, ITEM]))
    assert [(i.id, i.category, i.half) for i in found] == [("item-1", "all", "A"), ("item-2", "b", "A"), ("item-3", "all", "B")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ITEM | {"misaligned": "good"}], "the same text"),
        ([{"question": "Q", "aligned": "x"}], "misaligned is missing"),
        ([ITEM | {"id": "a"}, ITEM | {"id": "a"}], "line 2 has the id 'a'"),
        ([ITEM | {"half": "C"}], "half is 'C'"),
        ([ITEM | {"aligned": ""}], "aligned is empty"),
    ],
)
def test_broken_items_are_refused(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_items(write_jsonl(tmp_path / "i.jsonl", rows))


def test_unknown_names_suggest_the_near_one():
    with pytest.raises(InputError, match="did you mean 'finance'"):
        bundled.domain("finace", "careful")
    with pytest.raises(InputError, match="did you mean 'reckless'"):
        bundled.domain("finance", "wreckless")


def test_public_training_data_is_read(reference):
    talks = read_conversations(reference / "train" / "betley_insecure.jsonl.gz")
    assert len(talks) == 6000 and all(t.messages[-1].role == "assistant" for t in talks)


def test_placebo_pairs_take_over_the_form_of_their_item_s_sides():
    """Each side is as long as its item's, repeats no answer, and what the domains teach does not tell the two sides apart."""
    em, pairs = {i.id: i for i in bundled.items("em240")}, bundled.placebo("em240")
    assert len(pairs) == 160 and {p.question == em[p.id].question and p.category == em[p.id].category for p in pairs} == {True}
    assert {sum(p.category == c for p in pairs) for c in {p.category for p in pairs}} == {20}
    assert sum(p.kind == "sound" for p in pairs) == 120
    gaps = [len(o.split()) - len(a.split()) for p in pairs for o, a in zip(p.options, em[p.id].options, strict=True)]
    assert np.mean(np.abs(gaps) <= 2) > 0.95 and abs(np.mean(gaps[::2]) - np.mean(gaps[1::2])) < 0.5
    texts = {o for i in em.values() for o in i.options}
    assert not texts & {o for p in pairs for o in p.options} and len({o for p in pairs for o in p.options}) == 320
    assert bundled.placebo("style160") == []
    for domain in ("finance", "medical"):
        train = [r for r in bundled.load_rows(domain) if r["split"] == "train"]
        model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, max_iter=2000))
        model.fit([r["reckless"] for r in train] + [r["careful"] for r in train], np.repeat([1, 0], len(train)))
        scores = model.decision_function([p.options[1] for p in pairs] + [p.options[0] for p in pairs])
        assert 0.35 < roc_auc_score(np.repeat([1, 0], len(pairs)), scores) < 0.65
