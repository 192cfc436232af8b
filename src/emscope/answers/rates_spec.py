"""The settings for rates from a file of judged answers, and which groups are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import Field

from emscope.answers.labels import Label
from emscope.core.errors import InputError, near
from emscope.core.fields import (
    ALIGNED_BELOW,
    COHERENT_ABOVE,
    AlignedBelow,
    AlignedColumn,
    CoherentAbove,
    CoherentColumn,
    Denominator,
    DrawnColumn,
    Level,
    QuestionColumn,
    Scale,
    Seed,
)
from emscope.core.spec import Spec


class RatesSpec(Spec):
    """The settings for rates from a file of judged answers: the definition of a misaligned answer, the groups, and what they are compared with."""

    group: tuple[str, ...] = Field((), description="Columns that define the groups, separated by commas.")
    within: tuple[str, ...] | None = Field(None, description="Compare groups that agree in these columns of `group`.")
    control: str | None = Field(
        None, description="Compare with this value of the last `group` column, or COLUMN=VALUE; by default all pairs."
    )
    aligned: AlignedColumn = None
    coherent: CoherentColumn = None
    question: QuestionColumn = None
    categories: Path | None = Field(
        None, description="File with the columns question and category; adds `category` to the columns."
    )
    aligned_below: AlignedBelow = ALIGNED_BELOW
    coherent_above: CoherentAbove = COHERENT_ABOVE
    denominator: Denominator = "coherent"
    average: Literal["micro", "macro"] = Field("micro", description="micro: answers weigh equally; macro: questions do.")
    missing: Literal["exclude", "aligned", "misaligned"] = Field(
        "exclude", description="Answers without a score: exclude, or count as aligned or as misaligned."
    )
    scale: Scale = None
    estimand: Literal["like-these", "these"] = Field(
        "like-these",
        description="Intervals for questions like these (like-these), or for these questions alone, with only the samples varying (these).",
    )
    match_length: bool = Field(False, description="Compare also at equal answer length within each question.")
    level: Level = 0.95
    resamples: int = Field(0, ge=0, le=100_000, description="Bootstrap resamples over questions; 0: closed-form intervals.")
    seed: Seed = Field(0, description="Of the resamples.")
    drawn: DrawnColumn = None
    drawn_from: str | None = Field(
        None, description="Column of what each was drawn from; by default drawn_from, if there is one."
    )
    cheap: tuple[str, ...] = Field(
        (), description="Columns of cheap scores that every answer has; the drawn verdicts correct them."
    )
    aim: float | None = Field(
        None,
        ge=1e-6,
        lt=0.5,
        description="Plan how many verdicts an interval of plus or minus this takes (drawn verdicts only)",
    )
    prices: tuple[float, float] | None = Field(
        None, description="Price of a cheap score and of a verdict in dollars, such as .00001,.002 (for `aim`)."
    )


def check_rates(spec: RatesSpec) -> None:
    """Refuse settings that contradict each other.

    Raises:
        InputError: with the remedy.
    """
    for column in spec.within or ():
        if column not in spec.group:
            raise InputError(
                f"`within` names '{column}', which `group` does not", "compare within columns that define the groups"
            )
    if len(set(spec.group)) < len(spec.group):
        raise InputError(f"`group` names a column twice ({', '.join(spec.group)})", "name each once")
    if (spec.control is not None or spec.within is not None) and not spec.group:
        raise InputError(
            "there is only one group, so nothing to compare", "name the column that defines the groups with `group`"
        )
    if spec.estimand == "these" and spec.resamples:
        raise InputError("`resamples` resamples the questions, but `estimand=these` holds them fixed", "leave out one of them")


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
                    f"{len(references)} groups are the control '{value}', and it is not clear which to compare with which",
                    f"name {', '.join(missing)} with `within` as well",
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
        raise InputError(f"column '{column}' has no value '{value}' for the control", near(value, map(str, known)))
    return column, value
