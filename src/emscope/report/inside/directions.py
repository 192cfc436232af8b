"""Directions for a terminal and as figures."""

from __future__ import annotations

import re
from typing import Any

from emscope.report import words
from emscope.report.figures import PALETTE, error_bars, style

SHARE = "share of the activations' length"


def extracted_said(result: dict[str, Any]) -> list[str]:
    """Return what the direction was made of."""
    d = result["definition"]
    told = (
        f"{d['method']} of what separates two models on {d['with']} texts"
        if "minus" in d["from"]
        else f"{d['method']} of {d['with']} answers with the behaviour and {d['without']} without"
    )
    return [f"{told}, {'last prompt token' if d['pool'] == 'last' else 'mean over answer tokens'}"]


def print_extracted(result: dict[str, Any]) -> None:
    """Print length and reliability of a direction at each layer."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = 200
    for sentence in extracted_said(result):
        console.print(sentence, style="dim", soft_wrap=True)
    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in ("layer", "length", SHARE, "cosine of two halves"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["layers"]:
        halves = row["halves"]
        table.add_row(
            str(row["layer"]),
            f"{row['norm']:.3g}",
            f"{row['norm'] / row['residual_norm']:.3f}" if row["residual_norm"] else words.number(None, 3),
            f"{halves['mean']:.2f} [{halves['low']:.2f}, {halves['high']:.2f}]" if halves else words.number(None, 2),
        )
    console.print(table)
    console.print(f"direction file: {result['direction']}", soft_wrap=True)


def compared_said(result: dict[str, Any]) -> list[str]:
    """Return what cosines of random directions would be."""
    return [f"cosines; random directions of width {result['width']}: sd {result['random_sd']:.3f}"]


def print_compared(result: dict[str, Any]) -> None:
    """Print the cosines of the directions at each layer: with the last one where there are many layers, all pairs at a single one."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = 200
    names, layers = list(words.tails(result["directions"]).values()), result["layers"]
    for sentence in compared_said(result):
        console.print(sentence, style="dim", soft_wrap=True)
    table = Table(box=None, pad_edge=True, header_style="dim")
    table.add_column("layer" if len(layers) > 1 else "direction", no_wrap=True)
    if len(layers) > 1:
        pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
        for a, b in pairs:
            table.add_column(f"{names[a]}, {names[b]}", justify="right")
        for row in layers:
            table.add_row(str(row["layer"]), *(f"{row['cosines'][a][b]:.2f}" for a, b in pairs))
    else:
        for name in names:
            table.add_column(name, justify="right")
        for name, values in zip(names, layers[0]["cosines"], strict=True):
            table.add_row(name, *(f"{v:.2f}" for v in values))
    console.print(table)


def steered_said(result: dict[str, Any]) -> list[str]:
    """Return what an effect and a band are."""
    effect = result["definition"]["effect"]
    return [f"effect: {effect}, above 0 is towards the behaviour; bands: least and most of null directions"]


def print_steered(result: dict[str, Any]) -> None:
    """Print the effect at each place and strength beside the bands of null directions."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = 200
    rows, kinds = result["rows"], list(result["rows"][0]["nulls"])
    for sentence in steered_said(result):
        console.print(sentence, style="dim", soft_wrap=True)
    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in ("layer", "scale", "effect", *kinds, "neutral text", "KL on it", "truth"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        bands = [row["nulls"][k] for k in kinds]
        table.add_row(
            _layers(row["layers"]),
            "out" if row["scale"] is None else f"{row['scale']:g}",
            words.interval(row["effect"], 3),
            *(f"{b['low']:.3f} to {b['high']:.3f}" for b in bands),
            *(words.interval(row[k], 3) if row[k] else words.number(None, 3) for k in ("neutral", "neutral_kl", "truth")),
        )
    console.print(table)


def _layers(layers: list[int]) -> str:
    return ",".join(map(str, layers)) if len(layers) <= 4 else f"{layers[0]} to {layers[-1]} ({len(layers)})"


NULL_COLOURS = {"isotropic": "#6b7280", "matched": "#2563eb", "permuted": "#b6900a", "control": "#0f766e"}


def dose_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Return the effect with its interval over strength at each place, or over layers where nothing has a strength, beside the bands."""
    by_place: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        by_place.setdefault("" if row["scale"] is None else _layers(row["layers"]), []).append(row)
    titles = {place: f"layer {place}" if place else "taken out" for place in by_place}
    return {_file_name(titles[place]): _dose(rows, titles[place]) for place, rows in by_place.items()}


def _file_name(title: str) -> str:
    return re.sub(r"\W+", "-", title).strip("-")


def _dose(rows: list[dict[str, Any]], title: str) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    strength = rows[0]["scale"] is not None
    x = [row["scale"] if strength else _layers(row["layers"]) for row in rows]
    for kind, colour in NULL_COLOURS.items():
        points = [
            (place, draw) for place, row in zip(x, rows, strict=True) for draw in row["nulls"].get(kind, {"draws": []})["draws"]
        ]
        if points:
            figure.add_scatter(
                x=[p for p, _ in points],
                y=[d for _, d in points],
                mode="markers",
                name=kind,
                marker={"color": colour, "size": 7, "opacity": 0.55, "symbol": "line-ew-open"},
            )
    effects = [row["effect"] for row in rows]
    figure.add_scatter(
        x=x,
        y=[e["value"] for e in effects],
        error_y=error_bars(effects),
        mode="lines+markers" if strength else "markers",
        name="direction",
        line={"color": "#c2410c"},
        marker={"size": 9},
    )
    figure.add_hline(y=0, line={"color": "#6b7280", "width": 1})
    return style(figure, title, "scale" if strength else "layer", "towards the behaviour [nats per token]")


