"""Planned power: a table for a terminal, sentences, and power curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emscope.answers.planning.power_result import PlannedDesign, PowerPlan
from emscope.report import words
from emscope.report.figures import MUTED, PALETTE, style
from emscope.report.tables import table, terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go


def print_power(plan: PowerPlan) -> None:
    """Print the variance components, a row per design, and the designs that were asked for."""
    console = terminal(400, _vary(plan))
    shown = table((), ("seeds", "questions", "samples", "answers", "± control", "± base", "em", "safe", ""))
    digits = _digits(plan)
    for d in _efficient(plan):
        base = words.number(d.half_width_base, digits)
        mark = " ".join(name for name, one in (("best", plan.best), ("cheapest", plan.cheapest)) if one is d)
        sizes = (str(n) for n in (d.seeds, d.questions, d.samples, d.answers))
        shown.add_row(*sizes, words.number(d.half_width, digits), base, f"{d.em:.2f}", f"{d.safe:.2f}", mark)
    console.print(shown)
    console.print(f"  designs that no cheaper one matches, of {len(plan.designs)} (all with --json)", style="dim")
    for line in (*_answers(plan), *_limits(plan), *plan.notes):
        console.print(f"  {line}", soft_wrap=True)


def sentences(plan: PowerPlan) -> list[str]:
    """Return the designs that were asked for, what only more seeds could improve, and the assumptions."""
    every = _answers(plan) or [_design(d, plan) for d in _efficient(plan)]
    return [*every, *_limits(plan), *_vary(plan), *plan.notes]


def power_figures(plan: PowerPlan) -> dict[str, go.Figure]:
    """Return power curves: the chance of em by the number of questions, a line for each number of seeds and answers."""
    import plotly.graph_objects as go

    figure = go.Figure()
    lines = sorted({(d.seeds, d.samples) for d in plan.designs})
    dashes = ("solid", "dash", "dot", "dashdot")
    seeds, samples = sorted({s for s, _ in lines}), sorted({n for _, n in lines})
    for s, n in lines:
        mine = sorted((d for d in plan.designs if (d.seeds, d.samples) == (s, n)), key=lambda d: d.questions)
        figure.add_scatter(
            x=[d.questions for d in mine],
            y=[d.em for d in mine],
            name=f"{s} seeds, {n} answers each",
            mode="lines+markers",
            line={"color": PALETTE[seeds.index(s) % len(PALETTE)], "dash": dashes[samples.index(n) % len(dashes)]},
            customdata=[(d.answers, d.half_width) for d in mine],
            hovertemplate="%{x} questions, %{customdata[0]} answers: %{y:.2f}, ±%{customdata[1]:.3g}<extra></extra>",
        )
    figure.add_hline(y=plan.definition.spec.power or 0.8, line={"color": MUTED, "dash": "dash", "width": 1})
    figure.update_yaxes(range=[0, 1])
    d = plan.definition
    return {"power": style(figure, f"chance of em if the effect is {d.true_effect:g}", "questions", "power")}


def _efficient(plan: PowerPlan) -> list[PlannedDesign]:
    """Return, by cost, the designs whose less likely verdict no cheaper one matches, and those that were asked for."""
    found, reached = [], -1.0
    for d in plan.designs:
        chance = min(d.em, d.safe)
        if chance > reached or d is plan.best or d is plan.cheapest:
            found.append(d)
        reached = max(reached, chance)
    return found


def _answers(plan: PowerPlan) -> list[str]:
    spec, said = plan.definition.spec, []
    if spec.budget is not None:
        within = f"Within {spec.budget} answers"
        said.append(f"{within} the best of these: {_design(plan.best, plan)}" if plan.best else f"{within} none of these fits.")
    if spec.power is not None or spec.aim is not None:
        power = f"a chance of {spec.power:g}" if spec.power is not None else ""
        aim = f"plus or minus {spec.aim:g}" if spec.aim is not None else ""
        wanted = " and ".join(one for one in (power, aim) if one)
        said.append(
            f"The cheapest of these with {wanted}: {_design(plan.cheapest, plan)}"
            if plan.cheapest
            else f"None of these has {wanted}: try more seeds, questions or samples."
        )
    return said


def _design(d: PlannedDesign, plan: PowerPlan) -> str:
    return (
        f"{d.seeds} seeds x {d.questions} questions x {d.samples} answer{'' if d.samples == 1 else 's'} ({d.answers} in all) finds em with a chance of {d.em:.2f}, safe "
        f"with {d.safe:.2f}; control - target is known to ±{words.number(d.half_width, _digits(plan))}."
    )


def _limits(plan: PowerPlan) -> list[str]:
    told = ", ".join(f"{one.seeds} seeds {min(one.em, one.safe):.2f}" for one in plan.limits)
    helps = "more seeds help" if plan.components.judge_error_sd is None else "more seeds and a better judge help"
    return [f"With a thousand questions and answers the chance is {told}: beyond that only {helps}."]


def _vary(plan: PowerPlan) -> list[str]:
    d, c, digits = plan.definition, plan.components, _digits(plan)

    def sd(value: float) -> str:
        return f"{value:.{digits}f}".rstrip("0").rstrip(".") if value else "0"

    parts = "; ".join(
        f"{p.contrast}: {sd(p.seed_sd)} between seeds, {sd(p.question_sd)} between questions, {sd(p.seed_question_sd)} of what a seed does to "
        "single questions"
        for p in c.contrasts
    )
    correlation = f", correlation {c.correlation:.2f}" if len(c.contrasts) > 1 else ""
    return [
        f"Threshold {d.threshold:g}; em: both contrasts truly {d.true_effect:g}, safe: both 0; one-sided {d.level:.0%} bounds."
        if len(c.contrasts) > 1
        else f"Threshold {d.threshold:g}; em: control - target truly {d.true_effect:g}, safe: 0; one-sided {d.level:.0%} bounds.",
        f"Standard deviations: {parts}; answers to one question {sd(c.sampling_sd)}{correlation}.",
        words.sentence(c.source),
    ]


def _digits(plan: PowerPlan) -> int:
    return 1 if plan.definition.threshold >= 1 else 3
