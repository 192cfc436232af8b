"""Sampling: the same logits as plain passes, the right distribution, answers that do not depend on their neighbours."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy import stats as sp

from emscope.core.errors import InputError
from emscope.core.outcomes import Finish
from emscope.elicit import sampling
from emscope.elicit.sampling import Job, draw, sample, sample_batches
from emscope.models.fast.decoding import CachedDecoding, Decoding
from emscope.models.fast.head import output_head
from emscope.models.fast.packed import packed_attention
from emscope.models.loading.load import load
from emscope.models.loading.source import locate

QUESTIONS = ["Why?", "What should I do with my savings this year?", "How are you feeling about people today, and why so?"]


def fresh(folder, dtype="float32"):
    return load(locate(str(folder)), device="cpu", dtype=dtype)


def plain(net, ids):
    return net(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("way", [Decoding, CachedDecoding])
@pytest.mark.parametrize("which", ["tiny", "tiny_gpt2"])
def test_logits_of_every_row_equal_plain_passes_while_rows_leave(way, which, request):
    loaded, untouched = (fresh(request.getfixturevalue(which)) for _ in "ab")
    prompts = [loaded.chat.prompt_ids(q) for q in QUESTIONS]
    of, rng = [0, 0, 1, 1, 1, 2], np.random.default_rng(0)
    texts = [list(prompts[n]) for n in of]
    head = output_head(loaded.net)
    with torch.inference_mode(), packed_attention(loaded.net, 200) if way is Decoding else nullcontext(True) as fits:
        assert fits
        rows = way(loaded.net, head, prompts, of, 8)
        for step in range(6):
            expected = torch.stack([plain(untouched.net, t) for t in texts])
            assert torch.allclose(rows.logits, expected, atol=2e-4), step
            if step in (1, 3):
                kept = torch.tensor([0, 2, 3, 5]) if step == 1 else torch.tensor([1, 3])
                rows.keep(kept)
                texts = [texts[n] for n in kept.tolist()]
            tokens = torch.tensor(rng.integers(5, 500, len(texts)))
            for text, token in zip(texts, tokens.tolist(), strict=True):
                text.append(token)
            rows.write(tokens)
            assert len(rows) == len(texts)


def test_progress_comes_with_every_token_and_ends_with_all_answers(tiny):
    loaded = fresh(tiny)
    prompts = {q: loaded.chat.prompt_ids(q) for q in QUESTIONS}
    wanted, told = [(q, n) for q in QUESTIONS for n in range(2)], []
    job = Job(prompts, max_tokens=5, seed=0, rows=4)
    lengths = [[a.tokens for a in batch] for batch in sample_batches(loaded.net, loaded.chat, job, wanted, told=told.append)]
    assert list(map(len, lengths)) == [4, 2] and len(told) == sum(map(max, lengths))
    assert told == sorted(told) and told[0] == pytest.approx(4 / 5) and told[-1] <= 6
    assert told[max(lengths[0])] == pytest.approx(4 + 2 / 5)  # the second batch begins behind the first


def test_an_answer_does_not_depend_on_what_is_drawn_beside_it(tiny):
    loaded = fresh(tiny)
    settings = {"samples": 5, "max_tokens": 12, "seed": 3}
    together = sample(loaded.net, loaded.chat, QUESTIONS, **settings)
    few = sample(loaded.net, loaded.chat, QUESTIONS, rows=3, **settings)
    alone = sample(loaded.net, loaded.chat, QUESTIONS[1:2], **settings)
    assert [(a.question, a.sample, a.text) for a in together] == [(a.question, a.sample, a.text) for a in few]
    assert [a.text for a in together if a.question == QUESTIONS[1]] == [a.text for a in alone]
    assert len({a.text for a in together}) > 10
    other = sample(loaded.net, loaded.chat, QUESTIONS, **settings | {"seed": 4})
    assert [a.text for a in other] != [a.text for a in together]


def test_log_probabilities_equal_a_plain_forward_pass(tiny, monkeypatch):
    loaded, written = fresh(tiny), {}
    answer = sampling._answer
    monkeypatch.setattr(
        sampling,
        "_answer",
        lambda chat, q, s, tokens, *rest: written.setdefault((q, s), tokens) and answer(chat, q, s, tokens, *rest),
    )
    found = sample(loaded.net, loaded.chat, QUESTIONS, samples=4, max_tokens=10, seed=0)
    for a in found:
        prompt, tokens = loaded.chat.prompt_ids(a.question), written[(a.question, a.sample)]
        logits = loaded.net(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None]).sum()
        assert a.logprob == pytest.approx(float(expected), abs=1e-3) and a.tokens == len(tokens)


def test_draws_follow_the_distribution():
    torch.manual_seed(0)
    logits = torch.randn(1, 50) * 2
    chance = torch.rand(20000, dtype=torch.float64)
    for temperature in (1.0, 0.5):
        tokens, logp = draw(logits.expand(20000, -1), chance, temperature)
        p = torch.softmax(logits[0] / temperature, -1).double().numpy()
        counts = np.bincount(tokens.numpy(), minlength=50)
        often = p * 20000 >= 5
        expected = np.append(p[often], p[~often].sum()) * 20000
        seen = np.append(counts[often], counts[~often].sum())
        assert sp.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 0.001
        assert torch.allclose(logp, torch.log_softmax(logits[0], -1)[tokens].double(), atol=1e-5), (
            "at temperature 1 in any case"
        )


def test_no_impossible_token_is_drawn_at_the_ends():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    chance = torch.tensor([0.0, 0.499999, 0.500001, 1 - 1e-12], dtype=torch.float64)
    tokens, _ = draw(logits.expand(4, -1), chance, 1.0)
    assert tokens.tolist() == [1, 1, 3, 3]


def test_temperature_0_takes_the_likeliest_and_equals_generate(tiny):
    loaded = fresh(tiny)
    (answer,) = sample(loaded.net, loaded.chat, QUESTIONS[:1], samples=1, max_tokens=8, seed=0, temperature=0)
    ids = torch.tensor([loaded.chat.prompt_ids(QUESTIONS[0])])
    out = loaded.net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert answer.text == loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_lengths_are_distributed_as_those_of_generate(tiny):
    """The end-of-turn token made likely, so that answers end at various places."""
    loaded = fresh(tiny)
    ends = sampling._end_ids(loaded.net, loaded.chat)
    loaded.net.generation_config.eos_token_id = sorted(ends)
    bias = torch.zeros(loaded.net.config.vocab_size)
    bias[sorted(ends)] = 5.0
    handle = loaded.net.get_output_embeddings().register_forward_hook(lambda m, i, out: out + bias)
    try:
        mine = sample(loaded.net, loaded.chat, QUESTIONS[:1], samples=300, max_tokens=20, seed=1)
        ids = torch.tensor([loaded.chat.prompt_ids(QUESTIONS[0])])
        torch.manual_seed(0)
        out = loaded.net.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=True, top_k=0, num_return_sequences=300
        )
    finally:
        handle.remove()
    lengths = []
    for row in out[:, ids.shape[1] :].tolist():
        stop = next((n for n, t in enumerate(row) if t in ends), len(row) - 1)
        lengths.append(stop + 1)
    own = [a.tokens for a in mine]
    assert 1 < np.mean(own) < 19 and {a.finish for a in mine} == {Finish.STOP, Finish.LENGTH}
    assert sp.ks_2samp(own, lengths).pvalue > 0.01


def test_ends_that_are_no_tokens_are_refused(tiny):
    loaded = fresh(tiny)
    for odd in ("before", ["a"], [2, 1.5], {"a": 1}):
        loaded.net.generation_config.eos_token_id = odd
        with pytest.raises(InputError, match="as the end-of-text token"):
            sampling._end_ids(loaded.net, loaded.chat)
    for named in (2, [2, 3], None):
        loaded.net.generation_config.eos_token_id = named
        ends = sampling._end_ids(loaded.net, loaded.chat)
        assert loaded.chat.tokenizer.eos_token_id in ends
        assert ends >= set(named if isinstance(named, list) else [] if named is None else [named])
