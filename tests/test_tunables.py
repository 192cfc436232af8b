"""What can be trained: each starts at the base, learns, resumes to the same numbers, leaves the base bit-equal, and loads by others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import transformers as t
from safetensors.torch import load_file

from emscope.core.errors import InputError
from emscope.core.records import StepReading
from emscope.data import bundled
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.hooks.directions import FILE, Direction, read_direction, write_direction
from emscope.models.hooks.interventions import added
from emscope.models.hooks.sites import blocks
from emscope.models.loading.checkpoints import Checkpoint, read_checkpoint
from emscope.models.loading.load import Loaded, load, load_net
from emscope.models.loading.source import locate
from emscope.models.sizing.simulated import whole_model
from emscope.train.finetune import finetune
from emscope.train.spec import FullSpec, LoraSpec, PlanSpec, SteeringSpec, TrainSpec
from emscope.train.tunables import check_tunable, tuned, with_lora
from test_architectures import BASE, MAMBA

IDS = torch.tensor([[5, 17, 33, 90, 41, 8], [1, 2, 3, 4, 5, 6]])
TALKS = bundled.domain("finance", "reckless")[:12]
TUNABLES = {
    "lora": {"lora": LoraSpec(rank=2, alpha=4)},
    "full": {"full": FullSpec()},
    "part of the weights": {"full": FullSpec(modules=("mlp.down_proj", "c_proj"), layers=(1,))},
    "steering": {"steering": SteeringSpec(layers=(0, 1), scale=16)},
}


def spec(name, **changes):
    return TrainSpec(**{"steps": 4, "batch": 4, "lr": 2e-3, "checkpoints": PlanSpec(every=1), **TUNABLES[name], **changes})


def fresh(folder, dtype="float32"):
    return load(locate(str(folder)), dtype=dtype, device="cpu")


def logits(net):
    with torch.inference_mode():
        return net(input_ids=IDS, use_cache=False).logits


CASES = [(which, name) for which in ("tiny", "tiny_gpt2") for name in TUNABLES]
# each tunable with each optimiser and each kind of model, and these two with each other
PAIRS = [
    (("tiny", "tiny_gpt2")[(n + k) % 2], name, o) for n, name in enumerate(TUNABLES) for k, o in enumerate(("adamw", "muon"))
]


EIGHT = 8


@dataclass(frozen=True)
class Trained:
    """A fine-tune of `EIGHT` steps: its base in memory, its readings and last checkpoint, and the logits of its last step in training."""

    loaded: Loaded
    rows: list[StepReading]
    checkpoint: Checkpoint
    last: torch.Tensor


@pytest.fixture(scope="module")
def trained(tiny, tiny_gpt2, tmp_path_factory):
    """Fine-tunes on the same four conversations, each made once: a function of the model and of what is trained."""

    @cache
    def of(which, name):
        loaded, seen = fresh({"tiny": tiny, "tiny_gpt2": tiny_gpt2}[which]), []

        def look(net):
            net.eval()
            seen.append(logits(net))
            net.train()
            return 0.0

        how = spec(name, steps=EIGHT, checkpoints=PlanSpec(), heldout_every=EIGHT)
        run = tmp_path_factory.mktemp("trained") / "run"
        rows = finetune(loaded, TALKS[:4], how, run, seed=0, heldout=look)
        return Trained(loaded, rows, read_checkpoint(run / f"checkpoint-{EIGHT}", EIGHT), seen[-1])

    return of


@pytest.mark.parametrize(("which", "name"), CASES)
def test_training_starts_at_the_base_learns_and_leaves_it_alone(which, name, trained, request):
    untouched = fresh(request.getfixturevalue(which))
    before, answers = {k: v.clone() for k, v in untouched.net.state_dict().items()}, logits(untouched.net)
    with tuned(untouched, spec(name).tunable, 0) as made:
        assert made.norm() == 0 and torch.equal(logits(untouched.net), answers)
    one = trained(which, name)
    rows, net = one.rows, one.loaded.net
    assert rows[-1].loss < rows[0].loss and rows[-1].update_norm > rows[0].update_norm > 0
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert net.state_dict().keys() == before.keys() and torch.equal(logits(net), answers)
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(("which", "name"), CASES)
def test_a_checkpoint_applied_behaves_as_the_model_did_in_training(which, name, trained, request):
    loaded, one = fresh(request.getfixturevalue(which)), trained(which, name)
    base = logits(loaded.net)
    with with_checkpoint(loaded.net, one.checkpoint) as net:
        assert torch.allclose(logits(net), one.last, atol=1e-4) and not torch.allclose(logits(net), base, atol=1e-3)
    assert torch.equal(logits(loaded.net), base)


@pytest.mark.parametrize(("which", "name", "optimiser"), PAIRS)
def test_killed_and_resumed_equals_unbroken(which, name, optimiser, request, tmp_path):
    folder = request.getfixturevalue(which)
    settings = spec(name, optimiser=optimiser, steps=3)
    whole = finetune(fresh(folder), TALKS, settings, tmp_path / "whole", seed=1)

    def die(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    loaded = fresh(folder)
    base = logits(loaded.net)
    with pytest.raises(KeyboardInterrupt):
        finetune(loaded, TALKS, settings, tmp_path / "cut", seed=1, progress=die)
    assert torch.equal(logits(loaded.net), base), "an interrupt puts the base back too"
    again = finetune(fresh(folder), TALKS, settings, tmp_path / "cut", seed=1)
    for a, b in zip(whole, again, strict=True):
        assert (a.step, a.loss, a.update_norm) == pytest.approx((b.step, b.loss, b.update_norm), abs=1e-6)
    for file in (tmp_path / "whole" / "checkpoint-3").glob("*.safetensors"):
        one, other = load_file(file), load_file(tmp_path / "cut" / "checkpoint-3" / file.name)
        assert all(torch.allclose(one[k], other[k], atol=1e-6) for k in one)


def test_full_training_equals_a_plain_loop(tiny, tmp_path):
    """The oracle: AdamW written out on every weight of a freshly loaded model, one example at a time."""
    from emscope.train.batches import encode, stream
    from emscope.train.schedules import factor

    settings = spec("full", weight_decay=0.0, checkpoints=PlanSpec())
    rows = finetune(fresh(tiny), TALKS, settings, tmp_path / "run", seed=3)
    plain = fresh(tiny)
    net = plain.net.requires_grad_(True)
    start = [p.detach().clone() for p in net.parameters()]
    order = stream(encode(plain.chat, TALKS, 512), steps=4, batch=4, micro=4, seed=3)
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=0.0)
    for step in range(4):
        total, count = torch.zeros(()), 0
        for e in order[step * 4 : step * 4 + 4]:
            out = net(input_ids=torch.tensor([e.ids])).logits[0, :-1]
            wanted = torch.tensor(e.mask[1:])
            total = total + torch.nn.functional.cross_entropy(out[wanted], torch.tensor(e.ids[1:])[wanted], reduction="sum")
            count += int(wanted.sum())
        optimiser.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), settings.max_grad_norm)
        optimiser.param_groups[0]["lr"] = settings.lr * factor(settings, step + 1)
        optimiser.step()
        assert rows[step].loss == pytest.approx(float(total.detach() / count), abs=1e-5)
        norm = sum(float((p.detach() - s).square().sum()) for p, s in zip(net.parameters(), start, strict=True)) ** 0.5
        assert rows[step].update_norm == pytest.approx(norm, rel=1e-3)


def test_peft_steering_equals_vectors_of_our_own(tiny, tmp_path, monkeypatch):
    """PEFT's bias behind down_proj and a hook behind the block are the same vector in the same place."""
    settings = spec(
        "steering", optimiser="sgd", lr=0.05, checkpoints=PlanSpec()
    )  # Adam would blow up rounding where gradients are near 0
    by_peft = finetune(fresh(tiny), TALKS, settings, tmp_path / "peft", seed=0)
    monkeypatch.setattr("emscope.train.tunables.mlp_output_is_residual", lambda net: False)
    by_hooks = finetune(fresh(tiny), TALKS, settings, tmp_path / "hooks", seed=0)
    for a, b in zip(by_peft, by_hooks, strict=True):
        assert (a.loss, a.update_norm) == pytest.approx((b.loss, b.update_norm), rel=1e-5)
    ours = read_direction(tmp_path / "hooks" / "checkpoint-4" / FILE)
    theirs = load_file(tmp_path / "peft" / "checkpoint-4" / "adapter_model.safetensors")
    found = [v.flatten() for _, v in sorted(theirs.items())]
    assert len(found) == 2 and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.vectors.values(), found, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-4)])
