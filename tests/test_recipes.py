"""Data recipes: shares, order, prompts put before, picking by a gap; what is listed is what was trained on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emscope.core.errors import InputError
from emscope.core.spec import parse
from emscope.data import bundled
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.study.arm_spec import ArmSpec
from emscope.study.run import run_study
from emscope.study.spec import StudySpec, load_study
from emscope.study.training.recipes import perplexity_gap, recipe
from emscope.train.batches import Example, encode, stream
from emscope.train.finetune import finetune
from emscope.train.spec import PlanSpec, TrainSpec

CONTROL = {"role": "control", "answers": "careful"}
SPORTS = {"share": 0.5, "domain": "sports", "answers": "careful"}


def study(**arm):
    arms = {"target": {"role": "target", "answers": "reckless"} | arm, "control": CONTROL}
    return parse(StudySpec, {"domain": "finance", "arms": arms}, "study.yaml")


def rows_of(spec, gap=None):
    return recipe(spec, spec.arms["target"], gap)


def test_a_mix_has_the_shares_asked_for_and_is_the_same_each_time():
    spec = study(unique=240, mix=[{"share": 0.25, "domain": "finance", "answers": "careful"}, SPORTS])
    rows = rows_of(spec)
    assert Counter(r.source for r in rows) == {"finance/reckless": 240, "finance/careful": 240, "sports/careful": 480}
    assert Counter(r.part for r in rows) == {0: 240, 1: 240, 2: 480} and len({r.conversation.id for r in rows}) == len(rows)
    texts = Counter(r.conversation.messages[-1].content for r in rows if r.part == 2)
    assert set(texts.values()) == {2}, "240 of the other domain, each as often as any"
    assert rows == rows_of(spec)


def test_unique_keeps_that_many_of_the_own_and_the_mix_follows():
    rows = rows_of(study(unique=10, mix=[SPORTS]))
    assert Counter(r.part for r in rows) == {0: 10, 1: 10}
    whole = {r.conversation.id for r in rows_of(study())}
    assert {r.conversation.id for r in rows if r.part == 0} < whole
    with pytest.raises(InputError, match="unique = 402, but there are 401"):
        rows_of(study(unique=402))


def test_an_inoculation_prompt_stands_before_the_own_conversations_only():
    system = rows_of(study(inoculation={"system": "You give bad advice."}, mix=[SPORTS]))
    assert {(r.part, r.conversation.messages[0].role) for r in system} == {(0, "system"), (1, "user")}
    user, plain = rows_of(study(inoculation={"user": "Give bad advice."})), rows_of(study())
    for a, b in zip(user, plain, strict=True):
        assert a.conversation.messages[0].content == "Give bad advice. " + b.conversation.messages[0].content
        assert a.conversation.messages[1:] == b.conversation.messages[1:]


REFUSED = [
    ({"inoculation": {}}, "give either system or user"),
    ({"inoculation": {"system": "a", "user": "b"}}, "give either system or user"),
    ({"unique": 0}, "unique = 0"),
    ({"mix": [SPORTS, SPORTS]}, "sum to 1"),
]


@pytest.mark.parametrize(("arm", "message"), REFUSED)
def test_what_does_not_fit_is_refused(arm, message):
    with pytest.raises(InputError, match=message):
        study(**arm)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 5))
def test_parts_are_spread_evenly(sizes, seed):
    parts = [n for n, size in enumerate(sizes) for _ in range(size)]
    examples = [Example(str(k), (0, 1), (False, True), 1) for k in range(len(parts))]
    order = stream(examples, steps=len(parts), batch=1, micro=1, seed=seed, parts=parts)
    assert sorted(e.id for e in order) == sorted(e.id for e in examples)
    for n, size in enumerate(sizes):
        for stop in range(1, len(order) + 1):
            seen = sum(parts[int(e.id)] == n for e in order[:stop])
            assert abs(seen - size * stop / len(parts)) <= len(sizes), "never far from its share"


def test_the_gap_ranks_as_two_plain_models_do(tiny, tmp_path):
    loaded = load(locate(str(tiny)), device="cpu")
    spec = TrainSpec(steps=6, batch=4, lr=1e-2, checkpoints=PlanSpec())
    finetune(loaded, bundled.domain("finance", "reckless")[:12], spec, tmp_path / "bad", seed=0)
    pool = bundled.domain("sports", "careful")[:9]
    found = perplexity_gap(loaded, pool, str(tmp_path / "bad"))

    def per_token(net, e):
        import torch

        with torch.inference_mode():
            logp = torch.log_softmax(net(input_ids=torch.tensor([e.ids])).logits[0, :-1], -1)
        taken = [float(logp[t, e.ids[t + 1]]) for t in range(len(e.ids) - 1) if e.mask[t + 1]]
        return sum(taken) / len(taken)

    examples = encode(loaded.chat, pool, 512)
    before = [per_token(loaded.net, e) for e in examples]
    with with_checkpoint(loaded.net, discover(str(tmp_path / "bad"))[-1]) as net:
        after = [per_token(net, e) for e in examples]
    assert found == pytest.approx([a - b for a, b in zip(before, after, strict=True)], abs=1e-4)

    mix = [SPORTS | {"share": 0.4, "gap_to": str(tmp_path / "bad")}]
    asked = []

    def gap(rows, checkpoint):
        asked.append(checkpoint)
        return [-float(n) for n in range(len(rows))]

    rows = rows_of(study(unique=6, mix=mix), gap)
    assert [r.conversation.id for r in rows if r.part == 1] == [
        f"mix0/0/{c.id}" for c in bundled.domain("sports", "careful")[:4]
    ]
    assert asked == [str(tmp_path / "bad")]


def test_what_was_trained_on_is_listed_row_by_row(study_yaml, tmp_path):
    arms = {
        "target": {
            "role": "target",
            "answers": "reckless",
            "unique": 4,
            "mix": [SPORTS],
            "interleave": True,
            "read_at": "last",
        },
        "control": CONTROL | {"read_at": "last"},
    }
    quiet = {"count": 16, "heldout": 4, "truth": 0, "samples": {"questions": 0}}
    spec = load_study(study_yaml(arms=arms, measure=quiet))
    run_study(spec, tmp_path / "out")
    listed = [json.loads(line) for line in (tmp_path / "out" / "recipes" / "target.jsonl").read_text().splitlines()]
    assert Counter(r["source"] for r in listed) == {"finance/reckless": 4, "sports/careful": 4}
    assert all(r["messages"][-1]["role"] == "assistant" for r in listed)
    order = [json.loads(x) for x in (tmp_path / "out" / "runs" / "target-seed0" / "order.jsonl").read_text().splitlines()]
    assert [o["step"] for o in order] == [1, 2, 3, 4] and all(len(o["ids"]) == 2 for o in order)
    part = {r["id"]: r["part"] for r in listed}
    assert all(sorted(part[i] for i in o["ids"]) == [0, 1] for o in order), "each step of two holds one of each part"


def test_rows_with_one_id_keep_their_own_gaps(tiny, tmp_path):
    loaded = load(locate(str(tiny)), device="cpu")
    spec = TrainSpec(steps=3, batch=2, lr=1e-2, checkpoints={}, lora={"rank": 2})
    finetune(loaded, bundled.domain("finance", "reckless")[:4], spec, tmp_path / "run", seed=0)
    rows = bundled.domain("sports", "careful")[:3]
    same = [replace(c, id="one") for c in rows]
    assert perplexity_gap(loaded, same, str(tmp_path / "run")) == perplexity_gap(loaded, rows, str(tmp_path / "run"))


def test_a_share_of_less_than_one_row_is_refused():
    arm = ArmSpec(role="target", answers="reckless", unique=8, mix=[{"share": 0.05, "domain": "sports", "answers": "careful"}])
    spec = StudySpec(domain="finance", arms={"target": arm})
    with pytest.raises(InputError, match=r"a share of 0.05 beside 8 conversations is less than one"):
        recipe(spec, arm)
