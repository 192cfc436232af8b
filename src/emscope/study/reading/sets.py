"""The items a study or a check reads: which sets, drawn how, with which options for which arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.notes import note_fewer
from emscope.core.records import Conversation, Item
from emscope.data import bundled
from emscope.data.items import even, read_items, stratified
from emscope.study.measure_spec import MeasureSpec

FEWEST = 3  # items: a line through the base's margins needs as many
EM, PLACEBO, HELDOUT, TRUTH, NEUTRAL = "em", "placebo", "heldout", "truth", "neutral"
CONTROL_HELDOUT, REFUSAL, TWINS = "control_heldout", "refusal", "refusal_twins"
EVERY = (EM, PLACEBO, HELDOUT, TRUTH, NEUTRAL, CONTROL_HELDOUT, REFUSAL, TWINS)
ONCE = (NEUTRAL, REFUSAL, TWINS)  # read at the base and at the last step of each run


@dataclass(frozen=True, slots=True)
class ItemSets:
    """The sets of one job.

    Attributes:
        em: items about other domains, options without and with the behaviour; `em_name` says which set.
        heldout: in-domain questions held out of training; their options differ by job.
        truth: multiple choice, the true answer first.
        neutral: texts without a question, as items with one option.
        placebo: pairs of equal merit in the two forms of `em`'s sides, to show what form alone moves.
        refusal: mildly harmful requests, with pairs of answers, the one that declines first; `twins`: their harmless twins, in the same order.
        control_heldout: the control's own task, held out, where it is read apart.
        behaviour: what `em` measures, and the names of its `options`, without and with it.
    """

    em: tuple[Item, ...]
    em_name: str
    heldout: tuple[Item, ...]
    truth: tuple[Item, ...]
    neutral: tuple[Item, ...] = ()
    placebo: tuple[Item, ...] = ()
    behaviour: str = bundled.MISALIGNMENT
    options: tuple[str, ...] = ("aligned", "misaligned")
    control_heldout: tuple[Item, ...] = ()
    refusal: tuple[Item, ...] = ()
    twins: tuple[Item, ...] = ()

    def of(self, name: str) -> tuple[Item, ...]:
        """Return a set by its name in the tables."""
        return {
            EM: self.em,
            PLACEBO: self.placebo,
            HELDOUT: self.heldout,
            CONTROL_HELDOUT: self.control_heldout,
            TRUTH: self.truth,
            NEUTRAL: self.neutral,
            REFUSAL: self.refusal,
            TWINS: self.twins,
        }[name]

    def digest(self, *names: str) -> str:
        """Short digest of every text in the sets of these names; of all sets without any."""
        return short([[i.id, i.question, list(i.options)] for name in names or EVERY for i in self.of(name)])


def study_sets(measure: MeasureSpec, domain: str | None, seed: int = 0) -> ItemSets:
    """Draw the sets of a study: bundled or from files, subsets stratified and fixed by `seed`."""
    named = measure.items in bundled.SETS
    em = bundled.items(measure.items) if named else read_items(Path(measure.items))
    if len(em) < FEWEST:
        raise InputError(
            f"'{measure.items}' holds {len(em)} item{'s' * (len(em) != 1)}",
            "give three or more: an interval needs the spread between items",
        )
    heldout = stratified(bundled.heldout(domain), measure.heldout, seed, cover=False, name="heldout") if domain else []
    refusal, twins = _refusal(measure, seed)
    truth = [] if measure.truth == 0 else even(bundled.truth(), measure.truth, "truth")
    return ItemSets(
        tuple(stratified(em, measure.count, seed)),
        measure.items if named else Path(measure.items).name,
        tuple(heldout),
        tuple(truth),
        tuple(_neutral(measure.neutral)),
        tuple(_placebo(measure, len(em), seed) if named else ()),
        bundled.SETS[measure.items].behaviour if named else bundled.MISALIGNMENT,
        bundled.SETS[measure.items].answers if named else ("aligned", "misaligned"),
        refusal=refusal,
        twins=twins,
    )


def _placebo(measure: MeasureSpec, items: int, seed: int) -> list[Item]:
    """Return placebo pairs of a bundled set, no more than it has items to read unless told."""
    pairs = bundled.placebo(measure.items)
    wanted = measure.placebo if measure.placebo is not None else (measure.count or items)
    note_fewer(measure.placebo, len(pairs), "placebo", "pairs")
    return stratified(pairs, min(wanted, len(pairs)), seed) if pairs and wanted else []


def _refusal(measure: MeasureSpec, seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Return harmful requests and their twins."""
    if measure.refusal == 0:
        return (), ()
    requests, twins = bundled.refusal()
    kept = stratified(requests, measure.refusal, seed, cover=False, name="refusal")
    twin = {t.id: t for t in twins}
    return tuple(kept), tuple(twin[r.id] for r in kept)


def _neutral(count: int | None) -> list[Item]:
    texts = [Item(f"generic-{n}", "neutral", "", (text,)) for n, text in enumerate(bundled.texts(), 1)]
    return [] if count == 0 else even(texts, count, "neutral", "texts")


def heldout_from(conversations: Sequence[Conversation]) -> tuple[Item, ...]:
    """Return a user's held-out conversations as items with one option: the answer that was to be learned.

    Raises:
        InputError: a conversation is more than a question and an answer.
    """
    for c in conversations:
        if [m.role for m in c.messages] != ["user", "assistant"]:
            raise InputError(
                f"held-out conversation '{c.id}' has the turns {', '.join(m.role for m in c.messages)}",
                "give one question and one answer per row, and a system prompt with `system`",
            )
    return tuple(
        Item(f"{n}-{c.id}", "heldout", c.messages[-2].content, (c.messages[-1].content,), "AB"[n % 2])
        for n, c in enumerate(conversations)
    )


def sample_questions(sets: ItemSets, count: int) -> tuple[str, ...]:
    """Return questions to sample answers to, one from each of the first categories."""
    first = {i.category: i.question for i in reversed(sets.em)}
    return tuple(first[c] for c in sorted(first))[:count]
