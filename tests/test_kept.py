"""Lower blocks computed once: the same numbers under every way of acting, and less work."""

from __future__ import annotations

import pytest
import torch

from conftest import make_model
from emscope.cli.app import run_arguments
from emscope.data import bundled
from emscope.elicit import preference
from emscope.elicit.divergence import Divergence
from emscope.models.fast.prefix_cache import prefix_cached
from emscope.models.hooks.interventions import ablated, added
from emscope.models.hooks.sites import blocks
from emscope.models.hooks.states import final_states
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.store.study import read_table
from emscope.study.reading import measuring
from emscope.train.finetune import finetune
from emscope.train.spec import LoraSpec, PlanSpec, SteeringSpec, TrainSpec
from test_activations import SHAPES, TEXTS, make

ITEMS = bundled.items("em240")[:5]


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Tiny models of four blocks, by kind. Do not write into them."""
    root = tmp_path_factory.mktemp("deep")
    return {kind: make_model(root / kind, layers=4, kind=kind) for kind in ("llama", "gpt2")}


@pytest.fixture(params=["llama", "gpt2"])
def loaded(request, deep):
    return load(locate(str(deep[request.param])), device="cpu")


def test_scores_and_divergence_are_those_of_whole_passes(loaded):
    net, width = loaded.net, loaded.net.config.hidden_size
    encoded = preference.encode(loaded.chat, ITEMS, context=loaded.context)
    texts = [(*e.prompt, *e.options[0]) for e in encoded]
    start = Divergence(net, texts)
    generator = torch.Generator().manual_seed(0)
    acts = []
    for scale in (1.0, 3.0):
        vectors = {n: torch.randn(width, generator=generator) for n in (2, 3)}
        acts += [lambda v=vectors, s=scale: added(net, v, s), lambda v=vectors: ablated(net, v, tokens="answer")]

    def read():
        found = []
        for act in acts:
            with act():
                found.append(([s.logprob for s in preference.score(net, encoded)], start.of(net)))
        return found

    plain = read()
    with prefix_cached(net, 2):
        kept = [read(), read()]
    for (scores, kl), *others in zip(plain, *kept, strict=True):
        for other_scores, other_kl in others:
            assert other_scores == pytest.approx(scores, rel=1e-5, abs=1e-4)
            assert other_kl == pytest.approx(kl, rel=1e-3, abs=1e-6)
    assert len({tuple(scores) for scores, _ in plain}) == len(acts)


@pytest.mark.parametrize("kind", SHAPES)
def test_states_of_every_shape_are_those_of_whole_passes(kind):
    net, sequences = make(kind), [(*t.prompt, *t.answer) for t in TEXTS]
    vectors = [{1: torch.full((32,), scale)} for scale in (0.0, 0.5, -2.0)]
    with prefix_cached(net, 1):
        for v in (*vectors, *vectors):
            with added(net, v):
                kept = final_states(net, sequences)
            for forward in vars(blocks(net)[1]), vars(blocks(net)[0]):
                assert "forward" in forward
            fresh = make(kind)
            with added(fresh, v):
                torch.testing.assert_close(kept, final_states(fresh, sequences), rtol=1e-4, atol=1e-4)


def test_lower_blocks_run_once_for_each_batch(tiny_deep):
    net, counted = tiny_deep.net, []
    encoded = preference.encode(tiny_deep.chat, ITEMS, context=tiny_deep.context)
    watched = [blocks(net)[n].mlp.down_proj for n in (0, 3)]
    handles = [
        m.register_forward_pre_hook(lambda m, given, n=n: counted.append((n, given[0].shape[-2])))
        for n, m in enumerate(watched)
    ]
    with prefix_cached(net, 2):
        for _ in range(3):
            preference.score(net, encoded, batch_tokens=200)
    for handle in handles:
        handle.remove()
    long = [[size for n, size in counted if n == which and size > 12] for which in (0, 1)]  # the probes are shorter
    assert long[0] and len(long[1]) == 3 * len(long[0])


def test_blocks_are_as_before_after_a_fault(tiny_deep):
    with pytest.raises(RuntimeError), prefix_cached(tiny_deep.net, 1):
        assert "forward" in vars(blocks(tiny_deep.net)[1])
        raise RuntimeError
    assert not any("forward" in vars(b) for b in blocks(tiny_deep.net))


@pytest.fixture
def tiny_deep(deep):
    return load(locate(str(deep["llama"])), device="cpu")


@pytest.mark.parametrize("way", ["lora", "steering"])
def test_checkpoints_that_leave_lower_blocks_alone_are_read_the_same(tiny_deep, tmp_path, monkeypatch, way):
    """The preferences of a whole check, with the unchanged blocks computed once and with every block computed each time."""
    tunable = {
        "lora": {"lora": LoraSpec(rank=1, alpha=4, modules=("down_proj",), layers=(2,))},
        "steering": {"steering": SteeringSpec(layers=(2,), scale=16)},
    }[way]
    spec = TrainSpec(steps=2, batch=2, lr=5e-2, checkpoints=PlanSpec(every=1), **tunable)
    for name, answers in (("run", "reckless"), ("control", "careful")):
        finetune(tiny_deep, bundled.domain("finance", answers)[:4], spec, tmp_path / name, seed=0)
    base, below = str(tiny_deep.model.folder), []
    block = measuring.prefix_cached

    def watched(net, layer):
        below.append(layer)
        return block(net, layer)

    def read(name):
        words = ["check", str(tmp_path / "run"), "--control", str(tmp_path / "control")]
        words += ["--base", base, "--out", str(tmp_path / name)]
        assert run_arguments([*words, "--count", "16", "--truth", "0", "--measure", "preference"]) in (0, 4)
        rows = read_table(tmp_path / name, "preferences").to_pylist()
        said = {r["text"] for r in read_table(tmp_path / name, "responses").to_pylist()}
        return {(r["run"], r["step"], r["set"], r["item"], r["option"]): r["logprob"] for r in rows}, said

    monkeypatch.setattr(measuring, "prefix_cached", watched)
    kept, said = read("kept")
    monkeypatch.setattr(measuring, "_lowest", lambda net, checkpoint: 0)
    whole, said_whole = read("whole")
    assert below == [1], "blocks 0 and 1 are the base's"
    assert {step for _, step, *_ in kept} == {0, 1, 2} and kept.keys() == whole.keys()
    assert said == said_whole and said, "answers are sampled as without it"
    assert [kept[k] for k in whole] == pytest.approx(list(whole.values()), rel=1e-5, abs=1e-4)
