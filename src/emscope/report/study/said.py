"""What checkpoints say: sentences, the figure of alignment against coherence, the worst answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emscope.report.figures import COLOURS, PALETTE, error_bars, style
from emscope.report.study.headline import verdict_words
from emscope.report.words import interval, number, sentence
from emscope.study.decision.opinions import Judged, JudgesAgreement, Opinion
from emscope.study.decision.said import Dated, Place, Said, SaidByArm, Spoken
from emscope.study.report import Report

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_CATEGORIES = 8  # in a sentence


def sentences(report: Report, run: str) -> list[str]:
    """Return what a run's last checkpoint says by the first judge, in sentences, first the verdict; [] where none has read it."""
    judged, one = report.judged, report.said_of(run)
    if judged is None or one is None:
        return []
    judge = judged.first
    arms = {(a.run, a.step): a for a in judge.arms}
    mine = arms[(run, one.step)]
    found = [sentence(verdict_words(one.verdict, at=f" at step {one.step}, judging by its answers"))]
    if one.why:
        found.append(sentence(one.why))
    asked = mine.aligned.clusters
    found.append(
        f"At equal coherence, its mean alignment is {_points(one)} (scale 0 to 100, 95 % intervals over "
        f"{asked} questions{_judge_error(one)}). The harm threshold is {judged.delta:g} points."
    )
    dated = next((d for d in judge.dated if d.run == run), None)
    means = ", ".join(f"{a.run} {number(a.aligned.value, 0)} ({number(a.coherent.value, 0)})" for a in _beside(one, arms))
    return [
        *found,
        *_power(one, asked),
        *_reach(one),
        *([_dated(dated)] if dated else []),
        f"Mean alignment (coherence): {means}; {mine.answers} answers each, judged by {judge.judge}.",
        *_conditioned(judge, run),
        *_others(judged, run),
    ]


def _points(one: Said) -> str:
    """Return how far a checkpoint lies below control and base at equal coherence, as the middle of a sentence."""
    found = [
        f"{interval(c.adjusted, 1)} points below its {name.split(' - ')[0]}'s"
        for name, c in one.contrasts.items()
        if name.endswith("- target")
    ]
    return " and ".join(found)


def _judge_error(one: Said) -> str:
    """Return how far this judge is off on differences of whole models, as the end of a bracket; "" where that is not known."""
    errors = [c.judge_error for name, c in one.contrasts.items() if name.endswith("- target") and c.judge_error]
    if not errors:
        return ""
    told = " and ".join(dict.fromkeys(f"{e:.1f}" for e in errors))
    return f"; they include the judge's own error on whole models, standard deviation {told} points"


def _reach(one: Said) -> list[str]:
    """Return the effect by category of question, which says how far it reaches; [] where there is one category, or very many."""
    name, contrast = next(iter(one.contrasts.items()), ("", None))
    parts = contrast.by_category if contrast else {}
    if not 1 < len(parts) <= MOST_CATEGORIES:
        return []
    told = ", ".join(f"{category} {interval(e, 1)}" for category, e in parts.items())
    return [f"By kind of question, points below its {name.split(' - ')[0]}'s: {told}."]


def _conditioned(judge: Opinion, run: str) -> list[str]:
    """Return what a run's last checkpoint says under each further condition."""
    found = []
    for under in judge.conditions:
        one = under.last_of(run)
        if one is None:
            found.append(sentence(f"under {under.condition}: no answer could be compared"))
            continue
        rate = next((r.rate for r in under.rates if (r.run, r.step) == (run, one.step)), None)
        told = "; ".join(part for part in (verdict_words(one.verdict), _points(one)) if part)
        found.append(sentence(f"under {under.condition}: {told}; rate of misaligned answers {interval(rate, 2)}"))
    return found


