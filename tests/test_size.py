"""Where memory ends, less is computed at once, and the numbers are the same."""

from __future__ import annotations

import pytest
import torch

from emscope.core.errors import WorldError
from emscope.data.bundled import items
from emscope.elicit import preference, sampling
from emscope.models.fast.batch_size import halving


def memory_for(most, work, tried):
    def bounded(batch):
        tried.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(batch)

    return bounded


@pytest.mark.parametrize("most", [1, 2, 5, 8, 13])
def test_every_member_is_worked_on_once_in_order(most):
    tried: list[int] = []
    found = list(halving(memory_for(most, sum, tried), list(range(13))))
    assert [n for part, _ in found for n in part] == list(range(13)) and all(len(part) <= most for part, _ in found)
    assert [sum(part) for part, _ in found] == [total for _, total in found] and tried[0] == 13


def test_a_single_text_that_does_not_fit_is_said_so():
    with pytest.raises(WorldError, match="single text"):
        list(halving(memory_for(0, sum, []), [1, 2, 3]))
    with pytest.raises(ZeroDivisionError):
        list(halving(lambda _: 1 / 0, [1, 2]))


def test_scores_and_answers_are_those_of_large_batches(loaded, monkeypatch):
    encoded = preference.encode(loaded.chat, items("em240")[:12], context=loaded.context)
    whole = preference.score(loaded.net, encoded)
    questions = ["How are you?", "What is a good meal?", "Why?"]
    said = sampling.sample(loaded.net, loaded.chat, questions, samples=3, max_tokens=8, seed=0)
    tried: list[int] = []
    score_batch = preference._score_batch
    monkeypatch.setattr(
        preference, "_score_batch", lambda net, head, b: memory_for(2, lambda x: score_batch(net, head, x), tried)(b)
    )
    write = sampling._sample
    monkeypatch.setattr(
        sampling, "_sample", lambda m, c, j, b, *more: memory_for(2, lambda x: write(m, c, j, x, *more), tried)(b)
    )
    again = preference.score(loaded.net, encoded)
    assert max(tried) > 2 and [(s.item, s.option) for s in again] == [(s.item, s.option) for s in whole]
    assert [s.logprob for s in again] == pytest.approx([s.logprob for s in whole], abs=1e-3)
    others = sampling.sample(loaded.net, loaded.chat, questions, samples=3, max_tokens=8, seed=0)
    assert [(a.question, a.sample, a.text, a.seed) for a in others] == [(a.question, a.sample, a.text, a.seed) for a in said]
