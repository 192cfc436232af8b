"""Directions for a terminal and as figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from emscope.inside.direction_results import Band, Cosines, DataRisk, Direction, Dose, Moved, Shift, Steering
from emscope.report import words
from emscope.report.figures import PALETTE, error_bars, style
from emscope.report.tables import table, terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHARE = "share of the activations' length"


def extracted_said(result: Direction) -> list[str]:
    """Return what the direction was made from."""
    made = result.definition.made
    told = (
        f"{made.method} of the difference between two models on {made.positive} texts"
        if made.source.minus is not None
        else f"{made.method} of {made.positive} answers with the behaviour and {made.negative} without"
    )
    return [f"{told}, {'last prompt token' if made.pool == 'last' else 'mean over answer tokens'}"]


def print_extracted(result: Direction) -> None:
    """Print length and reliability of a direction at each layer."""
    console = terminal(200, extracted_said(result))
    shown = table(numbers=("layer", "length", SHARE, "cosine of two halves"))
    for row in result.layers:
        halves = row.halves
        shown.add_row(
            str(row.layer),
            f"{row.norm:.3g}",
            words.number(row.norm / row.residual_norm if row.residual_norm else None, 3),
            f"{halves.mean:.2f} [{halves.low:.2f}, {halves.high:.2f}]" if halves else words.number(None, 2),
        )
    console.print(shown)
    console.print(f"direction file: {result.direction}", soft_wrap=True)


def compared_said(result: Cosines) -> list[str]:
    """Return what cosines of random directions would be."""
    return [f"cosines; random directions of width {result.width}: sd {result.random_sd:.3f}"]


def print_compared(result: Cosines) -> None:
    """Print the cosines of the directions at each layer: with the last one where there are many layers, all pairs at a single one."""
    names, layers = list(words.tails(result.directions).values()), result.layers
    console = terminal(200, compared_said(result))
    shown = table(("layer" if len(layers) > 1 else "direction",))
    if len(layers) > 1:
        pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
        for a, b in pairs:
            shown.add_column(f"{names[a]}, {names[b]}", justify="right")
        for row in layers:
            shown.add_row(str(row.layer), *(f"{row.cosines[a][b]:.2f}" for a, b in pairs))
    else:
        for name in names:
            shown.add_column(name, justify="right")
        for name, values in zip(names, layers[0].cosines, strict=True):
            shown.add_row(name, *(f"{v:.2f}" for v in values))
    console.print(shown)


def steered_said(result: Steering) -> list[str]:
    """Return what an effect and a band are."""
    effect = result.definition.effect
    return [f"effect: {effect}, above 0 is towards the behaviour; bands: range of null directions"]


def print_steered(result: Steering) -> None:
    """Print the effect at each place and strength beside the bands of null directions."""
    kinds = list(result.doses[0].nulls)
    console = terminal(200, steered_said(result))
    shown = table(numbers=("layer", "scale", "effect", *kinds, "neutral text", "KL on it", "truth"))
    for dose in result.doses:
        shown.add_row(
            _layers(dose.layers),
            "out" if dose.scale is None else f"{dose.scale:g}",
            words.interval(dose.effect, 3),
            *_bands(dose.nulls, kinds),
            *(words.interval(e, 3) for e in (dose.neutral, dose.neutral_kl, dose.truth)),
        )
    console.print(shown)


def _bands(nulls: Mapping[str, Band], kinds: Sequence[str]) -> list[str]:
    return [f"{nulls[kind].low:.3f} to {nulls[kind].high:.3f}" for kind in kinds]


def _layers(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers)) if len(layers) <= 4 else f"{layers[0]} to {layers[-1]} ({len(layers)})"


NULL_COLOURS = {"isotropic": "#6b7280", "matched": "#2563eb", "permuted": "#b6900a", "control": "#0f766e"}


def dose_figures(result: Steering) -> dict[str, go.Figure]:
    """Return the effect with its interval over strength at each place, or over layers where nothing has a strength, beside the bands."""
    by_place: dict[str, list[Dose]] = {}
    for dose in result.doses:
        by_place.setdefault("" if dose.scale is None else _layers(dose.layers), []).append(dose)
    titles = {place: f"layer {place}" if place else "taken out" for place in by_place}
    return {_file_name(titles[place]): _dose(doses, titles[place]) for place, doses in by_place.items()}


def _file_name(title: str) -> str:
    return re.sub(r"\W+", "-", title).strip("-")


def _dose(doses: Sequence[Dose], title: str) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    strength = doses[0].scale is not None
    x = [dose.scale if strength else _layers(dose.layers) for dose in doses]
    _null_draws(figure, [(place, dose.nulls) for place, dose in zip(x, doses, strict=True)], opacity=0.55)
    figure.add_scatter(
        x=x,
        y=[dose.effect.value for dose in doses],
        error_y=error_bars([dose.effect for dose in doses]),
        mode="lines+markers" if strength else "markers",
        name="direction",
        line={"color": "#c2410c"},
        marker={"size": 9},
    )
    figure.add_hline(y=0, line={"color": "#6b7280", "width": 1})
    return style(figure, title, "scale" if strength else "layer", "towards the behaviour [nats per token]")


def _null_draws(figure: go.Figure, points: Sequence[tuple[float | str | None, Mapping[str, Band]]], *, opacity: float) -> None:
    """Add what null directions do at each place, one trace per kind."""
    for kind, colour in NULL_COLOURS.items():
        drawn = [(place, draw) for place, nulls in points if kind in nulls for draw in nulls[kind].draws]
        if drawn:
            figure.add_scatter(
                x=[place for place, _ in drawn],
                y=[draw for _, draw in drawn],
                mode="markers",
                name=kind,
                marker={"color": colour, "size": 7, "opacity": opacity, "symbol": "line-ew-open"},
            )


def shift_said(result: Shift) -> list[str]:
    """Return the direction along which models have moved, on how many prompts, and in what unit."""
    return [
        f"moved along {result.direction} on {result.questions} prompts, in lengths of the direction; bands: range of null directions"
    ]


def print_shift(result: Shift) -> None:
    """Print how far each checkpoint has moved along the direction, beside the bands of null directions."""
    kinds, named = list(result.moved[0].nulls), words.tails(m.run for m in result.moved)
    console = terminal(200, shift_said(result))
    shown = table(("run",), ("step", "layer", "moved along", *kinds, "length of the shift", "cosine"))
    for row in result.moved:
        shown.add_row(
            named[row.run],
            str(row.step),
            str(row.layer),
            words.interval(row.along, 3),
            *_bands(row.nulls, kinds),
            f"{row.length:.3g}",
            words.number(row.cosine, 2),
        )
    console.print(shown)


def shift_figures(result: Shift) -> dict[str, go.Figure]:
    """Return the shift along the direction over layers at each run's last checkpoint, and over steps where several were read."""
    rows = result.moved
    last = {run: max(m.step for m in rows if m.run == run) for run in dict.fromkeys(m.run for m in rows)}
    ends, layers = [m for m in rows if m.step == last[m.run]], list(dict.fromkeys(m.layer for m in rows))
    figures = {}
    if len(layers) > 1:
        figures["layers"] = _moved(ends, lambda m: m.layer, "layer", "At the end of each run")
    if len(ends) < len(rows) or not figures:
        for layer in layers:
            mine = [m for m in rows if m.layer == layer]
            figures[f"steps-layer-{layer}"] = _moved(mine, lambda m: m.step, "step", f"Along training, layer {layer}")
    return figures


