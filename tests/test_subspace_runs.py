"""`emscope subspaces` against plain forward passes and scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA

from emscope.cli.app import run_arguments
from emscope.core.records import Message
from emscope.data import bundled
from emscope.inside.reading import PromptActivations, prompt_texts
from emscope.inside.subspaces import SubspaceSpec, compare_subspaces, pearson
from emscope.models.adapters.updates import first_changed
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.train.finetune import finetune
from emscope.train.spec import FullSpec, LoraSpec, PlanSpec, SteeringSpec, TrainSpec

TALKS = bundled.domain("finance", "reckless")
WAYS = {
    "lora": {"lora": LoraSpec(rank=4, alpha=8)},
    "upper": {"steering": SteeringSpec(layers=(1,), scale=4)},
    "full": {"full": FullSpec()},
}
SPEC = SubspaceSpec(ks=(1, 3), count=30, random_seeds=2)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    root, found = tmp_path_factory.mktemp("runs"), {}
    for name, tunable in WAYS.items():
        spec = TrainSpec(steps=3, batch=4, lr=1e-3 if name == "full" else 2e-2, checkpoints=PlanSpec(), **tunable)
        found[name] = str(root / name)
        finetune(load(locate(str(tiny)), device="cpu"), TALKS[:8], spec, root / name, seed=0)
    return found


def last_tokens(loaded, checkpoint, questions):
    """Activations behind each block at the last prompt token, one plain pass each [N, layers, D]."""
    seen = []
    with with_checkpoint(loaded.net, checkpoint) as net, torch.no_grad():
        for messages in questions:
            ids = torch.tensor([loaded.chat.ids(loaded.chat.prompt_text(messages))])
            states = []
            hooks = [
                layer.register_forward_hook(lambda m, a, out, s=states: s.append(out[0, -1])) for layer in net.model.layers
            ]
            net(input_ids=ids)
            for hook in hooks:
                hook.remove()
            seen.append(torch.stack(states))
    return torch.stack(seen).double().numpy()


def test_equals_plain_passes_and_scikit_learn(tiny, runs, tmp_path):
    result = compare_subspaces([runs["lora"]], SPEC, tmp_path).to_json()
    loaded = load(locate(str(tiny)), device="cpu")
    talks = [t.messages[:-1] for t in TALKS[:30]]
    items = [i for n, i in enumerate(bundled.items("em240")) if n % 8 == 4]
    assert result["questions"] == [i.id for i in items]

    asked = [*talks, *([Message("user", i.question)] for i in items)]
    before, after = (last_tokens(loaded, c, asked) for c in (None, discover(runs["lora"])[-1]))
    fitted = np.array([n % 5 != 4 for n in range(30)])
    for row in result["rows"]:
        shifts = after[:, row["layer"]] - before[:, row["layer"]]
        train, other = shifts[:30][fitted], shifts[30:]
        mean = train.mean(0)
        alike = other @ mean / np.linalg.norm(other, axis=1) / np.linalg.norm(mean)
        assert row["by_question"] == pytest.approx(alike, abs=1e-4)
        for at in row["ks"]:
            pca = PCA(at["k"]).fit(train)
            rest = other - pca.inverse_transform(pca.transform(other))
            inside = np.sqrt(1 - (np.linalg.norm(rest, axis=1) / np.linalg.norm(other - mean, axis=1)) ** 2)
            by_category = [inside[[i.category == c for i in items]].mean() for c in {i.category for i in items}]
            assert at["overlap"]["value"] == pytest.approx(np.mean(by_category), abs=1e-3)
            assert at["r"]["overlap"]["value"] == pytest.approx(stats.pearsonr(inside, alike)[0], abs=1e-2)
    assert result["prompts"] == {"train": 24, "held": 6, "other": 30}


def test_what_a_checkpoint_leaves_alone_is_the_bases(tiny, runs, tmp_path):
    loaded = load(locate(str(tiny)), device="cpu")
    found = {name: first_changed(loaded.net, discover(run)[-1]) for name, run in runs.items()}
    assert found == {"lora": 0, "upper": 1, "full": 0}
    from emscope.data.questions import read_questions

    texts = prompt_texts(loaded, read_questions("em240")[:5])
    both = PromptActivations(loaded, texts, (0, 1), "last", tmp_path)
    base, upper = both.of(None, "reading"), both.of(discover(runs["upper"])[-1], "reading")
    assert np.array_equal(base[:, 0], upper[:, 0]) and not np.allclose(base[:, 1], upper[:, 1])
    alone = PromptActivations(loaded, texts, (1,), "last", tmp_path / "alone").of(discover(runs["upper"])[-1], "reading")
    assert np.allclose(alone[:, 0], upper[:, 1], atol=1e-6)


def test_the_command_reads_once_and_draws(runs, tmp_path, monkeypatch, capsys):
    command = ["subspaces", "--checkpoint", runs["lora"], "--checkpoint", runs["upper"], "--ks", "1,3", "--count", "30"]
    command += ["--out", str(tmp_path / "out")]
    assert run_arguments(command) == 0
    shown = capsys.readouterr().out
    assert "unchanged" in shown and "Shared by two runs" in shown
    assert "Overlap with the space of training shifts" in (tmp_path / "out" / "figure.html").read_text()
    first = json.loads((tmp_path / "out" / "subspaces.json").read_text())

    def never(*a, **k):
        raise AssertionError("read again")

    monkeypatch.setattr("emscope.inside.reading.read_pooled", never)
    assert run_arguments([*command, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["rows"] == first["rows"]
    same = [a for a in first["angles"] if a["runs"][0] == a["runs"][1]]
    assert not same and {a["layer"] for a in first["angles"]} == {1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ks", "200", "--count", "30"], "k is 200, but these rows span 23 directions"),
        (["--layers", "9"], "layer 9 is out of range"),
        (["--train", "nothing.jsonl"], "nothing.jsonl"),
        (["--questions", "nothing"], "there is no question set 'nothing'"),
    ],
)
def test_bad_input(runs, tmp_path, capsys, options, said):
    assert run_arguments(["subspaces", "--checkpoint", runs["lora"], "--out", str(tmp_path), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_correlation_of_what_does_not_vary_is_unknown():
    assert pearson(np.ones(9), np.arange(9.0)).value is None
    x, y = np.random.default_rng(0).normal(size=(2, 40))
    found = pearson(x, x + y)
    z = np.arctanh(found.value)
    assert (found.low, found.high) == pytest.approx((np.tanh(z - 1.96 / 37**0.5), np.tanh(z + 1.96 / 37**0.5)), abs=1e-3)