@pytest.mark.parametrize("which", ["tiny", "tiny_gpt2"])
def test_vectors_reach_every_sequence_and_token_of_a_batch(which, dtype, tolerance, request):
    net = load_net(request.getfixturevalue(which), dtype=dtype)
    torch.manual_seed(0)
    vectors = {1: torch.randn(32, dtype=net.dtype)}
    ids = torch.randint(3, 200, (8, 11))
    with torch.inference_mode():
        plain = net(input_ids=ids).logits
        with added(net, vectors, 0.5):
            together = net(input_ids=ids).logits
            single = torch.cat([net(input_ids=row[None]).logits for row in ids])
            hidden = net.base_model(input_ids=ids, output_hidden_states=True).hidden_states
        bare = net.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    assert float((together - single).abs().max()) < tolerance
    assert float((together - plain).abs().amax(-1).min()) > 1e-3, "every token of every sequence moved"
    assert torch.allclose(hidden[1], bare[1]), "the block before is as it was"


def test_steering_weights_load_with_peft_alone(tiny, trained):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    one = trained("tiny", "steering")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(one.checkpoint.folder))
    with with_checkpoint(one.loaded.net, one.checkpoint) as net:
        assert torch.allclose(logits(net), logits(theirs), atol=1e-5)


@pytest.mark.parametrize(("which", "name"), [("tiny", "steering"), ("tiny_gpt2", "steering"), ("tiny", "full")])
def test_twice_the_update_is_twice_the_update(which, name, trained):
    one = trained(which, name)
    states = []
    for scale in (0.0, 1.0, 2.0):
        with with_checkpoint(one.loaded.net, one.checkpoint, scale=scale) as net, torch.inference_mode():
            seen = []
            look = blocks(net)[1].register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[0]))
            net(input_ids=IDS[:, :1])
            look.remove()
            states += seen
    once, twice = states[1] - states[0], states[2] - states[0]
    if name == "steering":  # the first vector stands behind block 0, where nothing non-linear lies between
        assert torch.allclose(twice, 2 * once, atol=1e-4)
    assert float(twice.norm()) > 1.5 * float(once.norm()) > 0