def _moved(rows: Sequence[Moved], place: Callable[[Moved], int], x: str, title: str) -> go.Figure:
    import plotly.graph_objects as go

    figure, named = go.Figure(), words.tails(m.run for m in rows)
    _null_draws(figure, [(place(m), m.nulls) for m in rows], opacity=0.4)
    for n, run in enumerate(dict.fromkeys(m.run for m in rows)):
        mine = [m for m in rows if m.run == run]
        figure.add_scatter(
            x=[place(m) for m in mine],
            y=[m.along.value for m in mine],
            error_y=error_bars([m.along for m in mine]),
            mode="lines+markers",
            name=named[run],
            line={"color": PALETTE[n % len(PALETTE)]},
        )
    figure.add_hline(y=0, line={"color": "#6b7280", "width": 1})
    return style(figure, title, x, "moved along the direction [its lengths]")


def risk_said(result: DataRisk) -> list[str]:
    """Return the mean projection, and what it is a projection of."""
    own = result.definition.settings.against == "own"
    what = "training answers less the model's own" if own else "training answers"
    return [
        f"mean {words.interval(result.mean, 3)} over {len(result.samples)} samples; {result.share_above_0:.0%} are above 0",
        f"projection on the direction at layer {result.definition.layer}, {what}",
    ]


def print_risk(result: DataRisk, top: int) -> None:
    """Print the mean projection and the samples at both ends."""
    samples, (mean, about) = result.samples, risk_said(result)
    console = terminal(200, [about])
    console.print(mean)
    ends = samples if len(samples) <= 2 * top else [*samples[:top], None, *samples[-top:]]
    shown = table(numbers=("projection",))
    for name in ("sample", "question", "answer"):
        shown.add_column(name, no_wrap=True, overflow="ellipsis", max_width=70)
    for row in ends:
        if row is None:
            shown.add_row("...", "", "", "")
        else:
            shown.add_row(f"{row.projection:.3f}", row.id, " ".join(row.question.split()), " ".join(row.answer.split()))
    console.print(shown)


def cosine_figures(result: Cosines) -> dict[str, go.Figure]:
    """Return cosines by layer with the band of random directions, or as a matrix at a single layer; and between layers."""
    named = words.tails(result.directions)
    names = list(named.values())
    title = "Cosines between directions"
    first = _matrix(result.layers[0].cosines, names, title) if len(result.layers) == 1 else _by_layer(result, names, title)
    between = {
        f"between-layers-{n}": _matrix(
            b.cosines, [str(layer) for layer in b.layers], f"{named.get(name, name)}: cosines between its layers"
        )
        for n, (name, b) in enumerate(result.between_layers.items(), 1)
    }
    return {"cosines": first} | between


def _by_layer(result: Cosines, names: Sequence[str], title: str) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    x = [row.layer for row in result.layers]
    for a in range(len(names)):
        for b in range(a + 1, len(names)):
            y = [row.cosines[a][b] for row in result.layers]
            figure.add_scatter(x=x, y=y, mode="lines+markers", name=f"{names[a]}, {names[b]}")
    reach = 1.96 * result.random_sd
    figure.add_hrect(y0=-reach, y1=reach, fillcolor="#6b7280", opacity=0.15, line_width=0, annotation_text="random, 95 %")
    return style(figure, title, "layer", "cosine")


def _matrix(values: Sequence[Sequence[float]], names: Sequence[str], title: str) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure(go.Heatmap(z=values, x=names, y=names, zmin=-1, zmax=1, colorscale="RdBu", reversescale=True))
    figure.update_yaxes(autorange="reversed")
    return style(figure, title, "", "")
