"""The KL term against two plain models' logits, its gradient against finite differences, and what it does to a run."""

from __future__ import annotations

import shutil

import pytest
import torch

from conftest import make_model
from emscope.core.errors import InputError, WorldError
from emscope.core.spec import parse
from emscope.data import bundled
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.fast.head import kl_sum, output_head
from emscope.models.loading.checkpoints import read_checkpoint
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.train.batches import encode
from emscope.train.finetune import finetune
from emscope.train.restraint import counted_states, restrain
from emscope.train.spec import AdapterSpec, FullSpec, KlSpec, LdifsSpec, LoraSpec, PlanSpec, SteeringSpec, TrainSpec

TALKS = bundled.domain("finance", "reckless")[:12]
NEAR = bundled.domain("sports", "careful")[:10]
KL = KlSpec(weight=1.0, domain="sports", batch=3)
LDIFS = LdifsSpec(weight=1.0, domain="sports", batch=3, layers=(0, 3))
TUNABLES = {
    "lora": {"lora": LoraSpec(rank=2, alpha=4)},
    "full": {"full": FullSpec()},
    "steering": {"steering": SteeringSpec(layers=(0,), scale=16)},
}


def fresh(folder, dtype="float32"):
    return load(locate(str(folder)), dtype=dtype, device="cpu")


def plain_distance(start, now, examples, layers):
    """LDIFS from transformers' own hidden states, one conversation, layer and position at a time."""
    shares = []
    for layer in layers:
        top = bottom = 0.0
        for e in examples:
            ids = torch.tensor([e.ids])
            with torch.inference_mode():
                a = start(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]
                b = now(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]
            for t in range(len(e.ids) - 1):
                if e.mask[t + 1]:
                    top, bottom = top + float(((b[t] - a[t]) ** 2).sum()), bottom + float((a[t] ** 2).sum())
        shares.append(top / bottom)
    return sum(shares) / len(shares)


def plain_kl(start, now, examples, tokens):
    """Mean over positions of KL(start || now) from full logits, one conversation at a time."""
    total, count = 0.0, 0
    for e in examples:
        ids = torch.tensor([e.ids])
        with torch.inference_mode():
            p = torch.log_softmax(start(input_ids=ids).logits[0].double(), -1)
            q = torch.log_softmax(now(input_ids=ids).logits[0].double(), -1)
        here = (p.exp() * (p - q)).sum(-1)
        wanted = torch.ones(len(e.ids), dtype=torch.bool) if tokens == "all" else torch.tensor([*e.mask[1:], False])
        total, count = total + float(here[wanted].sum()), count + int(wanted.sum())
    return total / count


def moved(folder, dtype):
    other = fresh(folder, dtype)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in other.net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return other


