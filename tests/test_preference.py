"""The fast scorer against its slow twin and against a plain forward pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emscope.core.errors import InputError
from emscope.core.records import Item
from emscope.data import bundled
from emscope.elicit.preference import encode, score, score_plain
from emscope.models.fast.packed import pack
from emscope.models.loading.load import load
from emscope.models.loading.source import locate


def forward_sum(net, prompt, option):
    """Sum of log-probabilities from one plain forward pass, written out."""
    ids = torch.tensor([[*prompt, *option]])
    with torch.inference_mode():
        logits = net(input_ids=ids, use_cache=False).logits.double()
    total = 0.0
    for n, token in enumerate(option):
        total += float(torch.log_softmax(logits[0, len(prompt) + n - 1], -1)[token])
    return total


@pytest.mark.parametrize("which", ["tiny", "tiny_gpt2"])
@pytest.mark.parametrize("batch_tokens", [64, 500, 4000])
def test_sums_equal_plain_forward_in_float64(which, batch_tokens, request, monkeypatch):
    loaded = load(locate(str(request.getfixturevalue(which))), dtype="float64", device="cpu")
    items = bundled.items("em240")[:9] + bundled.truth()[:9]
    encoded = encode(loaded.chat, items, context=loaded.context)
    before = loaded.net.config._attn_implementation
    with monkeypatch.context() as patch:
        patch.setattr("emscope.elicit.preference.score_plain", lambda *a, **k: pytest.fail("fell back to the slow way"))
        fast = score(loaded.net, encoded, batch_tokens=batch_tokens)
    assert loaded.net.config._attn_implementation == before
    assert [(s.item, s.option) for s in fast] == [(e.item, k) for e in encoded for k in e.which]
    expected = [forward_sum(loaded.net, e.prompt, o) for e in encoded for o in e.options]
    assert max(abs(s.logprob - x) for s, x in zip(fast, expected, strict=True)) < 1e-8
    plain = score_plain(loaded.net, encoded)
    assert max(abs(a.logprob - b.logprob) for a, b in zip(fast, plain, strict=True)) < 1e-8


@pytest.mark.real
def test_per_token_equal_on_the_real_model_in_float32(smollm2, monkeypatch):
    items = bundled.items("em240")[::40] + bundled.truth()[::50]
    encoded = encode(smollm2.chat, items, context=smollm2.context)
    with monkeypatch.context() as patch:
        patch.setattr("emscope.elicit.preference.score_plain", lambda *a, **k: pytest.fail("fell back to the slow way"))
        fast = score(smollm2.net, encoded)
    plain = score_plain(smollm2.net, encoded)
    assert max(abs(a.per_token - b.per_token) for a, b in zip(fast, plain, strict=True)) < 1e-4


def test_one_token_options_and_single_options(loaded):
    items = [Item("a", "x", "Why?", ("I", "We")), Item("b", "x", "And then what happens?", ("It rains.", "I"))]
    encoded = encode(loaded.chat, items, context=512) + encode(
        loaded.chat, [Item("c", "x", "Who?", ("You", "Me"))], context=512, which=[1]
    )
    fast, plain = score(loaded.net, encoded), score_plain(loaded.net, encoded)
    assert [(s.item, s.option) for s in fast] == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 1)]
    assert max(abs(a.logprob - b.logprob) for a, b in zip(fast, plain, strict=True)) < 1e-4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.tuples(st.text("abc de.\n", min_size=1, max_size=30), st.text("fgh ij,1", min_size=1, max_size=40)),
        min_size=1,
        max_size=6,
    )
)
def test_batching_never_changes_a_score(loaded, texts):
    items = [Item(str(n), "x", question, (answer, answer + " no")) for n, (question, answer) in enumerate(texts)]
    encoded = encode(loaded.chat, items, context=512)
    one, many = score(loaded.net, encoded, batch_tokens=1), score(loaded.net, encoded, batch_tokens=10_000)
    assert all(abs(a.logprob - b.logprob) < 1e-3 for a, b in zip(one, many, strict=True))


def test_progress_ends_at_the_total(loaded):
    seen = []
    encoded = encode(loaded.chat, bundled.items("em240")[:5], context=512)
    score(loaded.net, encoded, batch_tokens=100, progress=lambda w, d, t: seen.append((d, t)))
    assert seen[-1][0] == seen[-1][1] == sum(e.cost for e in encoded)


def test_too_long_and_empty_answers_are_refused(loaded):
    with pytest.raises(InputError, match="context is 20"):
        encode(loaded.chat, [Item("long", "x", "Why?", ("word " * 50, "no"))], context=20)
    with pytest.raises(InputError, match="no token"):
        encode(loaded.chat, [Item("none", "x", "Why?", ("", "no"))], context=20)


def test_a_pack_holds_each_beginning_once():
    packed = pack([[5, 6, 7], [5, 6, 8, 9], [5], [4]])
    assert packed.ids.tolist() == [5, 6, 7, 8, 9, 4]
    assert packed.positions.tolist() == [0, 1, 2, 2, 3, 0]
    assert packed.paths.tolist() == [[0, 1, 2, 0], [0, 1, 3, 4], [0, 0, 0, 0], [5, 0, 0, 0]]
    assert packed.paths.flatten()[packed.home].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("reason", ["windowed attention", "own attention"])
def test_a_model_that_cannot_be_packed_is_read_the_slow_way(loaded, monkeypatch, reason):
    encoded = encode(loaded.chat, bundled.items("em240")[:3], context=512)
    expected = score_plain(loaded.net, encoded)
    if reason == "own attention":
        monkeypatch.setattr(type(loaded.net), "_can_set_attn_implementation", lambda self: False)
    else:
        layer = loaded.net.base_model.layers[0].self_attn
        plain = type(layer).forward
        monkeypatch.setattr(type(layer), "forward", lambda self, *a, **k: plain(self, *a, sliding_window=8, **k))
    assert score(loaded.net, encoded) == expected
    assert loaded.net.config._attn_implementation == "sdpa"


def test_a_gpu_gets_more_at_once_and_a_wide_model_less_of_it():
    from types import SimpleNamespace

    from transformers import LlamaConfig

    from emscope.models.fast import batch_size as size

    def net(device, width):
        return SimpleNamespace(device=SimpleNamespace(type=device), config=LlamaConfig(hidden_size=width))

    assert (size.batch_tokens(net("cpu", 576)), size.rows(net("cpu", 576))) == (3072, 400)
    assert (size.batch_tokens(net("cuda", 576)), size.rows(net("cuda", 576))) == (49_152, 1600)
    assert size.batch_tokens(net("cuda", 2304)) == 12_288 and size.rows(net("cuda", 8192)) == 400
