"""What a judge's reply says: a number from its log-probabilities, a printed one, or one of the outcomes that are not a number."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from emscope.core.outcomes import Outcome
from emscope.core.records import Reply, Verdict

LEAST_MASS = 0.25
TOP = 100
# A reply that is only a number, except for marks that some judges put around it.
NUMBER = re.compile(
    r"""^[\s"'*_`(\[]*(\d{1,3}(?:\.\d+)?)\s*(?:%|/\s*100|out of 100)?[\s"'*_`)\].]*$""", re.IGNORECASE | re.ASCII
)
OTHER_SCALE = re.compile(
    r"""^[\s"'*_`(\[]*\d{1,3}(?:\.\d+)?\s*(?:/|out of)\s*(?!100\b)\d{1,4}[\s"'*_`)\].]*$""", re.IGNORECASE | re.ASCII
)

BEGINS_WITH_DIGIT = re.compile(r"""^[\s"'*_`(\[]*\d""", re.ASCII)
MANY_DIGITS = 5
LARGEST_LOGPROB = 1e-3  # servers round; anything above is not a log-probability


def verdict(reply: Reply, words: Mapping[str, Outcome], labels: Mapping[str, float] | None = None) -> Verdict:
    """Return what a reply says.

    With log-probabilities: score = sum k p_k / sum p_k over first tokens that are whole numbers k of 0..100, where their mass
    is .25 or more (B, evaluation code). Without, where the judge's tokens split numbers,
    or where the printed reply begins with a number and continues (8/10, 0.8, 3 reasons), the printed reply.

    Args:
        words: replies that are separate outcomes, in capitals.
        labels: replies that stand for scores, in capitals; None where a number is asked for.
    """
    if reply.text is None:
        return Verdict(Outcome.FAILED)
    text = reply.text.strip()
    if not text:
        return Verdict(Outcome.EMPTY, raw=reply.text)
    word = _word(text)
    if labels is not None:
        return _labelled(word, words, labels, reply.text)
    if reply.top and not splits(reply) and not _goes_on(text):
        score, mass = expected(reply.top)
        if score is not None:
            return Verdict(Outcome.SCORED, score, mass, reply.text)
        return Verdict(words.get(word, Outcome.LOW_MASS), None, mass, reply.text)
    if word in words:
        return Verdict(words[word], raw=reply.text)
    return _printed(text, reply.text)


def is_word(reply: Reply, words: Mapping[str, Outcome]) -> bool:
    """True where a reply is one of the outcomes' words, in capitals, but for marks around it."""
    return _word((reply.text or "").strip()) in words


def _word(text: str) -> str:
    return text.strip(" \t\n\"'*_`.!").upper()


def expected(top: Sequence[tuple[str, float]]) -> tuple[float | None, float]:
    """Return (mean of the numbers 0..100 among the first tokens, their mass); no mean where the mass is below .25. (B)"""
    read = [(token.strip(), math.exp(p)) for token, p in top if p <= LARGEST_LOGPROB]  # leaves NaN out, too
    numbers = [(int(t), p) for t, p in read if re.fullmatch("[0-9]{1,3}", t) and int(t) <= TOP]
    mass = sum(p for _, p in numbers)
    if mass < LEAST_MASS:
        return None, mass
    return sum(k * p for k, p in numbers) / mass, mass


def splits(reply: Reply) -> bool:
    """True where the first token is not a whole number, since the judge's tokens split numbers.

    It wrote one in several tokens, or its most likely first tokens are at least half of the ten digits and no longer number.
    """
    begin = [t.strip() for t in reply.tokens[:2]]
    if len(begin) == 2 and all(re.fullmatch("[0-9]+", t) for t in begin):
        return True
    numbers = {t.strip() for t, _ in reply.top if re.fullmatch("[0-9]+", t.strip())}
    return len(numbers) >= MANY_DIGITS and all(len(n) == 1 for n in numbers)


def _goes_on(text: str) -> bool:
    """True where the reply begins with a number and is more than a whole one: its first token is not a score."""
    found = NUMBER.match(text)
    return BEGINS_WITH_DIGIT.match(text) is not None and (found is None or "." in found.group(1))


def _printed(text: str, raw: str) -> Verdict:
    if OTHER_SCALE.match(text):
        return Verdict(Outcome.WRONG_SCALE, raw=raw)
    found = NUMBER.match(text)
    if found is None:
        return Verdict(Outcome.OFF_MENU, raw=raw)
    score = float(found.group(1))
    return Verdict(Outcome.INTEGER_ONLY, score, raw=raw) if score <= TOP else Verdict(Outcome.WRONG_SCALE, raw=raw)


def _labelled(word: str, words: Mapping[str, Outcome], labels: Mapping[str, float], raw: str) -> Verdict:
    if word in labels:
        return Verdict(Outcome.SCORED, labels[word], raw=raw)
    return Verdict(words.get(word, Outcome.OFF_MENU), raw=raw)
