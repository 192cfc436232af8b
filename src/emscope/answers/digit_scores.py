"""Scores of an API judge whose tokens split numbers: each beginning of a number is prefilled, and the continuation is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from emscope.core.errors import InputError
from emscope.core.outcomes import Outcome
from emscope.core.records import Message, Reply, Verdict
from emscope.judging.digits import digit_chances, longer, number_distribution, score_of
from emscope.models.remote.api import ApiModel, ask_all

K = TypeVar("K")
LEAST = 1e-4  # beginnings less likely than this are not asked about
NOTHING = [0.0] * 10


def follow_digits(
    model: ApiModel,
    asked: Sequence[tuple[K, Sequence[Message], Reply]],
    spend: Callable[[Reply], None],
    *,
    go_on: Callable[[], bool] = lambda: True,
    least: float = LEAST,
) -> Iterator[tuple[K, Reply, Verdict]]:
    """Yield the verdicts of replies whose first token is the beginning of a number, level by level of digits.

    Where asking stopped, a reply has no verdict and is not yielded; where a request failed, its verdict is `failed`. The next call
    asks for both again.

    Args:
        asked: (key, turns, reply to them) each. spend: gets every further reply, for its cost.

    Raises:
        InputError: the server does not continue an assistant's turn.
        As `ask_all`.
    """
    if not asked:
        return
    first = replace(model, max_tokens=1)
    _check_continues(first, asked, spend)
    chances: list[dict[str, list[float]]] = [{"": digit_chances(reply.top)} for _, _, reply in asked]
    failed: dict[int, Reply] = {}

    def receive(place: tuple[int, str], reply: Reply) -> None:
        spend(reply)
        if reply.text is None:
            failed[place[0]] = reply
        else:
            chances[place[0]][place[1]] = digit_chances(reply.top)

    stopped: set[int] = set()
    level = [(n, beginning, p) for n, known in enumerate(chances) for beginning, p in longer("", known[""], 1.0, least)]
    while level:
        jobs = (((n, text), _begun(asked[n][1], text), None) for n, text, _ in level)
        ask_all(first, jobs, receive, go_on=go_on)
        stopped |= {n for n, text, _ in level if text not in chances[n] and n not in failed}
        level = [
            (n, beginning, q)
            for n, text, p in level
            if text in chances[n] and n not in stopped and n not in failed
            for beginning, q in longer(text, chances[n][text], p, least)
        ]
    for n, (key, _, reply) in enumerate(asked):
        if n in failed:
            yield key, failed[n], Verdict(Outcome.FAILED)
        elif n not in stopped:
            yield key, reply, _verdict(chances[n], reply, least)


def _begun(turns: Sequence[Message], text: str) -> list[Message]:
    """Return the turns with `text` as the prefill of the judge's reply, after the rubric's own prefill."""
    own = turns[-1].content if turns[-1].role == "assistant" else ""
    before = turns[:-1] if turns[-1].role == "assistant" else turns
    return [*before, Message("assistant", own + text)]


def _verdict(chances: dict[str, list[float]], reply: Reply, least: float) -> Verdict:
    score, mass = score_of(number_distribution(lambda text: chances.get(text, NOTHING), least))
    outcome = Outcome.LOW_MASS if score is None else Outcome.SCORED
    return Verdict(outcome, score, mass, reply.text or "")


def _check_continues(
    model: ApiModel, asked: Sequence[tuple[K, Sequence[Message], Reply]], spend: Callable[[Reply], None]
) -> None:
    """Refuse a server that begins a new answer: continued after the digits it wrote, it must write what it wrote then."""
    known = next(((turns, r) for _, turns, r in asked if re.match(r"\s*\d", "".join(r.tokens))), None)
    if known is None:
        return
    turns, reply = known
    digits = [t for n, t in enumerate(reply.tokens) if all(re.fullmatch(r"\s*\d+", u) for u in reply.tokens[: n + 1])]
    then = "".join(reply.tokens[len(digits) :])[:1]
    seen: list[Reply] = []
    text = "".join(digits).strip()
    ask_all(model, [(0, _begun(turns, text), None)], lambda _, r: seen.append(r))
    spend(seen[0])
    said = "".join(seen[0].tokens)
    if re.match(r"\s*\d", said) and not re.match(r"\s*\d", then):
        raise InputError(
            "this judge's server begins a new answer instead of continuing one", "leave out `digits` to use the printed number"
        )
