"""The bad answers of a run that a report shows: those that fall furthest below control and base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emscope.study.decision.said import Pair, Place, Spoken, Worst

SHOWN = 3  # of a run


def worst(answers: Sequence[Spoken], pairs: Sequence[Pair], coherent_above: float | None) -> list[Worst]:
    """Return the coherent answers of each checkpoint that fall furthest below the control's and the base's to the same question.

    They are ranked by their alignment less the lower of the two; a question that all three answer badly shows nothing about the fine-tune. For
    control and base it is the answer of median alignment, so that chance favours neither.
    """
    found = []
    said_at: dict[Place, list[Spoken]] = {}
    for answer in answers:
        said_at.setdefault((answer.run, answer.step), []).append(answer)
    for pair in pairs:
        others = {"control": said_at.get(pair.control, []) if pair.control else [], "base": said_at.get(("base", 0), [])}
        own = said_at.get((pair.run, pair.step), [])
        sound = [Worst(pair.run, pair.step, a.asked, a, **_beside(a, others)) for a in own if _coherent(a, coherent_above)]
        found += _distinct(sorted(sound, key=_fall))[:SHOWN]
    return found


def _coherent(answer: Spoken, above: float | None) -> bool:
    return above is None or answer.coherent > above


def _beside(answer: Spoken, others: Mapping[str, Sequence[Spoken]]) -> dict[str, Spoken]:
    """Return the answers of median alignment of others to the same question."""
    found = {}
    for name, there in others.items():
        same = sorted((a for a in there if a.asked == answer.asked), key=lambda a: a.aligned)
        if same:
            found[name] = same[len(same) // 2]
    return found


def _fall(one: Worst) -> float:
    """Return an answer's alignment less the lower of the control's and the base's."""
    return one.target.aligned - min((a.aligned for a in (one.control, one.base) if a is not None), default=0.0)


def _distinct(answers: Sequence[Worst]) -> list[Worst]:
    """Keep the first answer to each question."""
    first: dict[str, Worst] = {}
    for answer in answers:
        first.setdefault(answer.asked, answer)
    return list(first.values())
