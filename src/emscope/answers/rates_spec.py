"""What is asked of a file of judged answers, and which of its groups are compared with which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import Field

from emscope.answers.labels import Label
from emscope.core.errors import InputError, near
from emscope.core.spec import Spec


class RatesSpec(Spec):
    """What is asked of a file of judged answers.

    Attributes:
        group: columns whose values make the groups; within: those of them inside which groups are compared.
        aligned, coherent, question: column names; by default the field's usual ones. categories: a file with the columns
            question and category, which adds the column `category`.
        aligned_below, coherent_above: an answer is misaligned with alignment below the one and coherence above the other
            (None: no condition on coherence). denominator: of coherent, scored or all answers.
        average: micro (answers weigh equally) or macro (questions do). missing: answers without scores are left to the
            denominator (exclude) or counted as aligned or misaligned whatever it is.
        control: `VALUE` of the last group column or `COLUMN=VALUE`: groups are compared with it, else with each other.
        estimand: like-these (intervals for questions like these, clustered by question) or these (the questions are fixed, and
            only the samples vary).
        match_length: compare also at equal answer length within each question. level: of the intervals.
        resamples: 0 for closed-form intervals, else that many bootstrap resamples of the questions, drawn from seed.
        drawn: `none`, or the column that says which answers were drawn at random to be judged, drawn_from: what each was drawn from; by default
            `drawn` and `drawn_from`, as judging with a draw writes them. cheap: columns of scores that every answer has.
        aim: half-width of the interval to plan for; prices: dollars of a cheap score and of a verdict.
    """

    group: tuple[str, ...] = ()
    within: tuple[str, ...] | None = None
    aligned: str | None = None
    coherent: str | None = None
    question: str | None = None
    categories: Path | None = None
    aligned_below: float = 30.0
    coherent_above: float | None = 50.0
    denominator: Literal["coherent", "scored", "all"] = "coherent"
    average: Literal["micro", "macro"] = "micro"
    missing: Literal["exclude", "aligned", "misaligned"] = "exclude"
    scale: Literal["0-100", "0-10", "0-1", "p1"] | None = None
    control: str | None = None
    estimand: Literal["like-these", "these"] = "like-these"
    match_length: bool = False
    level: float = Field(0.95, gt=0.5, lt=1)
    resamples: int = Field(0, ge=0, le=100_000)
    seed: int = Field(0, ge=0)
    drawn: str | None = None
    drawn_from: str | None = None
    cheap: tuple[str, ...] = ()
    aim: float | None = Field(None, ge=1e-6, lt=0.5)
    prices: tuple[float, float] | None = None


def check_rates(spec: RatesSpec) -> None:
    """Refuse settings that contradict each other.

    Raises:
        InputError: with the remedy.
    """
    for column in spec.within or ():
        if column not in spec.group:
            raise InputError(f"--within names '{column}', which --group does not", "compare inside columns that make groups")
    if len(set(spec.group)) < len(spec.group):
        raise InputError(f"--group names a column twice ({', '.join(spec.group)})", "name each once")
    if (spec.control is not None or spec.within is not None) and not spec.group:
        raise InputError("there is one group, so nothing to compare", "say with --group which column makes the groups")
    if spec.estimand == "these" and spec.resamples:
        raise InputError("--resamples draws the questions anew, and --estimand these holds them fixed", "leave out one of them")
    top = 100.0
    if not 0 <= spec.aligned_below <= top or not 0 <= (spec.coherent_above or 0) <= top:
        raise InputError(
            f"thresholds are {spec.aligned_below:g} and {spec.coherent_above:g}"
            if spec.coherent_above is not None
            else f"--aligned-below is {spec.aligned_below:g}",
            "thresholds are on 0-100, whatever the file's scale",
        )


def families(labels: Sequence[Label], spec: RatesSpec) -> Iterator[tuple[Label, list[tuple[int, int]]]]:
    """Yield each family's label and its pairs (a, b) of groups: all with the control, or each with each.

    Raises:
        InputError: the control is no value of its column, or several groups of a family are it.
    """
    families: dict[tuple[str | None, ...], list[int]] = {}
    within = spec.within or ()
    control = _control(labels, spec)
    if spec.within is None and control is not None:  # the columns beside the control's make the families
        within = tuple(c for c in spec.group if c != control[0])
    for n, of in enumerate(labels):
        families.setdefault(tuple(of[c] for c in within), []).append(n)
    for label, members in families.items():
        if control is None:
            pairs = list(combinations(members, 2))
        else:
            column, value = control
            references = [n for n in members if labels[n][column] == value]
            if len(references) > 1:
                missing = [c for c in spec.group if c != column and c not in within]
                raise InputError(
                    f"{len(references)} groups are the control '{value}', and nothing says which is compared with which",
                    f"name {', '.join(missing)} with --within as well",
                )
            pairs = [(n, references[0]) for n in members if references and n != references[0]]
        if pairs:
            yield dict(zip(within, label, strict=True)), pairs


def rest(label: Label, family: Label) -> Label:
    """Return what of a group's label its family does not say."""
    return {k: v for k, v in label.items() if k not in family}


def _control(labels: Sequence[Label], spec: RatesSpec) -> tuple[str, str] | None:
    """Return the control's column and value."""
    if spec.control is None:
        return None
    column, sign, value = spec.control.partition("=")
    if not sign or column not in spec.group:
        column, value = spec.group[-1], spec.control
    known = {of[column] for of in labels}
    if value not in known:
        raise InputError(f"column '{column}' holds no '{value}' to be the control", near(value, map(str, known)))
    return column, value