def _others(judged: Judged, run: str) -> list[str]:
    """Return what each further judge says of a run's last checkpoint, and how it agrees with the first."""
    found = []
    for other in judged.judges[1:]:
        one = other.last_of(run)
        verdict = verdict_words(one.verdict) if one else "no verdict"
        names = (judged.first.judge, other.judge)
        agreed = next((_agreed(one) for one in judged.agreement if one.judges == names), "")
        found.append(sentence(f"judged by {other.judge}: {verdict}{agreed}"))
    return found


def _agreed(one: JudgesAgreement) -> str:
    """Return how two judges agree, as the end of a sentence; "" where neither measure is defined."""
    known = {"Spearman's rho": one.spearman, "kappa (misaligned or not)": one.kappa}
    parts = [f"{name} {interval(e, 2)}" for name, e in known.items() if e.value is not None]
    return f"; its agreement with {one.judges[0]} on {one.answers} answers: {' and '.join(parts)}" if parts else ""


def _dated(found: Dated) -> str:
    onset, stop = found.onset, found.stop
    began = (
        f"misalignment began after step {onset.after} and by step {onset.by} (90 % bracket over all judged checkpoints)"
        if onset
        else "no onset is shown (by 90 % bounds that hold for all judged checkpoints at once)"
    )
    safe = f"The last checkpoint shown safe is step {stop}" if stop is not None else "No checkpoint is shown safe"
    return f"Judging by its checkpoints' answers, {began}. {safe}."


def _power(one: Said, asked: int) -> list[str]:
    """Return what this many questions could find, and how many would be enough."""
    if one.power is None:
        return []
    more = f"; about {one.enough} questions would give 80 %" if (one.enough or 0) > asked else ""
    if one.enough is None and _judge_error(one):
        more = "; no number of questions would give 80 %, because the judge's own error on whole models does not shrink"
    return [f"A 10-point difference would have been detected with at least {100 * one.power:.0f} % power{more}."]


def _beside(one: Said, arms: dict[Place, SaidByArm]) -> list[SaidByArm]:
    """Return the rows of base, control and the checkpoint itself, of those that were judged."""
    return [arms[place] for place in _roles(one) if place in arms]


def _roles(one: Said) -> dict[Place, str]:
    control = {(one.control, one.step): "control"} if one.control else {}
    return {("base", 0): "base", **control, (one.run, one.step): "target"}


@dataclass(frozen=True, slots=True)
class WorstAnswer:
    """A question and the answers to it."""

    asked: str
    rows: list[tuple[str, Spoken]]


def worst_answers(judge: Opinion | None, run: str) -> list[WorstAnswer]:
    """Return a run's worst coherent answers, each beside those of base and control."""
    return [
        WorstAnswer(
            w.asked, [(n, a) for n, a in (("base", w.base), ("control", w.control), ("target", w.target)) if a is not None]
        )
        for w in (judge.worst if judge else ())
        if w.run == run
    ]


def said_figure(report: Report, run: str) -> go.Figure | None:
    """Draw mean alignment against mean coherence of a run's last checkpoint, its control and its base, with both intervals."""
    import plotly.graph_objects as go

    judge, one = report.judge, report.said_of(run)
    if judge is None or one is None:
        return None
    figure = go.Figure()
    roles = _roles(one)
    for n, row in enumerate(_beside(one, {(a.run, a.step): a for a in judge.arms})):
        role = roles[(row.run, row.step)]
        figure.add_scatter(
            x=[row.coherent.value],
            y=[row.aligned.value],
            error_x={**error_bars([row.coherent]), "thickness": 1.2},
            error_y={**error_bars([row.aligned]), "thickness": 1.2},
            mode="markers+text",
            text=[role],
            textposition="top right",
            marker={"size": 14, "color": COLOURS.get(role, PALETTE[n])},
            name=f"{row.run} ({row.answers} answers)",
            hovertemplate="coherence %{x:.1f}, alignment %{y:.1f}<extra></extra>",
        )
    return style(figure, "", "mean coherence (left: less coherent)", "mean alignment (down: worse for people)")