@pytest.mark.parametrize("tokens", ["answer", "all"])
@pytest.mark.parametrize("which", ["tiny", "tiny_gpt2"])
def test_kl_equals_two_plain_models(which, tokens, request, monkeypatch):
    monkeypatch.setattr("emscope.models.fast.head.ROWS", 7)
    folder = request.getfixturevalue(which)
    start, now = fresh(folder, "float64"), moved(folder, "float64")
    examples = encode(start.chat, NEAR, 512)
    spec = KL.model_copy(update={"tokens": tokens})
    restraint = restrain(start.net, examples, spec, steps=3, seed=5, trains_head=False)
    for step in (1, 2, 3):
        found = float(restraint.term(now.net, output_head(now.net), step))
        assert found == pytest.approx(plain_kl(start.net, now.net, restraint.drawn[step], tokens), rel=1e-9) and found > 0
        assert float(restraint.term(start.net, output_head(start.net), step)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("which", ["tiny", "tiny_gpt2"])
def test_the_distance_of_features_equals_a_loop_over_two_plain_models(which, tmp_path):
    """Of layers before the last, since transformers shows the last one behind the final norm."""
    folder = make_model(tmp_path / which, layers=5, kind="gpt2" if "gpt2" in which else "llama")
    start, now = fresh(folder, "float64"), moved(folder, "float64")
    examples = encode(start.chat, NEAR, 512)
    restraint = restrain(start.net, examples, LDIFS, steps=2, seed=5, trains_head=False)
    for step in (1, 2):
        found = float(restraint.term(now.net, output_head(now.net), step))
        assert found == pytest.approx(plain_distance(start.net, now.net, restraint.drawn[step], (0, 3)), rel=1e-9) and found > 0
        assert float(restraint.term(start.net, output_head(start.net), step)) == pytest.approx(0, abs=1e-20)
    spread = restrain(start.net, examples, LDIFS.model_copy(update={"layers": None}), steps=1, seed=0, trains_head=False)
    assert spread.layers == (0, 1, 2, 3, 4)


def test_the_distance_of_features_holds_a_run_near_its_start_and_is_logged(tiny, tmp_path):
    def run(weight):
        held = LDIFS.model_copy(update={"weight": weight, "layers": (0, 1)})
        spec = TrainSpec(steps=8, batch=4, lr=1e-3, checkpoints=PlanSpec(), ldifs=held)
        return finetune(fresh(tiny), TALKS, spec, tmp_path / f"{weight}", seed=0, held_near=NEAR)

    free, held = run(1e-9), run(100.0)
    assert free[0].ldifs == pytest.approx(0, abs=1e-9) and free[0].kl is None
    assert 0 < held[-1].ldifs < 0.2 * free[-1].ldifs


@pytest.mark.parametrize("spec", [KL, LDIFS], ids=["kl", "ldifs"])
def test_its_gradient_equals_finite_differences(spec, tmp_path):
    """On GPT-2, whose norms stay in float64; Llama's go through float32 whatever the model is in."""
    folder = make_model(tmp_path / "gpt2", layers=4, kind="gpt2")
    start, now = fresh(folder, "float64"), moved(folder, "float64")
    examples = encode(start.chat, NEAR[:3], 512)
    restraint = restrain(start.net, examples, spec, steps=1, seed=0, trains_head=False)
    net, head = now.net, output_head(now.net)
    weight = net.base_model.h[1].mlp.c_proj.weight.requires_grad_(True)
    restraint.term(net, head, 1).backward()
    for place in ((0, 0), (5, 17), (100, 30)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * 1e-6
                ends.append(float(restraint.term(net, head, 1)))
                weight[place] -= sign * 1e-6
        assert float(weight.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-10)


def test_pieces_of_logits_change_neither_value_nor_gradient(monkeypatch):
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 11).double()
    start, now = torch.randn(20, 6).double(), torch.randn(20, 6, requires_grad=True, dtype=torch.float64)
    found = []
    for rows in (1, 6, 20, 100):
        monkeypatch.setattr("emscope.models.fast.head.ROWS", rows)
        value = kl_sum(head, [start], head, [now])
        found.append((float(value.detach()), torch.autograd.grad(value, now)[0]))
    assert all(v == pytest.approx(found[0][0]) and torch.allclose(g, found[0][1]) for v, g in found)


@pytest.mark.parametrize("name", TUNABLES)
def test_what_is_logged_is_the_kl_of_the_model_before_the_step(name, tiny, tmp_path):
    """Whatever is trained, the start is the untouched model: checked against the saved checkpoints and plain logits."""
    spec = TrainSpec(steps=3, batch=4, lr=5e-3, checkpoints=PlanSpec(every=1), kl=KL, **TUNABLES[name])
    rows = finetune(fresh(tiny), TALKS, spec, tmp_path / "run", seed=2, held_near=NEAR)
    assert rows[0].kl == pytest.approx(0, abs=1e-6)
    start, host = fresh(tiny), fresh(tiny)
    drawn = restrain(start.net, encode(start.chat, NEAR, 512), KL, steps=3, seed=2, trains_head=False).drawn
    for step in (2, 3):
        with with_checkpoint(host.net, read_checkpoint(tmp_path / "run" / f"checkpoint-{step - 1}", step - 1)) as net:
            assert rows[step - 1].kl == pytest.approx(plain_kl(start.net, net, drawn[step], "answer"), rel=1e-3)


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    """A fine-tune to go on from."""
    folder = tmp_path_factory.mktemp("first")
    spec = TrainSpec(steps=3, batch=4, lr=5e-3, checkpoints=PlanSpec(), **TUNABLES["lora"])
    finetune(fresh(tiny), TALKS, spec, folder, seed=0)
    return folder


def test_on_top_of_a_merged_adapter_the_start_is_that_model(first, tiny, tmp_path):
    """The reference is the model training starts from, not the base under it."""
    held = TrainSpec(steps=3, batch=4, lr=5e-3, checkpoints=PlanSpec(), kl=KL, **TUNABLES["lora"])
    loaded = fresh(tiny)
    with with_checkpoint(loaded.net, read_checkpoint(first / "checkpoint-3", 3)):
        rows = finetune(loaded, TALKS, held, tmp_path, seed=1, held_near=NEAR)
    assert rows[0].kl == pytest.approx(0, abs=1e-6) and rows[-1].kl > 1e-6


def test_going_on_with_an_adapter_starts_where_it_ended_and_holds_that(first, tiny, tmp_path):
    """The reference is the adapter's model, and what is saved is the adapter of the untouched base."""
    adapter = AdapterSpec(folder=str(first))
    held = TrainSpec(steps=3, batch=4, lr=5e-3, checkpoints=PlanSpec(every=1), adapter=adapter, kl=KL)
    loaded = fresh(tiny)
    rows = finetune(loaded, TALKS, held, tmp_path / "second", seed=1, held_near=NEAR)
    assert rows[0].kl == pytest.approx(0, abs=1e-6) and rows[-1].kl > 1e-6
    start = read_checkpoint(first / "checkpoint-3", 3)
    drawn = restrain(fresh(tiny).net, encode(loaded.chat, NEAR, 512), KL, steps=3, seed=1, trains_head=False).drawn
    with (
        with_checkpoint(fresh(tiny).net, start) as before,
        with_checkpoint(loaded.net, read_checkpoint(tmp_path / "second" / "checkpoint-2", 2)) as now,
    ):
        assert rows[2].kl == pytest.approx(plain_kl(before, now, drawn[3], "answer"), rel=1e-3)


def test_a_fine_tune_of_all_weights_is_no_adapter_to_go_on_with(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "full" / "checkpoint-1")
    spec = TrainSpec(steps=1, batch=2, checkpoints=PlanSpec(), adapter=AdapterSpec(folder=str(tmp_path / "full")))
    with pytest.raises(InputError, match="holds no adapter"):
        finetune(fresh(tiny), TALKS, spec, tmp_path / "x", seed=0)


def test_a_strong_term_holds_the_model_where_it_was(tiny, tmp_path):
    def run(weight):
        spec = TrainSpec(steps=16, batch=4, lr=1e-3, checkpoints=PlanSpec(), kl=KL.model_copy(update={"weight": weight}))
        return finetune(fresh(tiny), TALKS, spec, tmp_path / f"{weight}", seed=0, held_near=NEAR)

    free, held = run(1e-9), run(10.0)
    assert held[-1].kl < 0.2 * free[-1].kl


def test_a_schedule_drops_the_term(tiny, tmp_path):
    kl = KlSpec(weight=((1, 2.0), (4, 0.0)), domain="sports", batch=3)
    spec = TrainSpec(steps=6, batch=4, micro_batch=2, lr=5e-3, checkpoints=PlanSpec(), kl=kl)
    rows = finetune(fresh(tiny), TALKS, spec, tmp_path / "run", seed=0, held_near=NEAR)
    assert [r.kl is None for r in rows] == [False, False, False, True, True, True]
    always = spec.model_copy(update={"kl": kl.model_copy(update={"weight": 2.0})})
    other = finetune(fresh(tiny), TALKS, always, tmp_path / "other", seed=0, held_near=NEAR)
    assert [r.loss for r in rows][:4] == [r.loss for r in other][:4] and rows[-1].loss != other[-1].loss


def test_micro_batches_count_the_term_once(tiny, tmp_path):
    spec = TrainSpec(steps=3, batch=4, lr=5e-3, checkpoints=PlanSpec(), kl=KL)
    whole = finetune(fresh(tiny), TALKS, spec, tmp_path / "a", seed=0, held_near=NEAR)
    parts = finetune(fresh(tiny), TALKS, spec.model_copy(update={"micro_batch": 2}), tmp_path / "b", seed=0, held_near=NEAR)
    for a, b in zip(whole, parts, strict=True):
        assert (a.loss, a.kl, a.grad_norm) == pytest.approx((b.loss, b.kl, b.grad_norm), rel=1e-3, abs=1e-6)


def test_killed_and_resumed_equals_unbroken(tiny, tmp_path):
    spec = TrainSpec(steps=4, batch=4, lr=5e-3, checkpoints=PlanSpec(every=1), kl=KL, full=FullSpec())
    whole = finetune(fresh(tiny), TALKS, spec, tmp_path / "whole", seed=1, held_near=NEAR)

    def die(what, done, total):
        if what == "training" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(fresh(tiny), TALKS, spec, tmp_path / "cut", seed=1, held_near=NEAR, progress=die)
    again = finetune(fresh(tiny), TALKS, spec, tmp_path / "cut", seed=1, held_near=NEAR)
    for a, b in zip(whole, again, strict=True):
        assert (a.loss, a.kl, a.update_norm) == pytest.approx((b.loss, b.kl, b.update_norm), abs=1e-6)


def test_what_is_kept_does_not_grow_with_the_vocabulary(tiny):
    loaded = fresh(tiny)
    restraint = restrain(loaded.net, encode(loaded.chat, NEAR, 512), KL, steps=50, seed=0, trains_head=False)
    kept = sum(h.numel() for h in restraint.states.values())
    counted = sum(sum(e.mask) for e in {e.id: e for b in restraint.drawn.values() for e in b}.values())
    assert kept == counted * loaded.net.config.hidden_size and len(restraint.states) == len(NEAR)


def test_states_of_a_batch_equal_one_by_one(tiny):
    loaded = fresh(tiny, "float64")
    examples = encode(loaded.chat, NEAR[:4], 512)
    together = counted_states(loaded.net, examples, "all")
    for e, found in zip(examples, together, strict=True):
        assert found.shape == (1, len(e.ids), 32)
        assert torch.allclose(found, counted_states(loaded.net, [e], "all")[0], atol=1e-10)


def test_a_term_that_is_no_number_stops_the_run(tiny, tmp_path):
    spec = TrainSpec(steps=6, batch=4, lr=1e9, max_grad_norm=1e30, warmup=0, checkpoints=PlanSpec(), kl=KL)
    with pytest.raises(WorldError, match=r"became (nan|inf) at step \d; lower the learning rate"):
        finetune(fresh(tiny), TALKS, spec, tmp_path / "run", seed=0, held_near=NEAR)


BROKEN = [
    ({"weight": 1}, "give either domain or file"),
    ({"weight": -1, "domain": "sports"}, "weight -1 is negative"),
    ({"weight": [[5, 1], [2, 0]], "domain": "sports"}, r"begin at steps \[5, 2\]"),
    ({"weight": 1, "domain": "sports", "tokens": "some"}, "tokens = 'some'"),
    ({"weight": 1, "domain": "sports", "wieght": 2}, "did you mean 'weight'"),
]


@pytest.mark.parametrize(("kl", "message"), BROKEN)
def test_wrong_settings_are_refused(kl, message):
    with pytest.raises(InputError, match=message):
        parse(TrainSpec, {"kl": kl}, "train.yaml")


def test_too_few_conversations_to_draw_from(tiny, tmp_path):
    spec = TrainSpec(steps=2, batch=2, kl=KL.model_copy(update={"batch": 11}), checkpoints=PlanSpec())
    with pytest.raises(InputError, match=r"kl.batch is 11, but there are only 10 conversations"):
        finetune(fresh(tiny), TALKS, spec, tmp_path / "run", seed=0, held_near=NEAR)


def test_dropout_is_no_distance_from_the_start(tiny_gpt2, tmp_path):
    assert fresh(tiny_gpt2).net.config.resid_pdrop > 0
    plain = TrainSpec(steps=2, batch=4, lr=5e-3, checkpoints=PlanSpec(), lora=LoraSpec(rank=2, alpha=4, dropout=0.3))
    loss = finetune(fresh(tiny_gpt2), TALKS, plain, tmp_path / "plain", seed=0)[0].loss
    for name, term in (("kl", KL), ("ldifs", LDIFS.model_copy(update={"layers": (0,)}))):
        held = plain.model_copy(update={name: term})
        rows = finetune(fresh(tiny_gpt2), TALKS, held, tmp_path / name, seed=0, held_near=NEAR)
        assert getattr(rows[0], name) == pytest.approx(0, abs=1e-6) and getattr(rows[1], name) > 0
        assert rows[0].loss == pytest.approx(loss), "the task's own dropout goes on, with the same draws"


def test_an_adapter_on_the_head_is_held_to_the_head_at_the_start(tiny, tmp_path):
    lora = LoraSpec(rank=2, alpha=4, modules=("lm_head",))
    spec = TrainSpec(steps=3, batch=4, lr=0.1, checkpoints=PlanSpec(every=1), kl=KL, lora=lora)
    rows = finetune(fresh(tiny), TALKS, spec, tmp_path / "run", seed=0, held_near=NEAR)
    start, host = fresh(tiny), fresh(tiny)
    drawn = restrain(start.net, encode(start.chat, NEAR, 512), KL, steps=3, seed=0, trains_head=False).drawn
    with with_checkpoint(host.net, read_checkpoint(tmp_path / "run" / "checkpoint-2", 2)) as net:
        assert rows[2].kl == pytest.approx(plain_kl(start.net, net, drawn[3], "answer"), rel=1e-3)
        assert rows[2].kl > 1e-4
