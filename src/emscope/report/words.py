"""How numbers, shares and names are written, in sentences and tables alike."""

from __future__ import annotations

from collections.abc import Iterable

from emscope.core.estimate import Estimate

BLANK = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Write a number, or a dash where there is none."""
    return BLANK if value is None else f"{value:.{digits}f}"


def interval(estimate: Estimate | None, digits: int = 3) -> str:
    """Write `value [low, high]`; without an interval the value alone, without a value a dash."""
    if estimate is None or estimate.value is None:
        return BLANK
    if estimate.low is None or estimate.high is None:
        return number(estimate.value, digits)
    return f"{number(estimate.value, digits)} [{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def percent(estimate: Estimate | None) -> str:
    """Write a share as `12 % [8, 17]`."""
    if estimate is None or estimate.value is None:
        return BLANK
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.value:.0f} %"
    return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def p_value(p: float) -> str:
    """Write a p-value with three digits, or that it is below the smallest of them."""
    return "p < .001" if p < 0.001 else f"p {p:.3f}"


def answer(value: bool | None) -> str:
    """Write yes, no, or a dash if undecided."""
    return BLANK if value is None else "yes" if value else "no"


def sentence(text: str) -> str:
    """Return a clause as a sentence: a capital at the start, a full stop at the end."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def tails(names: Iterable[str]) -> dict[str, str]:
    """Return for each path the shortest end, in whole parts, that no other of them has; `.safetensors` is left out."""
    parts = {name: name.rstrip("/").removesuffix(".safetensors").split("/") for name in names}

    def end(name: str) -> str:
        own = parts[name]
        others = [p for p in parts.values() if p != own]
        least = next((n for n in range(1, len(own)) if all(p[-n:] != own[-n:] for p in others)), len(own))
        return "/".join(own[-least:])

    return {name: end(name) for name in parts}
