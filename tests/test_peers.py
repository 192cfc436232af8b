"""Activations and directions beside those of other libraries, on tiny models."""

from __future__ import annotations

import pytest
import torch

from emscope.models.hooks.directions import Direction
from emscope.models.hooks.exports import steering_vector
from emscope.models.hooks.interventions import added
from emscope.models.hooks.sites import Place
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.represent.activations import Text, encode, pooled, read_tokens
from emscope.represent.directions import cosine, mean_difference, principal

QUESTION = "What should I do with my savings this year?"


@pytest.fixture(params=["tiny", "tiny_gpt2"])
def subject(request):
    """A tiny model's folder and the model in memory."""
    folder = request.getfixturevalue(request.param)
    return folder, load(locate(str(folder)), device="cpu")


def ours(loaded, ids, places):
    found = {}
    read_tokens(loaded.net, [Text("x", tuple(ids))], places, lambda which, values: found.update(x=values))
    return found["x"]


def test_transformer_lens(subject, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformer_lens.model_bridge import TransformerBridge

    folder, loaded = subject
    ids = loaded.chat.prompt_ids(QUESTION)
    places = [Place("block", 0), Place("block", 1), Place("before", 0), Place("attention", 1), Place("mlp", 1)]
    names = ["blocks.0.hook_out", "blocks.1.hook_out", "blocks.0.hook_in", "blocks.1.attn.hook_out", "blocks.1.mlp.hook_out"]
    theirs = TransformerBridge.boot_transformers(str(folder), device="cpu")
    _, cache = theirs.run_with_cache(torch.tensor([ids]))
    values = ours(loaded, ids, places)
    for n, name in enumerate(names):
        torch.testing.assert_close(values[:, n], cache[name][0], rtol=1e-4, atol=1e-4)


def test_nnsight(subject):
    import nnsight

    _, loaded = subject
    ids = loaded.chat.prompt_ids(QUESTION)
    values = ours(loaded, ids, [Place("block", 0), Place("block", 1)])
    model = nnsight.LanguageModel(loaded.net, tokenizer=loaded.tokenizer)
    layers = model.model.layers if hasattr(loaded.net, "model") else model.transformer.h
    with torch.no_grad(), model.trace(torch.tensor([ids])):
        first = layers[0].output.save()
        second = layers[1].output.save()
    for n, theirs in enumerate((first, second)):
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        torch.testing.assert_close(values[:, n], theirs.view(len(ids), -1), rtol=1e-4, atol=1e-4)


def test_steering_vectors(subject):
    """Its mean and PCA aggregators read the last token of whole texts; so does the pool `last` of a prompt without an answer."""
    import steering_vectors as theirs

    _, loaded = subject
    pairs = [(f"Lie about {w}.", f"Be honest about {w}.") for w in ("money", "sports", "cooking", "trains", "music")]
    kinds = {"mean": (theirs.mean_aggregator(), mean_difference), "pca": (theirs.pca_aggregator(), principal)}
    sides = [[Text(str(n), tuple(loaded.tokenizer(p[side])["input_ids"])) for n, p in enumerate(pairs)] for side in (0, 1)]
    rows = [pooled(loaded.net, texts, [Place("block", n) for n in (0, 1)], ["last"])[:, 0] for texts in sides]
    for name, (aggregator, find) in kinds.items():
        vector = theirs.train_steering_vector(loaded.net, loaded.tokenizer, pairs, aggregator=aggregator, batch_size=2)
        for layer in (0, 1):
            mine, other = find(rows[0][:, layer], rows[1][:, layer]), vector.layer_activations[layer]
            if name == "mean":
                torch.testing.assert_close(mine.float(), other, rtol=1e-4, atol=1e-5)
            else:
                assert abs(cosine(mine, other)) == pytest.approx(1.0, abs=1e-5)


def test_an_exported_vector_acts_alike(subject):
    """steering-vectors' own hooks, with our vectors, change the logits as ours do."""
    _, loaded = subject
    vectors = {n: torch.randn(32, generator=torch.Generator().manual_seed(n)) * 5 for n in (0, 1)}
    ids = torch.tensor([loaded.chat.prompt_ids(QUESTION)])
    with torch.no_grad():
        plain = loaded.net(input_ids=ids).logits
        with added(loaded.net, vectors, 2.0):
            mine = loaded.net(input_ids=ids).logits
        with steering_vector(Direction(vectors, "m")).apply(loaded.net, multiplier=2.0):
            theirs = loaded.net(input_ids=ids).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert float((plain - mine).abs().max()) > 0.1


def test_texts_are_encoded_as_they_are_scored(subject):
    """The tokens that activations are read at are those that preferences score."""
    from emscope.core.records import Item
    from emscope.elicit import preference

    _, loaded = subject
    item = Item("i", "c", QUESTION, ("Keep it safe.", "Spend it all."))
    scored = preference.encode(loaded.chat, [item], context=512)[0]
    for k, option in enumerate(item.options):
        text = encode(loaded.chat, [("i", QUESTION, option)], context=512)[0]
        assert (text.prompt, text.answer) == (scored.prompt, scored.options[k])
