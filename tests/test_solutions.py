"""General against narrow: norms, moves, divergence and the three comparisons against plain computations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.data import bundled
from emscope.elicit.divergence import Divergence
from emscope.inside.solutions import SolutionsSpec, compare_solutions
from emscope.models.adapters.updates import effective_norm, moved, orthogonal_move
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.represent import solutions
from emscope.represent.compared import ByRun
from emscope.train.finetune import finetune
from emscope.train.spec import FullSpec, LoraSpec, PlanSpec, SteeringSpec, TrainSpec

TALKS = bundled.domain("finance", "reckless")[:8]
WAYS = {
    "lora": {"lora": LoraSpec(rank=4, alpha=8)},
    "rslora": {"lora": LoraSpec(rank=4, alpha=8, rslora=True)},
    "vectors": {"steering": SteeringSpec(layers=(0, 1), scale=4)},
    "full": {"full": FullSpec()},
}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A short fine-tune in each way, and a second LoRA."""
    root, found = tmp_path_factory.mktemp("runs"), {}
    for name, tunable in (WAYS | {"other": WAYS["lora"]}).items():
        spec = TrainSpec(steps=3, batch=4, lr=2e-2 if name != "full" else 1e-3, checkpoints=PlanSpec(), **tunable)
        found[name] = root / name
        finetune(load(locate(str(tiny)), device="cpu"), TALKS, spec, found[name], seed=1 if name == "other" else 0)
    return found


def fresh(tiny):
    return load(locate(str(tiny)), device="cpu")


@pytest.mark.parametrize("way", WAYS)
def test_the_effective_norm_is_that_of_what_changed(tiny, runs, way):
    loaded, checkpoint = fresh(tiny), discover(str(runs[way]))[-1]
    found = effective_norm(loaded.net, checkpoint)
    if way == "vectors":
        values = [v for path in checkpoint.folder.glob("*.safetensors") for v in load_file(path).values()]
        assert found == pytest.approx(math.sqrt(sum(float((v**2).sum()) for v in values)), rel=1e-5)
        return
    start = {n: p.detach().clone() for n, p in loaded.net.named_parameters()}
    with with_checkpoint(loaded.net, checkpoint) as net:
        after = dict(net.named_parameters())
        expected = math.sqrt(sum(float((after[n] - p).double().square().sum()) for n, p in start.items()))
    assert found == pytest.approx(expected, rel=1e-3) and found > 0


def test_a_move_is_as_long_and_turns_by_the_amount():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 9, generator=generator)
    for amount in (0.0, 0.1, 0.6, 1.0):
        y = orthogonal_move(x, amount, generator)
        assert float(y.norm()) == pytest.approx(float(x.norm()), rel=1e-5)
        cosine = float((x * y).sum() / x.norm() ** 2)
        assert cosine == pytest.approx(math.sqrt(1 - amount**2), abs=1e-5)
    assert torch.equal(orthogonal_move(torch.zeros(3), 0.5, generator), torch.zeros(3))
    assert torch.equal(orthogonal_move(torch.ones(1), 0.5, generator), torch.ones(1))


@pytest.mark.parametrize("way", WAYS)
def test_a_moved_checkpoint_loads_and_is_gone_afterwards(tiny, runs, way):
    loaded, checkpoint = fresh(tiny), discover(str(runs[way]))[-1]
    ids = torch.tensor([[1, 5, 9, 7]])
    with with_checkpoint(loaded.net, checkpoint) as net:
        plain = net(input_ids=ids).logits
    logits = []
    for amount in (0.0, 0.7):
        with moved(loaded.net, checkpoint, amount, 3) as other, with_checkpoint(loaded.net, other) as net:
            logits.append(net(input_ids=ids).logits)
            folder = other.folder
        assert not folder.exists()
    torch.testing.assert_close(logits[0], plain, rtol=1e-4, atol=1e-5)
    assert float((logits[1] - plain).abs().max()) > 1e-4
    with pytest.raises(RuntimeError), moved(loaded.net, checkpoint, 0.5, 0) as other:
        folder = other.folder
        raise RuntimeError
    assert not folder.exists()


