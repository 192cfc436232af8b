"""What a training set teaches token by token, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emscope.train.audit_result import CONVERSATIONS, Audit, Check, Tally, Token, Warned

if TYPE_CHECKING:
    from rich.text import Text

LEARNED, OTHER = "bold green", "dim"
OPEN, CLOSE = "[[", "]]"  # around tokens that carry loss, without colour
HEAD, TAIL = 400, 200  # characters shown of a long stretch of one kind


def print_audit(result: Audit) -> None:
    """Print counts, warnings and the first examples, with the tokens that carry loss in colour, or else in brackets."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    coloured = console.is_terminal and not console.no_color
    form = f"; {result.form}" if result.kind == CONVERSATIONS else ""  # others are rendered already
    console.print(f"{result.examples} {result.kind}{form}", style="dim")
    table = Table(box=None, show_header=False, pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(result):
        table.add_row(name, value)
    console.print(table)
    for warned in result.warnings:
        console.print(f"\n{sentence(warned)}", style="yellow")
    if not result.warnings:
        console.print("\nNo fault found.", style="green")
    if result.shown:
        mark = "in green" if coloured else f"in {OPEN}{CLOSE}"
        console.print(f"\nThe first {len(result.shown)} of {result.examples}; what carries loss is {mark}", style="dim")
    for one in result.shown:
        console.print(f"\n{visible(one.id)}", style="bold")
        console.print(_painted(one.tokens) if coloured else bracketed(one.tokens))


def sentence(warned: Warned) -> str:
    """Return a warning with its reason, its remedy and the examples it names."""
    rows = ", ".join(visible(row) for row in warned.rows)
    more = " and others" if warned.examples > len(warned.rows) else ""
    return f"{warned.what} ({rows}{more}): {warned.why}. Remedy: {warned.remedy}."


def bracketed(tokens: Sequence[Token]) -> str:
    """Return an example's text on one line, what carries loss in brackets."""
    stretches = ((learned, _shortened(visible(text))) for learned, text in _stretches(tokens))
    return "".join(f"{OPEN}{text}{CLOSE}" if learned else text for learned, text in stretches)


def visible(text: str) -> str:
    """Return a text with everything that is not printable written out: a terminal must not obey the contents of a data file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _painted(tokens: Sequence[Token]) -> Text:
    from rich.text import Text

    painted = Text()
    for learned, text in _stretches(tokens):
        painted.append(_shortened(visible(text)), LEARNED if learned else OTHER)
    return painted


def _stretches(tokens: Sequence[Token]) -> list[tuple[bool, str]]:
    """Return neighbouring tokens of one kind as one text each."""
    found: list[tuple[bool, str]] = []
    for token in tokens:
        if found and found[-1][0] == token.learned:
            found[-1] = (token.learned, found[-1][1] + token.text)
        else:
            found.append((token.learned, token.text))
    return found


def _shortened(text: str) -> str:
    """Return a long text without its middle: only the ends of a stretch matter."""
    left_out = len(text) - HEAD - TAIL
    return f"{text[:HEAD]} ... {left_out} characters ... {text[-TAIL:]}" if left_out > 0 else text


def _rows(result: Audit) -> list[tuple[str, str]]:
    """Return the counts as (name, value)."""
    examples, counts, answers = result.examples, result.counts, result.answers
    share = result.learned / max(result.tokens, 1)
    ended = examples - counts[Check.NO_END] - counts[Check.NO_TEXT]
    found = [
        ("tokens", str(result.tokens)),
        ("that carry loss", f"{result.learned} ({share:.1%})"),
        (f"examples with {visible(result.end) or 'an end token'} at the end of that", f"{ended} of {examples}"),
        ("assistant turns, last of an example", _turns(result.last)),
        ("assistant turns before the last", _turns(result.before_last)),
        ("prompt tokens that carry loss", str(result.prompt_learned)),
        ("empty last assistant turns", f"{counts[Check.EMPTY_TURN]}, {result.empty_learned} of them with loss"),
        ("examples that repeat another", str(counts[Check.REPEATED])),
    ]
    if answers is not None:
        found.insert(2, ("length of an answer", f"median {answers.median:g}, longest {answers.longest} tokens"))
    if result.zero_weight:
        found.append(("assistant turns of weight 0", str(result.zero_weight)))
    if result.context is not None:
        found.append((f"examples longer than {result.context} tokens", str(counts[Check.TOO_LONG])))
    return found


def _turns(tally: Tally) -> str:
    if not (tally.learned or tally.unlearned or tally.in_part):
        return "none"
    part = f", {tally.in_part} in part" if tally.in_part else ""
    return f"{tally.learned} learned, {tally.unlearned} not{part}"
