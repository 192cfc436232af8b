"""Rates of a file as tables for a terminal."""

from __future__ import annotations

from typing import Any

from emscope.report import words

MOST = 60
WIDE = 400  # names of groups are long; a narrow terminal wraps lines, not cells


def print_rates(result: dict[str, Any]) -> None:
    """Print the definition, a row for each group and each contrast, and the notes."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.width = WIDE
    console.print(_definition(result), style="dim", soft_wrap=True)
    console.print(_drawn_groups(result) if "drawn" in result["definition"] else _groups(result))
    if len(result["groups"]) > MOST:
        console.print(f"  ... and {len(result['groups']) - MOST} more groups; --json prints all", style="dim")
    if result["contrasts"]:
        console.print("\nDifferences, corrected by Holm within each family", style="bold")
        console.print(_contrasts(result["contrasts"]))
        if any(row["matched"] for row in result["contrasts"]):
            console.print("  * at equal length within each question, which training itself may change", style="dim")
        if len(result["contrasts"]) > MOST:
            console.print(f"  ... and {len(result['contrasts']) - MOST} more; --json prints all", style="dim")
    whys = [e["why"] for row in result["groups"] for e in (row["rate"],) if e["low"] is None and e.get("why")]
    whys += [row["difference"]["why"] for row in result["contrasts"] if row["difference"]["low"] is None]
    for why in dict.fromkeys(whys):
        console.print(f"  No interval: {why}.", soft_wrap=True)
    for line in _doubts(result["contrasts"][:MOST]):
        console.print(f"  {line}.", soft_wrap=True)
    for line in _plans(result["groups"]):
        console.print(f"  {line}", soft_wrap=True)
    for note in result["notes"]:
        console.print(f"  {note}", soft_wrap=True)


def _definition(result: dict[str, Any]) -> str:
    d = result["definition"]
    columns = d["columns"]
    coherence = f" and {columns['coherent']} > {d['coherent_above']:g}" if d["coherent_above"] is not None else ""
    missing = "" if d["missing"] == "exclude" else f", answers without a score counted as {d['missing']}"
    how = f"{d['resamples']} resamples of the questions" if d["resamples"] else "clustered by question"
    how = "for these questions, samples alone varying" if d["estimand"] == "these" else f"for questions like these, {how}"
    return (
        f"misaligned: {columns['aligned']} < {d['aligned_below']:g}{coherence}, of {d['denominator']} answers{missing}; "
        f"{d['average']} average; {d['level']:.0%} intervals {how} (column {columns['question']})" + _how_drawn(d)
    )


def _how_drawn(d: dict[str, Any]) -> str:
    """Return how the verdicts came about, where they were drawn."""
    if "drawn" not in d:
        return ""
    cheap = f", with the cheap scores {', '.join(d['cheap'])}" if d["cheap"] else ""
    return f"; verdicts drawn at random (column {d['drawn']}){cheap}"


def _groups(result: dict[str, Any]) -> Any:
    from rich.table import Table

    names = result["definition"]["columns"]["group"]
    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in names or ("",):
        table.add_column(name, no_wrap=True)
    for name in ("rate", "misaligned", "answers", "questions", "alignment", "coherence", "no score", "could be"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["groups"][:MOST]:
        rate, lost = row["rate"], row["rows"] - row["scored"]
        table.add_row(
            *([_value(row["group"][n]) for n in names] or ["all"]),
            words.interval(rate, 3),
            str(row["misaligned"]),
            str(row["rows"]),
            str(rate["clusters"]),
            words.number(row["aligned"], 1),
            words.number(row["coherence"], 1),
            f"{lost / row['rows']:.1%}" if lost else "",
            f"{row['bounds'][0]:.3f} to {row['bounds'][1]:.3f}" if lost and None not in row["bounds"] else "",
        )
    return table


def _drawn_groups(result: dict[str, Any]) -> Any:
    from rich.table import Table

    names = result["definition"]["columns"]["group"]
    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in names or ("",):
        table.add_column(name, no_wrap=True)
    for name in ("questions like these", "these answers", "verdicts alone", "explained", "verdicts", "answers", "questions"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["groups"][:MOST]:
        table.add_row(
            *([_value(row["group"][n]) for n in names] or ["all"]),
            *(words.interval(row[k], 3) for k in ("rate", "these_answers", "verdicts_alone")),
            f"{row['explained']:.0%}",
            str(row["scored"]),
            str(row["rows"]),
            str(row["rate"]["clusters"]),
        )
    return table


def _plans(rows: list[dict[str, Any]]) -> list[str]:
    """Return a sentence a group: the verdicts that the interval aimed at would need."""
    lines = []
    for row in [r for r in rows if r.get("plan")][:MOST]:
        p, here = row["plan"], row["plan"]["these_answers"]
        where = ", ".join(map(_value, row["group"].values())) or "all"
        line = f"{where}: plus or minus {p['half']:g} for these answers takes {here['verdicts']} verdicts ({here['verdicts_alone']} alone)"
        new = p["new_study"]
        if new is not None and new["verdicts"] is not None:
            line += (
                f"; a new study is cheapest with {new['verdicts']} verdicts and {new['scores']} scores, {new['dollars']:.2f} dollars "
                f"({new['alone']} verdicts alone, {new['dollars_alone']:.2f})"
            )
        elif new is not None:
            line += f"; a new study is cheapest with {new['alone']} verdicts alone, {new['dollars_alone']:.2f} dollars"
        lines.append(line)
    return lines


def _doubts(rows: list[dict[str, Any]]) -> list[str]:
    """Return what to know of single differences, once where several share it: limits of p, intervals that say too much."""
    found: dict[str, list[str]] = {}
    for row in rows:
        pair = f"{_names(row['a'])} - {_names(row['b'])}" + (f" ({_names(row['within'])})" if row["within"] else "")
        matched = row["matched"] or {}
        for doubt in (row.get("p_limit"), row.get("caution"), matched.get("caution")):
            if doubt:
                found.setdefault(doubt, []).append(pair)
    return [
        f"{', '.join(pairs[:3])}{f' and {len(pairs) - 3} more' if len(pairs) > 3 else ''}: {d}" for d, pairs in found.items()
    ]


def _names(label: dict[str, str | None]) -> str:
    return ", ".join(map(_value, label.values()))


def _contrasts(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    matched = any(row["matched"] for row in rows)
    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in ("within", "a", "b"):
        table.add_column(name, no_wrap=True)
    for name in ("a - b", "p", "p (Holm)", "0-10 scale", *(["at equal length*", "0-10 scale*"] if matched else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows[:MOST]:
        table.add_row(
            *(_names(row[k]) for k in ("within", "a", "b")),
            words.interval(row["difference"], 3),
            _p(row["p"], row.get("p_limit")),
            _p(row["p_adjusted"], row.get("p_limit")),
            words.interval(row["p1"], 2),
            *([words.interval(row["matched"], 3), words.interval(row["matched"].get("p1"), 2)] if matched else []),
        )
    return table


def _value(value: str | None) -> str:
    return "(none)" if value is None else value


def _p(value: float | None, limit: str | None = None) -> str:
    """Write a p-value; one that is only known to lie below a limit as such."""
    if value is None:
        return "-"
    if value < 0.0001:
        return "< .0001"
    return f"< {value:.4f}".replace("0.", ".") if limit and value < 1 else f"{value:.4f}"