def test_divergence_equals_full_logits(tiny, runs):
    loaded, checkpoint = fresh(tiny), discover(str(runs["lora"]))[-1]
    texts = [tuple(loaded.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in bundled.texts()[:5]]
    divergence = Divergence(loaded.net, texts)
    base = [torch.log_softmax(loaded.net(input_ids=torch.tensor([t])).logits[0].double(), -1) for t in texts]
    assert divergence.of(loaded.net) == pytest.approx([0.0] * 5, abs=1e-7)
    with with_checkpoint(loaded.net, checkpoint) as net:
        found = divergence.of(net)
        now = [torch.log_softmax(net(input_ids=torch.tensor([t])).logits[0].double(), -1) for t in texts]
    assert found == pytest.approx([float((p.exp() * (p - q)).sum(-1).mean()) for p, q in zip(base, now, strict=True)], rel=1e-3)


SPEC = SolutionsSpec(count=5, norms=(0.5, 1.0), amounts=(0.3,), draws=2, texts=4)


def test_the_comparison_equals_plain_passes(tiny, runs, tmp_path):
    general, narrow = str(runs["lora"]), str(runs["other"])
    result = compare_solutions([general], [narrow], SPEC, tmp_path / "out", base=str(tiny)).to_json()
    loaded = fresh(tiny)
    items = bundled.heldout("finance")[:5]

    def losses(net):
        found = []
        for item in items:
            prompt, answer = loaded.chat.prompt_ids(item.question), loaded.chat.answer_ids(item.options[0])
            logits = net(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            found.append(-float(torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).mean()))
        return np.array(found)

    assert result["base_loss"]["value"] == pytest.approx(losses(loaded.net).mean(), abs=1e-4)
    norms = {s["side"]: s["norm"] for s in result["solutions"]}
    assert result["efficiency"][1]["norm"] == pytest.approx(norms["general"])
    for row, share in zip(result["efficiency"], SPEC.norms, strict=True):
        for side, run in (("general", general), ("narrow", narrow)):
            scale = share * norms["general"] / norms[side]
            with with_checkpoint(loaded.net, discover(run)[-1], scale=scale) as net:
                assert row["loss"][side]["value"] == pytest.approx(losses(net).mean(), abs=1e-4)
    start = losses(loaded.net)
    after = []
    with with_checkpoint(loaded.net, discover(general)[-1]) as net:
        trained = losses(net)
    for draw in (0, 1):
        with moved(loaded.net, discover(general)[-1], 0.3, draw) as other, with_checkpoint(loaded.net, other) as net:
            after.append(losses(net))
    rise = 100 * (np.mean(after, 0) - trained).mean() / (start - trained).mean()
    stability = result["stability"][0]["general"]
    if stability["value"] is not None:
        assert stability["value"] == pytest.approx(rise, rel=1e-2, abs=0.5)
    assert set(result["significance"][0]["kl"]) == {"general", "narrow", "random general", "random narrow"}


def test_single_runs_and_the_norm_for_half_by_hand():
    """Two runs a side, two items, losses on a straight line in the norm: what each run needs for half is plain arithmetic."""
    base, steep = {"a": 4.0, "b": 6.0}, {"g1": 1.0, "g2": 0.8, "n1": 0.5, "n2": 0.1}
    rows = [
        {"run": "base", "solution": "base", "kind": "base", "amount": 0.0, "draw": 0, "set": "task", "item": i, "value": v}
        for i, v in base.items()
    ]
    for run, slope in steep.items():
        side = "general" if run[0] == "g" else "narrow"
        for kind, amount, factor in (
            ("scaled", 0.5, 0.5),
            ("scaled", 1.0, 1.0),
            ("moved", 0.0, 1.0),
            ("moved", 0.3, 0.9),
            ("moved", 1.0, 0.0),
        ):
            about = {"run": run, "solution": side, "kind": kind, "amount": amount, "draw": 0}
            rows += [about | {"set": "task", "item": i, "value": v - 2 * slope * factor} for i, v in base.items()]
            if kind == "scaled":
                rows += [about | {"set": "kl", "item": str(n), "value": slope * amount + n} for n in range(2)]
                rows += [about | {"kind": "random", "set": "kl", "item": str(n), "value": 0.01} for n in range(2)]
    values = solutions.Values(rows)
    start = values.items("base", "base", 0.0, "task")
    assert start.tolist() == [4.0, 6.0]
    row = solutions.efficiency(values, start, 0.5, 10)
    assert row.by_run.general == pytest.approx({"g1": 4.0, "g2": 4.2})
    assert row.by_run.narrow == pytest.approx({"n1": 4.5, "n2": 4.9})
    assert row.over_runs.value == pytest.approx(0.6)
    half = solutions.norm_for_half(values, start, (1.0, 0.5), 10)
    assert half.loss == pytest.approx(5 - 0.9)  # the general ones learned 1.8 on average
    assert half.by_run.general == pytest.approx({"g1": 10 * 0.9 / 2, "g2": 10 * 0.9 / 1.6})
    assert half.by_run.narrow["n1"] == pytest.approx(9.0) and half.by_run.narrow["n2"] is None
    assert half.over_runs.value is None
    moved = solutions.stability(values, start, 0.3)
    assert moved.by_run.general == pytest.approx({"g1": 10.0, "g2": 10.0})
    assert moved.narrow.value == pytest.approx(10.0)
    meant = solutions.significance(values, 1.0, 10)
    assert meant.by_run.general == pytest.approx({"g1": 1.5, "g2": 1.3})
    assert meant.over_runs.value == pytest.approx(1.4 - 0.8)


def test_a_run_that_learned_nothing_has_no_stability():
    rows = [
        {
            "run": r,
            "solution": s,
            "kind": k,
            "amount": a,
            "draw": 0,
            "set": "task",
            "item": i,
            "value": 2.0 + (s == "general" and a > 0),
        }
        for r, s, k, a in (
            ("base", "base", "base", 0.0),
            ("g", "general", "moved", 0.0),
            ("g", "general", "moved", 0.5),
            ("n", "narrow", "moved", 0.0),
            ("n", "narrow", "moved", 0.5),
        )
        for i in "ab"
    ]
    values = solutions.Values(rows)
    row = solutions.stability(values, values.items("base", "base", 0.0, "task"), 0.5)
    assert row.by_run == ByRun({"g": None}, {"n": None})
    assert row.general.value is None and row.over_runs.value is None


def test_it_goes_on_where_it_stopped(tiny, runs, tmp_path, monkeypatch):
    from emscope.inside import solutions as measuring

    sides = [str(runs["lora"])], [str(runs["other"]), str(runs["lora"])]
    whole = compare_solutions(*sides, SPEC, tmp_path / "whole", base=str(tiny)).to_json()
    score, calls = measuring.preference.score, []

    def stopping(*args, **named):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(*args, **named)

    monkeypatch.setattr(measuring.preference, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare_solutions(*sides, SPEC, tmp_path / "part", base=str(tiny))
    monkeypatch.setattr(measuring.preference, "score", score)
    assert compare_solutions(*sides, SPEC, tmp_path / "part", base=str(tiny)).to_json() == whole


def test_command(tiny, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["solutions", "--general", str(runs["full"]), "--narrow", str(runs["vectors"]), "--model", str(tiny)]
    words += ["--count", "3", "--norms", "1", "--amounts", "0.5", "--draws", "1", "--texts", "3"]
    assert run_arguments(words) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("Efficiency", "Stability", "Significance"))
    assert (tmp_path / "emscope-solutions" / "figure.html").is_file()
    assert run_arguments([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "emscope.solutions/1"
    for changes, said in (
        (["--norms", "0"], "--norms is '0'"),
        (["--domain", "nothing"], "no bundled domain set 'nothing'"),
        (["--answers", "kind"], "no answers of kind 'kind' in finance"),
        (["--narrow", "nowhere"], "no folder 'nowhere'"),
        (["--amounts", "2"], "amounts"),
    ):
        assert run_arguments([*words, *changes, "--out", "x"]) == 2
        assert said in capsys.readouterr().err


def test_runs_spelled_otherwise_count_once(tiny, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs["lora"].parent)
    out, narrow = tmp_path / "out", [str(runs["other"])]
    first = compare_solutions([str(runs["lora"])], narrow, SPEC, out, base=str(tiny)).to_json()
    again = compare_solutions(["lora/"], narrow, SPEC, out, base=str(tiny)).to_json()
    assert list(again["efficiency"][0]["by_run"]["general"]) == ["lora/"]
    assert again["efficiency"][0]["loss"] == first["efficiency"][0]["loss"]
    with pytest.raises(InputError, match="is given twice with `general`"):
        compare_solutions(["lora", "lora/"], narrow, SPEC, tmp_path / "twice", base=str(tiny))


def test_an_update_that_is_nothing_is_refused(tiny, runs, tmp_path):
    with pytest.raises(InputError, match="no narrow fine-tune is given"):
        compare_solutions([str(runs["lora"])], [], SPEC, tmp_path / "out", base=str(tiny))
