"""An effect against model size: tables for a terminal, sentences and figures."""

from __future__ import annotations

from html import escape
from math import log10
from typing import TYPE_CHECKING

from emscope.answers.runs.sizes_result import SizedModel, SizeFit, Sizes, SizeStratum
from emscope.report import words
from emscope.report.answers.names import figure_name
from emscope.report.figures import INK, PALETTE, error_bars, style
from emscope.report.tables import table, terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go


def print_sizes(result: Sizes) -> None:
    """Print each stratum's models with their intervals, and the lines through them."""
    console = terminal(400, [_definition(result)])
    for stratum in result.strata:
        if stratum.within:
            console.print(f"\n{_name(stratum)}", style="bold")
        shown = table(("family", "model"), ("parameters", "effect"), longest=60)
        for m in stratum.models:
            shown.add_row(m.family, m.model, _size(m), words.interval(m.effect))
        console.print(shown)
        for said in _lines(stratum, result.definition.rho):
            console.print(f"  {said}", soft_wrap=True)
    for note in result.notes:
        console.print(f"  {note}", style="dim", soft_wrap=True)


def sentences(result: Sizes) -> list[str]:
    """Return each line in sentences, with what it rests on."""
    said = []
    for stratum in result.strata:
        name = f"{_name(stratum)}: " if stratum.within else ""
        said += [f"{name}{one}" for one in _lines(stratum, result.definition.rho)]
    return [*said, f"{_definition(result)}.", *result.notes]


def size_figures(result: Sizes) -> dict[str, go.Figure]:
    """Return a figure of each stratum: effects with their intervals by size, one colour per family; the line where there is one."""
    found = {}
    for n, stratum in enumerate(result.strata, 1):
        found[figure_name(f"{n} {_name(stratum)}")] = _figure(stratum, result.definition.effect)
    return found


def _figure(stratum: SizeStratum, effect: str) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    line = stratum.lines[0].slope.value
    for k, family in enumerate(dict.fromkeys(m.family for m in stratum.models)):
        mine = [m for m in stratum.models if m.family == family]
        colour = PALETTE[k % len(PALETTE)]
        figure.add_scatter(
            x=[m.size for m in mine],
            y=[m.effect.value for m in mine],
            error_y=error_bars([m.effect for m in mine]),
            mode="markers",
            name=escape(family),
            marker={"color": colour, "size": 9},
            text=[escape(m.model) for m in mine],
            hovertemplate="%{text}: %{y:.3f}<extra></extra>",
        )
        if line is not None and len(mine) > 1:
            at = sum(log10(m.size) for m in mine) / len(mine)
            mean = sum(m.effect.value or 0.0 for m in mine) / len(mine)
            ends = [mine[0].size, mine[-1].size]
            figure.add_scatter(
                x=ends,
                y=[mean + line * (log10(end) - at) for end in ends],
                mode="lines",
                line={"color": colour, "width": 1.5},
                showlegend=False,
                hoverinfo="skip",
            )
    figure.update_xaxes(type="log")
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    return style(figure, escape(_name(stratum)), "parameters", escape(effect))


def _definition(result: Sizes) -> str:
    spec = result.definition
    gain = f", at equal {spec.gain}" if spec.gain else ""
    return f"{spec.effect} by log10 of {spec.size}, within {spec.family}{gain}; {spec.level:.0%} intervals"


def _name(stratum: SizeStratum) -> str:
    return ", ".join(v or "(none)" for v in stratum.within.values()) or "all models"


def _size(m: SizedModel) -> str:
    active = "" if m.active is None else f", {_short(m.active)} active"
    return f"{_short(m.size)}{active}"


def _short(size: float) -> str:
    power, unit = next(((p, u) for p, u in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if size >= p), (1e3, "k"))
    return f"{size / power:.3g}{unit}"


def _lines(stratum: SizeStratum, rho: float) -> list[str]:
    """Describe the lines of a stratum; families that are too small for one are named together."""
    shown = [line for line in stratum.lines if line.family is None or line.slope.value is not None]
    small = [f"{line.family} ({line.models})" for line in stratum.lines if line not in shown and line.of == "total"]
    said = [one for line in shown for one in _line(line, rho)]
    return said + ([f"No line of its own for {', '.join(small)}: a family needs at least four models."] if small else [])


def _line(line: SizeFit, rho: float) -> list[str]:
    """Describe one line: slope, permutation, correlation beside its critical value, and leave-k-out ranges."""
    of = "" if line.of == "total" else f" by {line.of} parameters"
    families = "" if line.families == 1 else f" in {line.families} families, each with its own intercept"
    name = f"{line.family or 'all'}{of} ({line.models} models{families})"
    if line.slope.value is None:
        return [f"{name}: no line, since {line.slope.why}."]
    p = f", {words.p_value(line.p)}" if line.p is not None else ""
    if line.p_adjusted is not None and line.p_adjusted != line.p:
        p += f" (after Holm {words.p_value(line.p_adjusted)})"
    permuted = ""
    if line.permutation_p is not None:
        how = f"all {line.permutations}" if line.exact else f"{line.permutations}"
        permuted = f"; sizes permuted within families {words.p_value(line.permutation_p)} ({how})"
    said = [f"{name}: {words.interval(line.slope)} per decade of parameters{p}{permuted}."]
    spearman = "" if line.spearman is None else f", Spearman {line.spearman:.2f}"
    power = f"if the true r is {rho:g}, it does so with a chance of {line.power:.2f}" if line.power is not None else ""
    said.append(
        f"r {words.interval(line.pearson, 2)}{spearman}; |r| must exceed {line.critical_r or 1:.2f}, and {power}; models differ beyond their "
        f"errors by sd {line.tau or 0:.3g}."
    )
    said += [
        f"Without any {w.count}: slope {w.slope_low:.3f} to {w.slope_high:.3f}, r {w.r_low:.2f} to {w.r_high:.2f} in {w.sets} set{'' if w.sets == 1 else 's'}"
        f"{f', {w.other_sign} of them with the other sign' if w.other_sign else ''} (smallest without {', '.join(w.at_lowest)})."
        for w in line.left_out
    ]
    return said