def shift_said(result: dict[str, Any]) -> list[str]:
    """Return along what models have moved, on how many prompts, in what unit."""
    return [
        f"moved along {result['direction']} on {result['questions']} prompts, in lengths of the direction; bands: least and most of null directions"
    ]


def print_shift(result: dict[str, Any]) -> None:
    """Print how far each checkpoint has moved along the direction, beside the bands of null directions."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = 200
    rows = result["rows"]
    kinds, named = list(rows[0]["nulls"]), words.tails(r["run"] for r in rows)
    for sentence in shift_said(result):
        console.print(sentence, style="dim", soft_wrap=True)
    table = Table(box=None, pad_edge=True, header_style="dim")
    table.add_column("run", no_wrap=True)
    for name in ("step", "layer", "moved along", *kinds, "length of the shift", "cosine"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        bands = [row["nulls"][k] for k in kinds]
        table.add_row(
            named[row["run"]],
            str(row["step"]),
            str(row["layer"]),
            words.interval(row["along"], 3),
            *(f"{b['low']:.3f} to {b['high']:.3f}" for b in bands),
            f"{row['length']:.3g}",
            words.number(row["cosine"], 2),
        )
    console.print(table)


def shift_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Return the shift along the direction over layers at each run's last checkpoint, and over steps where several were read."""
    rows = result["rows"]
    last = {run: max(r["step"] for r in rows if r["run"] == run) for run in dict.fromkeys(r["run"] for r in rows)}
    ends = [r for r in rows if r["step"] == last[r["run"]]]
    figures = {"layers": _moved(ends, "layer", "At the end of each run")} if len({r["layer"] for r in rows}) > 1 else {}
    if len(ends) < len(rows) or not figures:
        for layer in dict.fromkeys(r["layer"] for r in rows):
            mine = [r for r in rows if r["layer"] == layer]
            figures[f"steps-layer-{layer}"] = _moved(mine, "step", f"Along training, layer {layer}")
    return figures


def _moved(rows: list[dict[str, Any]], x: str, title: str) -> Any:
    import plotly.graph_objects as go

    figure, named = go.Figure(), words.tails(row["run"] for row in rows)
    for kind, colour in NULL_COLOURS.items():
        points = [(row[x], draw) for row in rows for draw in row["nulls"].get(kind, {"draws": []})["draws"]]
        if points:
            figure.add_scatter(
                x=[p for p, _ in points],
                y=[d for _, d in points],
                mode="markers",
                name=kind,
                marker={"color": colour, "size": 7, "opacity": 0.4, "symbol": "line-ew-open"},
            )
    for n, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
        mine = [row for row in rows if row["run"] == run]
        figure.add_scatter(
            x=[row[x] for row in mine],
            y=[row["along"]["value"] for row in mine],
            error_y=error_bars([row["along"] for row in mine]),
            mode="lines+markers",
            name=named[run],
            line={"color": PALETTE[n % len(PALETTE)]},
        )
    figure.add_hline(y=0, line={"color": "#6b7280", "width": 1})
    return style(figure, title, x, "moved along the direction [its lengths]")


def risk_said(result: dict[str, Any]) -> list[str]:
    """Return the mean projection, and what it is a projection of."""
    own = result["definition"]["against"] == "own"
    what = "training answers less the model's own" if own else "training answers"
    return [
        f"mean {words.interval(result['mean'], 3)} over {len(result['samples'])} samples; {result['share_above_0']:.0%} are above 0",
        f"projection on the direction at layer {result['definition']['layer']}, {what}",
    ]


def print_risk(result: dict[str, Any], top: int) -> None:
    """Print the mean projection and the samples at both ends."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = 200
    samples, (mean, about) = result["samples"], risk_said(result)
    console.print(about, style="dim", soft_wrap=True)
    console.print(mean)
    ends = samples if len(samples) <= 2 * top else [*samples[:top], None, *samples[-top:]]
    table = Table(box=None, pad_edge=True, header_style="dim")
    table.add_column("projection", justify="right", no_wrap=True)
    for name in ("sample", "question", "answer"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=70)
    for row in ends:
        if row is None:
            table.add_row("...", "", "", "")
        else:
            table.add_row(f"{row['projection']:.3f}", row["id"], *(" ".join(row[k].split()) for k in ("question", "answer")))
    console.print(table)


def cosine_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Return cosines by layer with the band of random directions, or as a matrix at a single layer; and between layers."""
    import plotly.graph_objects as go

    named = words.tails(result["directions"])
    names = list(named.values())
    layers = result["layers"]
    if len(layers) == 1:
        first = _matrix(layers[0]["cosines"], names, "Cosines between directions")
    else:
        figure = go.Figure()
        x = [row["layer"] for row in layers]
        for a in range(len(names)):
            for b in range(a + 1, len(names)):
                figure.add_scatter(
                    x=x, y=[row["cosines"][a][b] for row in layers], mode="lines+markers", name=f"{names[a]}, {names[b]}"
                )
        reach = 1.96 * result["random_sd"]
        figure.add_hrect(y0=-reach, y1=reach, fillcolor="#6b7280", opacity=0.15, line_width=0, annotation_text="random, 95 %")
        first = style(figure, "Cosines between directions", "layer", "cosine")
    between = {
        f"between-layers-{n}": _matrix(
            b["cosines"], [str(layer) for layer in b["layers"]], f"{named.get(name, name)}: cosines between its layers"
        )
        for n, (name, b) in enumerate(result["between_layers"].items(), 1)
    }
    return {"cosines": first} | between


def _matrix(values: list[list[float]], names: list[str], title: str) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure(go.Heatmap(z=values, x=names, y=names, zmin=-1, zmax=1, colorscale="RdBu", reversescale=True))
    figure.update_yaxes(autorange="reversed")
    return style(figure, title, "", "")