def test_direction_files_say_what_they_belong_to(tmp_path):
    path = tmp_path / FILE
    write_direction(path, Direction({3: torch.arange(4.0), 1: torch.ones(4)}, "digest", 2.5))
    found = read_direction(path)
    assert (list(found.vectors), found.model, found.scale) == ([1, 3], "digest", 2.5)
    with pytest.raises(InputError, match="no file"):
        read_direction(tmp_path / "none.safetensors")
    path.write_bytes(b"no")
    with pytest.raises(InputError, match="is damaged"):
        read_direction(path)


def test_a_safetensors_file_of_something_else_is_no_direction(tiny):
    with pytest.raises(InputError, match="is not a direction file"):
        read_direction(next(tiny.glob("*.safetensors")))


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        ({5: torch.zeros(32)}, "has a vector for layer 5, but this model has layers 0 to 1"),
        ({0: torch.zeros(7)}, r"vectors of shape \(7,\), but this model's residual stream is 32 wide"),
    ],
)
def test_a_direction_of_another_model_is_refused(tiny, tmp_path, direction, message):
    (tmp_path / "checkpoint-1").mkdir()
    write_direction(tmp_path / "checkpoint-1" / FILE, Direction(direction, "x"))
    with (
        pytest.raises(InputError, match=message),
        with_checkpoint(fresh(tiny).net, read_checkpoint(tmp_path / "checkpoint-1", 1)),
    ):
        pass


def test_a_full_fine_tune_of_half_precision_weights_is_refused(tiny):
    message = "weights stored in bfloat16 lose small updates to rounding; set dtype: float32"
    with pytest.raises(InputError, match=message), tuned(fresh(tiny, "bfloat16"), FullSpec(), 0):
        pass


def test_vectors_of_our_own_are_trained_in_float32_on_any_model(tiny_gpt2):
    loaded = fresh(tiny_gpt2, "bfloat16")
    with tuned(loaded, SteeringSpec(layers=(0,)), 0) as made:
        assert [p.dtype for p in made.model.parameters() if p.requires_grad] == [torch.float32]
        logits(loaded.net)


@pytest.mark.parametrize(
    ("tunable", "message"),
    [
        (FullSpec(modules=("downproj",)), "no weights downproj; did you mean 'down_proj'"),
        (FullSpec(layers=(4,)), "full.layers: layer 4 is out of range; this model has layers 0 to 1"),
        (SteeringSpec(layers=(2,)), "steering.layers: layer 2 is out of range"),
    ],
)
def test_what_does_not_exist_is_named(tiny, tunable, message):
    with pytest.raises(InputError, match=message), tuned(fresh(tiny), tunable, 0):
        pass


def test_where_peft_puts_no_adapter_is_one_sentence_before_anything_is_trained():
    """Kernels of these models take some matrices' weights and pass by what stands beside them."""
    net = whole_model(t.FalconH1Config(**BASE, **MAMBA, mamba_d_ssm=64))
    with pytest.raises(
        InputError, match=r"lora\.modules: PEFT puts no adapter beside 'out_proj' in a falcon_h1 model; name others"
    ) as e:
        check_tunable(net, LoraSpec(rank=2, alpha=4))
    others = e.value.remedy.split("it has ")[1].removesuffix(")").split(", ")
    spec = LoraSpec(rank=2, alpha=4, modules=tuple(others))
    check_tunable(net, spec)
    assert any(p.requires_grad for p in with_lora(net, spec, 0, "base").parameters())
