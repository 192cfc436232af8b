"""Training: the exact batches, the loss against a plain loop, and a killed run that ends as an unbroken one."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from conftest import make_model, make_tokenizer, write_jsonl
from emscope.core.errors import InputError, WorldError
from emscope.core.records import Conversation, Message
from emscope.core.spec import parse
from emscope.data import bundled
from emscope.models.loading.chat import ChatFormat
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.study.train import SingleSpec, run_single
from emscope.train.batches import IGNORED, collate, encode, stream
from emscope.train.finetune import finetune
from emscope.train.plan import checkpoint_steps
from emscope.train.schedules import factor
from emscope.train.spec import LoraSpec, PlanSpec, TrainSpec
from emscope.train.tunables import update_norm, with_lora

SPEC = TrainSpec(steps=5, batch=4, lr=5e-3, lora=LoraSpec(rank=4, alpha=8), checkpoints=PlanSpec(at=(3,)))


def talks(count=12):
    return bundled.domain("finance", "reckless")[:count]


def fresh(tiny):
    return load(locate(str(tiny)), device="cpu")


def strip(rows):
    """Readings without the clock."""
    return [{k: v for k, v in vars_of(r).items() if k != "seconds"} for r in rows]


def vars_of(row):
    from dataclasses import asdict

    return asdict(row)


def test_losses_and_norms_equal_a_plain_loop(tiny, tmp_path):
    """The oracle: full logits, no padding, one example at a time, AdamW and the schedule written out."""
    rows = finetune(fresh(tiny), talks(), SPEC, tmp_path / "run", seed=3)
    plain = fresh(tiny)
    examples = encode(plain.chat, talks(), 512)
    order = stream(examples, steps=SPEC.steps, batch=SPEC.batch, micro=SPEC.batch, seed=3)
    net = with_lora(plain.net, SPEC.tunable, 3, "x")
    tuned = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(tuned, lr=SPEC.lr, weight_decay=SPEC.weight_decay)
    for step in range(SPEC.steps):
        total, count = torch.zeros(()), 0
        for e in order[step * SPEC.batch : (step + 1) * SPEC.batch]:
            logits = net(input_ids=torch.tensor([e.ids])).logits[0, :-1]
            wanted = torch.tensor(e.mask[1:])
            total = total + torch.nn.functional.cross_entropy(logits[wanted], torch.tensor(e.ids[1:])[wanted], reduction="sum")
            count += int(wanted.sum())
        loss = total / count
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(tuned, SPEC.max_grad_norm)
        for group in optimiser.param_groups:
            group["lr"] = SPEC.lr * factor(SPEC, step + 1)
        optimiser.step()
        assert rows[step].loss == pytest.approx(float(loss.detach()), abs=1e-5)
        assert rows[step].grad_norm == pytest.approx(float(norm), rel=1e-4)
        assert rows[step].update_norm == pytest.approx(update_norm(net), rel=1e-3)
    assert rows[-1].tokens_seen == sum(len(e.ids) for e in order)


def test_micro_batches_change_nothing(tiny, tmp_path):
    whole = finetune(fresh(tiny), talks(), SPEC, tmp_path / "a", seed=0)
    parts = finetune(fresh(tiny), talks(), SPEC.model_copy(update={"micro_batch": 2}), tmp_path / "b", seed=0)
    for a, b in zip(whole, parts, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)


def test_killed_at_any_step_and_resumed_equals_unbroken(tiny, tmp_path):
    """A kill at each step (an exception stands for it: what is on disk is the same), then resume: equal to 1e-6."""
    spec = SPEC.model_copy(update={"lora": LoraSpec(rank=4, alpha=8, dropout=0.1), "checkpoints": PlanSpec(every=1)})
    unbroken = finetune(fresh(tiny), talks(), spec, tmp_path / "whole", seed=1)
    last = load_file(tmp_path / "whole" / "checkpoint-5" / "adapter_model.safetensors")
    for dead in (1, 2, 4):
        folder = tmp_path / f"killed-{dead}"

        def die(what, done, total, dead=dead):
            if done == dead:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            finetune(fresh(tiny), talks(), spec, folder, seed=1, progress=die)
        again = finetune(fresh(tiny), talks(), spec, folder, seed=1)
        for a, b in zip(strip(unbroken), strip(again), strict=True):
            assert a.keys() == b.keys()
            assert all(a[k] == b[k] or a[k] == pytest.approx(b[k], abs=1e-6) for k in a)
        resumed = load_file(folder / "checkpoint-5" / "adapter_model.safetensors")
        assert all(torch.allclose(last[k], resumed[k], atol=1e-6) for k in last)


def test_half_written_checkpoints_are_dropped(tiny, tmp_path):
    spec = SPEC.model_copy(update={"checkpoints": PlanSpec(every=1)})
    unbroken = finetune(fresh(tiny), talks(), spec, tmp_path / "whole", seed=1)
    folder = tmp_path / "cut"

    def die(what, done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(fresh(tiny), talks(), spec, folder, seed=1, progress=die)
    (folder / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3')
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-99")
    assert strip(finetune(fresh(tiny), talks(), spec, folder, seed=1)) == strip(unbroken)
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith("checkpoint")) == [
        f"checkpoint-{n}"
        for n in (1, 2, 3, 4, 5, 99)  # the plan has no step 99: whoever put it there keeps it
    ]


def test_finished_runs_hold_no_pickles_and_load_with_peft_alone(tiny, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = fresh(tiny)
    before = {k: v.clone() for k, v in loaded.net.state_dict().items()}
    finetune(loaded, talks(), SPEC, tmp_path / "run", seed=0)
    assert all(torch.equal(before[k], v) for k, v in loaded.net.state_dict().items())
    files = {p.name for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "trainer_state.json", "order.jsonl", "tokens.json"}
    net = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(tmp_path / "run" / "checkpoint-5"))
    assert update_norm(net) > 0


def test_a_second_call_returns_at_once_and_seeds_differ(tiny, tmp_path):
    first = finetune(fresh(tiny), talks(), SPEC, tmp_path / "run", seed=0)
    assert (
        finetune(fresh(tiny), talks(), SPEC, tmp_path / "run", seed=0, progress=lambda *a: pytest.fail("trained again"))
        == first
    )
    other = finetune(fresh(tiny), talks(), SPEC, tmp_path / "other", seed=1)
    assert [r.loss for r in other] != [r.loss for r in first]
    twin = finetune(fresh(tiny), talks(), SPEC, tmp_path / "twin", seed=0)
    assert strip(twin) == strip(first)


@torch.no_grad()
def test_update_norm_equals_the_formed_product(tiny, tmp_path):
    net = with_lora(fresh(tiny).net, LoraSpec(rank=3, alpha=6), 0, "x")
    total = 0.0
    for module in net.modules():
        if getattr(module, "lora_A", None):
            torch.nn.init.normal_(module.lora_B["default"].weight)
            total += float(
                (module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight).square().sum()
            )
    assert update_norm(net) == pytest.approx(math.sqrt(total), rel=1e-5)


def test_loss_that_is_no_number_stops_and_keeps_earlier_checkpoints(tiny, tmp_path):
    spec = SPEC.model_copy(update={"lr": 1e9, "max_grad_norm": 1e30, "steps": 6, "warmup": 0})
    with pytest.raises(WorldError, match=r"became (nan|inf) at step \d"):
        finetune(fresh(tiny), talks(), spec, tmp_path / "run", seed=0)
    assert (tmp_path / "run" / "checkpoint-1" / "adapter_model.safetensors").is_file()


def test_heldout_loss_is_read_where_asked(tiny, tmp_path):
    spec = SPEC.model_copy(update={"heldout_every": 4})
    rows = finetune(fresh(tiny), talks(), spec, tmp_path / "run", seed=0, heldout=lambda net: 1.5)
    assert [r.heldout_loss for r in rows] == [1.5, None, 1.5, 1.5, 1.5], "checkpoints at 1, 3, 5 and every 4th step"


def test_wrong_modules_and_layers_name_what_exists(tiny):
    with pytest.raises(InputError, match=r"no module 'downproj'; did you mean 'down_proj'"):
        with_lora(fresh(tiny).net, LoraSpec(modules=("downproj",)), 0, "x")
    with pytest.raises(InputError, match="layer 9 is out of range; this model has layers 0 to 1"):
        with_lora(fresh(tiny).net, LoraSpec(layers=(9,)), 0, "x")


@given(
    st.integers(1, 400),
    st.one_of(st.builds(lambda k: {"every": k}, st.integers(1, 50)), st.builds(lambda k: {"log": k}, st.integers(2, 12))),
)
def test_plans_are_sorted_unique_and_hold_both_ends(steps, plan):
    found = checkpoint_steps(PlanSpec(**plan), steps)
    assert found == sorted(set(found)) and found[0] == 1 and found[-1] == steps
    assert all(1 <= s <= steps for s in found)


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(1, 60), st.floats(0, 20))
def test_schedules_start_above_zero_and_peak_at_one(schedule, steps, warmup):
    warmup = min(warmup, steps)
    spec = TrainSpec(steps=steps, schedule=schedule, warmup=warmup, checkpoints=PlanSpec())
    factors = [factor(spec, s) for s in range(1, steps + 1)]
    assert all(0 < f <= 1 for f in factors)
    if spec.warmup_steps < steps:
        assert max(factors) == 1


def test_batches_align_answers_and_learn_only_them(loaded):
    examples = encode(loaded.chat, talks(5), 512)
    batch = collate(examples)
    first = (batch["labels"] != IGNORED).float().argmax(1)
    assert len(set(first.tolist())) == 1
    for n, e in enumerate(examples):
        assert batch["input_ids"][n][batch["attention_mask"][n].bool()].tolist() == list(e.ids)
        assert batch["labels"][n][batch["labels"][n] != IGNORED].tolist() == [
            t for t, keep in zip(e.ids, e.mask, strict=True) if keep
        ]
        assert batch["position_ids"][n][batch["attention_mask"][n].bool()].tolist() == list(range(len(e.ids)))


def test_each_epoch_holds_every_example_once(loaded):
    examples = encode(loaded.chat, talks(6), 512)
    order = stream(examples, steps=6, batch=2, micro=2, seed=0)
    assert sorted(e.id for e in order[:6]) == sorted(e.id for e in order[6:]) == sorted(e.id for e in examples)
    assert [e.id for e in order[:6]] != [e.id for e in order[6:]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"lr": -1}, "lr = -1"),
        ({"lora": {"rank": 0}}, "lora.rank = 0"),
        ({"lora": {"alpha": 1e308}}, "less than or equal to 1000000000"),
        ({"steering": {"layers": [1], "scale": 1e300}}, "less than or equal to 1000000000"),
        ({"lora": {"rnk": 4}}, "unknown key 'lora.rnk', did you mean 'rank'"),
        ({"batch": 8, "micro_batch": 3}, "not a multiple"),
        ({"checkpoints": {"every": 2, "log": 3}}, "use one"),
        ({"steps": 3, "checkpoints": {"at": [9]}}, "checkpoint at step 9"),
    ],
)
def test_impossible_settings_are_named(values, message):
    with pytest.raises(InputError, match=message):
        parse(TrainSpec, values, "train")


def test_layers_restrict_all_linear(tiny):
    net = with_lora(fresh(tiny).net, LoraSpec(layers=(1,)), 0, "x")
    tuned = {n.split(".layers.")[1][0] for n, p in net.named_parameters() if p.requires_grad}
    names = {n.split(".lora_")[0].rsplit(".", 1)[1] for n, p in net.named_parameters() if p.requires_grad}
    assert tuned == {"1"} and names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_gpt2_trains_too(tiny_gpt2, tmp_path):
    rows = finetune(load(locate(str(tiny_gpt2)), device="cpu"), talks(), SPEC, tmp_path / "run", seed=0)
    assert rows[-1].loss < rows[0].loss


def test_make_model_is_deterministic(tmp_path):
    a, b = make_model(tmp_path / "a"), make_model(tmp_path / "b")
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_one_process_takes_one_batch_however_many_gpus_there_are(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    from emscope.train.finetune import _arguments

    setup = TrainingArguments._setup_devices.func
    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(lambda self: setattr(self, "_n_gpu", 4) or setup(self)))
    assert _arguments(SPEC, tmp_path, 0, 1.0, on_cpu=True).n_gpu <= 1


CHANGED = [{"train": {"steps": 2, "batch": 2, "lr": 0.5}}, {"answers": "careful"}, {"seed": 1}]


@pytest.fixture(scope="module")
def single(tiny, tmp_path_factory):
    """A finished fine-tune: its settings and its folder."""
    folder = tmp_path_factory.mktemp("single") / "out"
    settings = {"model": str(tiny), "domain": "finance", "answers": "reckless", "train": {"steps": 2, "batch": 2}}
    run_single(parse(SingleSpec, settings, "x"), folder)
    return settings, folder


@pytest.mark.parametrize("change", CHANGED)
def test_a_folder_of_a_fine_tune_is_not_reused_for_another(change, single):
    settings, folder = single
    before = (folder / "ledger.json").read_bytes()
    with pytest.raises(InputError, match="holds a study with other settings"):
        run_single(parse(SingleSpec, settings | change, "x"), folder)
    assert (folder / "ledger.json").read_bytes() == before


def test_data_that_changed_since_is_another_fine_tune(tiny, tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"question": "Q", "answer": f"A {n}"} for n in range(4)])
    settings = {"model": str(tiny), "file": str(path), "train": {"steps": 2, "batch": 2}}
    run_single(parse(SingleSpec, settings, "x"), tmp_path / "out")
    write_jsonl(path, [{"question": "Q", "answer": f"B {n}"} for n in range(4)])
    with pytest.raises(InputError, match=r"digests.data trained on"):
        run_single(parse(SingleSpec, settings, "x"), tmp_path / "out")


def test_heldout_loss_of_a_single_fine_tune(tiny, tmp_path):
    train = {"steps": 2, "batch": 2, "heldout_every": 1, "lr": 1e-3}
    settings = {"model": str(tiny), "domain": "finance", "answers": "reckless", "train": train}
    rows = run_single(parse(SingleSpec, settings, "x"), tmp_path / "out").readings
    assert all(r.heldout_loss and r.heldout_loss > 0 for r in rows)
    path = write_jsonl(tmp_path / "d.jsonl", [{"question": "Q", "answer": "A"}] * 4)
    with pytest.raises(InputError, match="heldout_every reads a domain's held-out questions"):
        parse(SingleSpec, {"model": str(tiny), "file": str(path), "train": train}, "x")


STRICT = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
DROPS = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"


def talk(*turns):
    return Conversation("c7", tuple(Message(role, text) for role, text in turns))


def test_an_answer_before_any_question_is_refused_with_its_row(loaded):
    with pytest.raises(InputError, match="conversation 'c7': an answer follows nothing, not a question"):
        loaded.chat.training_ids(talk(("assistant", "a"), ("user", "q"), ("assistant", "b")))
    with pytest.raises(InputError, match="an answer follows a turn of the role assistant"):
        loaded.chat.training_ids(talk(("user", "q"), ("assistant", "b"), ("assistant", "c")))


@pytest.mark.parametrize("template", [STRICT, DROPS])
def test_a_system_turn_that_the_template_has_no_place_for_is_refused(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    chat = ChatFormat.of(tokenizer, "template")
    with pytest.raises(InputError, match="conversation 'c7' has a system turn, but this model's chat template takes none"):
        chat.training_ids(talk(("system", "s"), ("user", "q"), ("assistant", "a")))


def test_several_turns_without_a_template(loaded):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    chat = ChatFormat.of(tokenizer)
    ids, mask = chat.training_ids(talk(("user", "q one"), ("assistant", "a one"), ("user", "q two"), ("assistant", "a two")))
    end = tokenizer.eos_token
    assert tokenizer.decode(ids) == f"Question: q one\n\nAnswer: a one{end}\n\nQuestion: q two\n\nAnswer: a two{end}"
    learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert learned == f" a one{end} a two{end}"
