"""What a study will take, for a terminal."""

from __future__ import annotations

from rich.console import Console

from emscope.models.remote.hosted import Spent
from emscope.models.sizing.memory import in_gb
from emscope.report.study.standing import span
from emscope.study.cells.foreseen import Foreseen, PlannedPower, Work
from emscope.study.cells.hosted_costs import AtHost

INDENT = 9  # of what a line says


def print_foreseen(found: Foreseen) -> None:
    """Print it line by line."""
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, 120)
    for name, value in _lines(found).items():
        console.print(f"{name:{INDENT - 1}} {value}")
    for sentence in found.warnings:
        console.print(sentence, style="yellow")


def _lines(found: Foreseen) -> dict[str, str]:
    lines = {"cells": f"{found.cells} ({found.cells - found.left} done)", "tokens": _tokens(found.tokens)}
    lines |= _of_host(found.host) if found.host else _of_machine(found)
    lines["disk"] = f"{_disk(found)}, {in_gb(found.free_disk_bytes)} free"
    if found.answers:
        cost = f"at most {found.dollars:.2f} dollars" if found.dollars is not None else "cost unknown: a judge has no prices"
        lines["judges"] = f"{found.answers} answers, {cost}"
    lines["power"] = _power(found.power)
    return lines


def _of_machine(found: Foreseen) -> dict[str, str]:
    """Say what was measured on this machine."""
    lines = {}
    if found.rates is not None:
        lines["speed"] = (
            f"measured now, tokens per second: training {found.rates.trained:.0f}, reading {found.rates.read:.0f}, "
            f"sampling {found.rates.sampled:.0f}"
        )
    if found.seconds is not None and found.threads is not None:
        hands = f"{found.workers} worker{'s' * (found.workers != 1)} of {found.threads} thread{'s' * (found.threads != 1)}"
        lines["time"] = f"about {span(found.seconds)} with {hands} ({found.engine})"
    if found.worker_bytes is not None:
        free = f", {in_gb(found.free_bytes)} free" if found.free_bytes else ""
        lines["memory"] = f"about {in_gb(found.worker_bytes)} per worker{free}"
    return lines


def _of_host(host: AtHost) -> dict[str, str]:
    """Say what each kind of cell takes at a host, and what all of them cost."""
    kinds = [
        f"{k.kind}, {k.cells} cell{'s' * (k.cells != 1)}: {_tokens(k.tokens)}"
        + (f"; at most {k.dollars:.4g} dollars" if k.dollars is not None else "")
        for k in host.kinds
    ]
    lines = {"of these": f"\n{' ' * INDENT}".join(kinds)} if kinds else {}
    if host.dollars is None:
        return lines | {"host": f"{host.name}, cost unknown: it has no prices"}
    before = f" beside {host.spent:.4g} spent already" if host.spent else ""
    limit = f"; max_cost is {host.max_cost:g}" if host.max_cost is not None else ""
    return lines | {"host": f"{host.name}, at most {host.dollars:.4g} dollars{before}{limit}"}


def _disk(found: Foreseen) -> str:
    rows = f"rows {found.row_bytes / 1e6:.1f} MB"
    if found.weight_bytes is None or found.most_bytes is None:
        return rows
    return f"weights {in_gb(found.weight_bytes)} ({in_gb(found.most_bytes)} at most, while cells run), {rows}"


def _power(found: PlannedPower | None) -> str:
    """Say what the study would find."""
    if found is None:
        return "no answers are judged: preference alone only screens and gives no verdict"
    size = f"{found.questions} questions x {found.samples} answers"
    em, safe = (f"{100 * chance:.0f} %" for chance in (found.run_em, found.run_safe))
    one = f"{em} to detect {found.effect:g} points in one run, {safe} to call a run without any effect safe ({size})"
    if found.recipe_em is None or found.recipe_safe is None:
        return f"{one}; see emscope power"
    return f"{one}; over all {found.seeds} seeds {100 * found.recipe_em:.0f} % and {100 * found.recipe_safe:.0f} %; see emscope power"


def _tokens(work: Work | Spent) -> str:
    return f"{work.trained:,.0f} trained, {work.read:,.0f} read, at most {work.sampled:,.0f} sampled"
