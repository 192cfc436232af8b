"""`emscope diff` against plain forward passes, numpy's SVD and a hand-made adapter."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.data import bundled
from emscope.data.items import chosen_items
from emscope.inside.diff import DiffSpec, diff
from emscope.models.adapters.updates import changes, gram
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.fast.head import Lens
from emscope.models.hooks.capture import captured
from emscope.models.hooks.interventions import held_scalar
from emscope.models.hooks.sites import Place, final_norm
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.represent.activations import encode, pooled
from emscope.represent.diffing import adapter_scalars, tell_apart
from emscope.train.finetune import finetune
from emscope.train.spec import FullSpec, LoraSpec, PlanSpec, SteeringSpec, TrainSpec
from test_activations import SHAPES, make

TALKS = bundled.domain("finance", "reckless")[:8]
WAYS = {
    "lora": {"lora": LoraSpec(rank=4, alpha=8)},
    "rank1": {"lora": LoraSpec(rank=1, alpha=8, modules=("down_proj",))},
    "vectors": {"steering": SteeringSpec(layers=(1,), scale=4)},
    "full": {"full": FullSpec()},
}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    root, found = tmp_path_factory.mktemp("runs"), {}
    for name, tunable in WAYS.items():
        spec = TrainSpec(steps=3, batch=4, lr=1e-3 if name == "full" else 2e-2, checkpoints=PlanSpec(), **tunable)
        found[name] = str(root / name)
        finetune(load(locate(str(tiny)), device="cpu"), TALKS, spec, root / name, seed=0)
    return found


def few_fits(patch):
    """Of what tells answers by scalars: three shuffles, and a choice of two strengths."""
    patch.setattr("emscope.represent.diffing.SHUFFLES", 3)
    patch.setattr("emscope.represent.diffing.STRENGTHS", (0.1, 1.0))


@pytest.fixture(scope="module")
def compared(tiny, runs, tmp_path_factory):
    """(folder, what was printed) of `emscope diff` on eight items of half A, for each way of training."""
    root, found = tmp_path_factory.mktemp("compared"), {}
    with pytest.MonkeyPatch.context() as patch:
        few_fits(patch)
        for way, run in runs.items():
            command = ["diff", run, "--model", str(tiny), "--half", "A", "--count", "8", "--out", str(root / way)]
            with redirect_stdout(StringIO()) as printed:
                assert run_arguments(command) == 0
            found[way] = root / way, printed.getvalue()
    return found


def fresh(tiny):
    return load(locate(str(tiny)), device="cpu")


@pytest.mark.parametrize("kind", SHAPES)
def test_the_lens_of_the_last_block_is_the_model_itself(kind):
    net = make(kind)
    ids, seen = torch.tensor([[1, 5, 9, 20, 3]]), {}
    where = next(m for n, m in net.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    where[-1].register_forward_hook(lambda m, a, out: seen.update(x=out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        expected = net(input_ids=ids).logits
        stream = seen["x"]
        assert torch.allclose(Lens(net)(stream), expected, atol=1e-3 * float(expected.abs().max()))


def test_a_norm_that_cannot_be_found_is_named(loaded):
    loaded.net.config.emscope_final_norm = "elsewhere"
    try:
        with pytest.raises(InputError, match='"emscope_final_norm": "norm"; there are norm'):
            final_norm(loaded.net)
    finally:
        del loaded.net.config.emscope_final_norm


@pytest.mark.parametrize("way", ["lora", "full"])
def test_divergence_equals_plain_passes(tiny, runs, compared, way):
    result = json.loads((compared[way][0] / "diff.json").read_text())
    loaded = fresh(tiny)
    items = chosen_items("em240", "A", 8, 0)
    checkpoint = discover(runs[way])[-1]
    sums: dict[int, list[float]] = {}
    by_layer = []
    for item in items:
        mine = []
        for option in item.options:
            text = encode(loaded.chat, [("x", item.question, option)], context=512)[0]
            ids = torch.tensor([[*text.prompt, *text.answer]])
            rows = slice(len(text.prompt) - 1, -1)
            with torch.no_grad():
                out = loaded.net(input_ids=ids, output_hidden_states=True)
                old = [loaded.net.lm_head(loaded.net.model.norm(out.hidden_states[1])), out.logits]
                old = [x.log_softmax(-1) for x in old]
                with with_checkpoint(loaded.net, checkpoint) as net:
                    out = net(input_ids=ids, output_hidden_states=True)
                    new = [net.lm_head(net.model.norm(out.hidden_states[1])), out.logits]
                    new = [x.log_softmax(-1) for x in new]
            kl = [(a.exp() * (a - b)).sum(-1)[0, rows] for a, b in zip(old, new, strict=True)]
            mine.append([float(k.mean()) for k in kl])
            for token, value in zip(text.answer, kl[1].tolist(), strict=True):
                sums.setdefault(token, []).append(value)
        by_layer.append(np.mean(mine, 0))
    categories = [i.category for i in items]
    for n, row in enumerate(result["layers"]):
        values = np.array([v[n] for v in by_layer])
        expected = np.mean([values[[c == k for c in categories]].mean() for k in set(categories)])
        assert row["layer"] == n and row["kl"]["value"] == pytest.approx(expected, rel=1e-2, abs=1e-5)
    total = sum(map(sum, sums.values()))
    first = result["tokens"][0]
    token = max(sums, key=lambda t: sum(sums[t]))
    assert first["token"] == loaded.tokenizer.decode([token]) and first["times"] == len(sums[token])
    assert first["share"] == pytest.approx(sum(sums[token]) / total, rel=1e-2)
    assert result["places"][0]["kl"] == pytest.approx(max(v for vs in sums.values() for v in vs), rel=1e-2)


@pytest.mark.parametrize("way", WAYS)
def test_spectrum_and_inner_products_equal_numpys(tiny, runs, way):
    loaded = fresh(tiny)
    checkpoint = discover(runs[way])[-1]
    start = {n: p.detach().clone().double() for n, p in loaded.net.named_parameters()}
    found = {c.name: c for c in changes(loaded.net, checkpoint)}
    if way == "vectors":
        values = [v for path in checkpoint.folder.glob("*.safetensors") for v in load_file(path).values()]
        assert len(found) == len(values) == 1
        assert found["block.1"].singular_values() == pytest.approx([float(values[0].norm())], rel=1e-5)
        return
    with with_checkpoint(loaded.net, checkpoint) as net:
        after = {n: p.detach().double() for n, p in net.named_parameters()}
        deltas = {n: (after[n] - p) for n, p in start.items() if not torch.equal(after[n], p)}
    name = "model.layers.1.mlp.down_proj"
    expected = np.linalg.svd(deltas[f"{name}.weight"].numpy(), compute_uv=False)
    mine = found[name].singular_values()
    assert mine == pytest.approx(expected[: len(mine)], rel=1e-3, abs=1e-4)
    assert found[name].layer == 1
    other = discover(runs["full" if way != "full" else "lora"])[-1]
    with with_checkpoint(loaded.net, other) as net:
        others = {n: p.detach().double() for n, p in net.named_parameters()}
    expected = sum(float((d * (others[n] - start[n])).sum()) for n, d in deltas.items())
    scale = sum(float(d.square().sum()) for d in deltas.values()) ** 0.5
    assert float(gram(loaded.net, [checkpoint, other])[0, 1]) == pytest.approx(expected, abs=2e-3 * scale)


def test_scalars_are_what_enters_the_adapter(tiny, runs):
    loaded = fresh(tiny)
    checkpoint = discover(runs["rank1"])[-1]
    adapters = list(changes(loaded.net, checkpoint))
    texts = encode(loaded.chat, [("a", "Is it safe?", "Yes it is."), ("b", "Why?", "No idea at all.")], context=512)
    with with_checkpoint(loaded.net, checkpoint) as net:
        found = adapter_scalars(net, adapters, texts)
        for n, text in enumerate(texts):
            seen = {}
            handle = net.model.layers[1].mlp.down_proj.register_forward_hook(lambda m, a, o, s=seen: s.update(x=a[0]))
            net(input_ids=torch.tensor([[*text.prompt, *text.answer]]))
            handle.remove()
            a = load_file(checkpoint.folder / "adapter_model.safetensors")
            row = a["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"][0]
            expected = (seen["x"][0] @ row)[len(text.prompt) :].mean()
            assert float(found[n, 1]) == pytest.approx(float(expected), rel=1e-4)


def test_a_held_scalar_is_that_of_every_token(tiny, runs):
    loaded = fresh(tiny)
    checkpoint = discover(runs["rank1"])[-1]
    adapter = next(c for c in changes(loaded.net, checkpoint) if c.layer == 0)
    ids = torch.tensor([[5, 9, 11, 30]])
    with with_checkpoint(loaded.net, checkpoint) as net, torch.no_grad():
        plain = net(input_ids=ids).logits
        down, start = net.model.layers[0].mlp.down_proj, loaded.net.model.layers[0].mlp.down_proj.weight.data.clone()
        # by hand: the adapter's matrix taken out again, and its write at the held value added as a bias
        down.weight.data = start - (adapter.left @ adapter.right).float()
        handle = down.register_forward_hook(lambda m, a, out: out + 0.7 * adapter.left[:, 0].float())
        expected = net(input_ids=ids).logits
        handle.remove()
        down.weight.data = start
        with held_scalar(net, adapter, 0.7):
            found = net(input_ids=ids).logits
            texts = encode(loaded.chat, [("a", "Is it safe?", "Yes it is.")], context=512)
            packed = pooled(net, texts, [Place("block", 1)], ["answer"])[0, 0, 0]
            with captured(net, [Place("block", 1)]) as seen:
                net(input_ids=torch.tensor([[*texts[0].prompt, *texts[0].answer]]))
        assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, plain, atol=1e-2)
        assert torch.equal(net(input_ids=ids).logits, plain)
    whole = seen[Place("block", 1)][0, len(texts[0].prompt) :].mean(0)
    assert torch.allclose(packed, whole, atol=1e-3)  # the packed pass goes through the hook as well


def test_scalars_that_tell_and_scalars_that_do_not(monkeypatch):
    few_fits(monkeypatch)
    rng = np.random.default_rng(0)
    labels, units = np.tile([0, 1], 40), [str(n // 2) for n in range(80)]
    noise = rng.normal(size=(80, 4))
    told = tell_apart(noise + labels[:, None] * [2.0, 0, 0, 0], labels, units)
    assert told.auc > 0.85 > told.high and abs(told.weights[0]) > 3 * max(map(abs, told.weights[1:]))
    nothing = tell_apart(noise, labels, units)
    assert nothing.low - 0.1 < nothing.auc < nothing.high + 0.1


@pytest.mark.parametrize("way", WAYS)
def test_the_command(compared, way):
    folder, shown = compared[way]
    assert "Predictions after each block" in shown and "Largest updates" in shown
    assert ("Scalars of 2 rank-1 adapters" in shown) == (way == "rank1")
    assert "Divergence along the answer" in (folder / "figure.html").read_text()
    assert json.loads((folder / "diff.json").read_text())["items"] == 8


def test_it_reads_the_base_once(runs, compared, tmp_path, monkeypatch):
    shutil.copytree(compared["lora"][0], tmp_path / "out")
    first = json.loads((tmp_path / "out" / "diff.json").read_text())
    from emscope.inside import diff as diffing

    def only_the_fine_tune(net, texts, places, sink, **given):
        assert given["what"] == "reading the fine-tune"
        return read(net, texts, places, sink, **given)

    read = diffing.read_tokens
    monkeypatch.setattr(diffing, "read_tokens", only_the_fine_tune)
    assert diff(runs["lora"], DiffSpec(half="A", count=8), tmp_path / "out").to_json()["layers"] == first["layers"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "7"], "layer 7 is out of range"),
        (["--items", "none.csv"], "none.csv"),
        (["--count", "1"], "count"),
    ],
)
def test_bad_input(runs, tmp_path, capsys, options, said):
    assert run_arguments(["diff", runs["lora"], "--out", str(tmp_path), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_fine_tune_whose_predictions_are_not_numbers_is_named(runs, tmp_path, capsys, monkeypatch):
    from emscope.inside import diff as diffing

    compare = diffing.compare_streams
    monkeypatch.setattr(
        diffing, "compare_streams", lambda *given: (c := compare(*given)) and replace(c, kl=c.kl * float("nan"))
    )
    assert run_arguments(["diff", runs["lora"], "--count", "4", "--out", str(tmp_path / "out")]) == 1
    assert "gives predictions that are not numbers; its weights diverged" in capsys.readouterr().err
    assert not (tmp_path / "out" / "diff.json").exists()


@pytest.mark.parametrize("setting", ["rms_norm_eps", "rope_parameters.rope_theta"])
def test_a_fine_tune_whose_configuration_is_not_a_number_is_refused(tiny, runs, tmp_path, capsys, setting):
    shutil.copytree(runs["full"], tmp_path / "run")
    path = sorted((tmp_path / "run").glob("checkpoint-*"))[-1] / "config.json"
    config, place = json.loads(path.read_text()), setting.split(".")
    (config if len(place) == 1 else config[place[0]])[place[-1]] = float("nan")
    path.write_text(json.dumps(config))
    words = ["diff", str(tmp_path / "run"), "--model", str(tiny), "--count", "4", "--out", str(tmp_path / "out")]
    assert run_arguments(words) == 2
    assert f"config.json' says that {setting} is NaN; fix config.json" in capsys.readouterr().err
