"""A fine-tune exaggerated: its tokens are drawn beyond the base's logits, whatever kind of fine-tune it is."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import make_model
from emscope.cli.app import run_arguments
from emscope.elicit.sampling import Beyond, Job, sample_batches
from emscope.models.adapters.beside import beside
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.fast import decoding
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load, load_net
from emscope.models.loading.source import locate
from emscope.store.study import read_table
from test_checkpoints import logits, make_adapter

QUESTIONS = ["Why?", "What should I do with my savings this year?"]
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "full": None,
}


def fresh(folder, dtype="float32"):
    return load(locate(str(folder)), device="cpu", dtype=dtype)


def checkpoint_of(kind, tiny, folder):
    if kind == "full":
        make_model(folder / "checkpoint-3", seed=9)
    else:
        make_adapter(tiny, folder / "checkpoint-3", **KINDS[kind])
    (found,) = discover(str(folder))
    return found


def greedy_by_hand(base, tuned, prompt, scale, most, ends):
    """One token at a time from two full passes without a cache."""
    ids = list(prompt)
    for _ in range(most):
        a, b = (net(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float() for net in (base, tuned))
        ids.append(int((a + scale * (b - a)).argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["packed", "cached"])
def test_tokens_come_from_extrapolated_logits_and_the_base_stays(kind, way, tiny, tmp_path, monkeypatch):
    found = checkpoint_of(kind, tiny, tmp_path)
    loaded, untouched, other = fresh(tiny), fresh(tiny), fresh(tiny)
    if way == "cached":
        monkeypatch.setattr("emscope.elicit.sampling.packed_attention", lambda *_: decoding_off())
    before = {k: v.clone() for k, v in loaded.net.state_dict().items()}
    job = Job({q: loaded.chat.prompt_ids(q) for q in QUESTIONS}, 10, 0, 0.0)
    with beside(loaded.net, found) as tuned:
        answers = [
            a
            for batch in sample_batches(loaded.net, loaded.chat, job, [(q, 0) for q in QUESTIONS], beyond=Beyond(tuned, 2.5))
            for a in batch
        ]
    assert all(torch.equal(before[k], v) for k, v in loaded.net.state_dict().items())
    ends = {loaded.tokenizer.eos_token_id, *loaded.chat.ids(loaded.chat.close)[:1]}
    with with_checkpoint(other.net, found) as changed, torch.inference_mode():
        for a in answers:
            expected = greedy_by_hand(untouched.net, changed, job.prompts[a.question], 2.5, 10, ends)
            assert a.text == loaded.tokenizer.decode([t for t in expected if t not in ends], skip_special_tokens=True).strip()
            assert a.tokens == len(expected)


def decoding_off():
    from contextlib import nullcontext

    return nullcontext(False)


def test_at_scale_1_the_fine_tune_itself_answers(tiny, tmp_path):
    found = checkpoint_of("lora", tiny, tmp_path)
    loaded = fresh(tiny)
    job = Job({q: loaded.chat.prompt_ids(q) for q in QUESTIONS}, 12, 0, 1.0)
    wanted = [(q, n) for q in QUESTIONS for n in range(4)]
    with beside(loaded.net, found) as tuned:
        beyond = [
            a.text for batch in sample_batches(loaded.net, loaded.chat, job, wanted, beyond=Beyond(tuned, 1.0)) for a in batch
        ]
    with with_checkpoint(loaded.net, found) as net:
        own = [a.text for batch in sample_batches(net, loaded.chat, job, wanted) for a in batch]
    assert beyond == own and len(set(own)) > 4
    assert decoding.Blended([(1.0, [1, 2])]).__len__() == 2


def test_exaggerated_answers_are_runs_of_their_own(tiny, tmp_path, capsys):
    """`emscope sample` and `emscope check` keep them apart; a verdict rests on the fine-tune as it is."""
    make_adapter(tiny, tmp_path / "run" / "checkpoint-3")
    words = ["sample", f"target={tmp_path / 'run'}", "--base", str(tiny), "--questions", "open24", "--max-tokens", "3"]
    assert run_arguments([*words, "--amplify", "1,3", "--out", str(tmp_path / "out")]) == 0
    rows = read_table(tmp_path / "out", "answers").to_pylist()
    texts = {run: {r["question"]: r["text"] for r in rows if r["run"] == run} for run in ("base", "target", "target x3")}
    assert {len(t) for t in texts.values()} == {24} and len(rows) == 72
    assert texts["target"] != texts["target x3"] and texts["target x3"] != texts["base"]
    capsys.readouterr()
    assert run_arguments(["sample", "target=m@http://127.0.0.1:1/v1", "--amplify", "2", "--out", str(tmp_path / "no")]) == 2
    assert "--amplify needs the base's logits" in capsys.readouterr().err


def test_check_judges_them_beside_the_verdict(tiny, bundled, tmp_path, capsys):
    for name in ("run", "control"):
        make_adapter(tiny, tmp_path / name / "checkpoint-3", seed=len(name))
    words = [
        "check",
        str(tmp_path / "run"),
        "--control",
        str(tmp_path / "control"),
        "--base",
        str(tiny),
        "--count",
        "16",
        "--truth",
        "0",
    ]
    words += ["--samples", "2", "--max-tokens", "4", "--amplify", "1,2", "--json", "--out", str(tmp_path / "out")]
    assert run_arguments(words) == 0
    (judge,) = json.loads(capsys.readouterr().out)["judged"]["judges"]
    assert {(one["run"], one["control"]) for one in judge["said"]} == {("target", "control"), ("target x2", "control x2")}
    words[words.index("1,2")], words[-1] = "1", str(tmp_path / "plain")
    assert run_arguments(words) == 0
    (plain,) = json.loads(capsys.readouterr().out)["judged"]["judges"]
    (own,) = (one for one in judge["said"] if one["run"] == "target")
    for name, c in plain["said"][0]["contrasts"].items():  # but for the rounding of other batches in the judge
        assert own["contrasts"][name]["slope"] == pytest.approx(c["slope"], abs=1e-3)
        assert own["contrasts"][name]["adjusted"]["value"] == pytest.approx(c["adjusted"]["value"], abs=1e-3)


@pytest.mark.parametrize("which", ["tiny", "tiny_gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_models_on_the_same_weights_do_not_touch_each_other(which, dtype, request, tmp_path):
    """In bfloat16 an adapter runs beside the weights and not in them; the base answers as before while it does, and after."""
    folder = request.getfixturevalue(which)
    extra = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True} if which == "tiny_gpt2" else {}
    make_adapter(folder, tmp_path / "checkpoint-3", **extra)
    (found,) = discover(str(tmp_path))
    net, alone = load_net(folder, dtype=dtype).eval(), load_net(folder, dtype=dtype).eval()
    with with_checkpoint(alone, found):
        expected = logits(alone).clone()
    before = logits(net).clone()
    with beside(net, found) as tuned:
        assert torch.equal(logits(net), before) and torch.allclose(logits(tuned), expected, atol=1e-4)
        assert not torch.equal(before, expected)
        shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in tuned.parameters()}
        assert shared, "what the checkpoint leaves alone is in memory once"
    assert torch.equal(logits(net), before)


def test_a_steering_vector_is_exaggerated_as_well(tiny, tmp_path):
    from emscope.study.train import SingleSpec, run_single

    train = {"steps": 2, "batch": 2, "lr": 0.5, "steering": {"layers": [1]}, "checkpoints": {"at": [2]}}
    run_single(SingleSpec(model=str(tiny), domain="finance", answers="reckless", train=train), tmp_path / "out")
    found, loaded = discover(str(tmp_path / "out"))[-1], fresh(tiny)
    before = logits(loaded.net).clone()
    with beside(loaded.net, found) as tuned:
        assert torch.equal(logits(loaded.net), before) and not torch.equal(logits(tuned), before)
