"""The same results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emscope.core.errors import spelled
from emscope.report import words
from emscope.report.study import remarks, said
from emscope.report.study.advice import advice
from emscope.report.study.atlas import placed
from emscope.report.study.counted import counted
from emscope.report.study.headline import has_control, headline, prefers
from emscope.report.tables import STYLES
from emscope.study.decision.checked import CheckResult, Loss
from emscope.study.decision.methods import WayRow
from emscope.study.decision.opinions import Opinion
from emscope.study.report import FolderChecked, Report, RunChecked, StudyReport

FEW = 4


@dataclass(frozen=True, slots=True)
class _Printer:
    """Prints sentences and tables; `options`: how the settings that a sentence names are spelled."""

    console: Console
    options: Mapping[str, str]

    def say(self, text: str, style: str = "") -> None:
        self.console.print(spelled(text, self.options), style=style)

    def draw(self, table: Table) -> None:
        self.console.print(table)


def print_report(report: Report, options: Mapping[str, str] | None = None) -> None:
    """Print headline, checkpoint table and the first caveat of each target run; of more than a few runs the verdicts alone.

    Args:
        options: how each setting is spelled on the command line; None where it is named as in Python and YAML.
    """
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, 142)  # the checkpoint table needs it; narrower terminals wrap lines, not cells
    to = _Printer(console, options or {})
    targets = report.targets
    for run in targets:
        to.say(f"\n{run.run}", style="bold")
        if len(targets) > FEW:
            to.say(f"  {(said.sentences(report, run.run) or headline(run.check))[0]}")
        else:
            _print_run(to, report, run)
    if isinstance(report, StudyReport) and report.methods:
        to.say("\nWays of training compared", style="bold")
        to.draw(_methods(report.methods))
        for sentence in remarks.methods(report.methods):
            to.say(f"  {sentence}")
    if sentences := counted(report):
        to.say("\nAll runs together", style="bold")
        for sentence in sentences:
            to.say(f"  {sentence}")
    if sentences := remarks.recipes(report):
        to.say("\nSeveral seeds together", style="bold")
        for sentence in sentences:
            to.say(f"  {sentence}")
    for judge in report.judged.judges if report.judged else ():
        to.say(f"\nRate of misaligned answers by {judge.judge}, at the last steps", style="bold")
        to.draw(_judged(judge))
    if sentence := remarks.precision(report):
        warns = report.precision and (report.precision.large or report.precision.near)
        to.say(f"\n{sentence}", style="yellow" if warns else "dim")
    for sentence in remarks.diverged(report):
        to.say(f"\n{sentence}", style="yellow")
    for style in report.style if isinstance(report, StudyReport) else ():
        share = f", {style.share_of_target:.0%} of the target's" if style.share_of_target is not None else ""
        to.say(f"  Tone alone ({style.arm}, seed {style.seed}): effect {words.interval(style.effect)}{share}.")


def _print_run(to: _Printer, report: Report, run: RunChecked) -> None:
    """Print the answer on a run, whether to ship it and what to do next, then what it rests on."""
    spoken, screen = said.sentences(report, run.run), headline(run.check)
    for sentence in (*(spoken or screen[:1]), remarks.ship(report, run.run), advice(report, run), *placed(report)):
        if sentence:
            to.say(f"  {sentence}")
    if spoken and not run.check.unread:
        to.say("\n  By preference for fixed answers (a screen)", style="bold")
    for sentence in screen if spoken else screen[1:]:
        to.say(f"  {sentence}")
    if not run.check.unread:
        to.draw(_table(run.check))
    if sentence := remarks.read(report):
        skipped = isinstance(report, FolderChecked) and report.read is not None and report.read.skipped
        to.say(f"  {sentence}", style="yellow" if skipped else "dim")
    for sentence in (remarks.asked(run.check), remarks.caveats(report, run.check)[0]):
        if sentence:
            to.say(f"  {sentence}", style="dim")


def _columns(names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in names:
        table.add_column(name, justify="left", no_wrap=True)
    return table


def _methods(rows: Sequence[WayRow]) -> Table:
    table = _columns(("way", "effect", "of the first's", "loss gain kept", "margin gain kept", "narrow"))
    for m in rows:
        shares = (words.interval(share, 2) for share in (m.effect_share, m.gain_share, m.gain_margin_share))
        table.add_row(m.name, words.interval(m.effect), *shares, words.answer(m.narrow))
    return table


def _judged(judge: Opinion) -> Table:
    table = _columns(("run", "step", "rate", "over its control", "0-10 scale"))
    last = {r.run: r for r in judge.rates}
    for r in last.values():
        table.add_row(r.run, str(r.step), words.interval(r.rate), words.interval(r.over_control), words.interval(r.p1, 2))
    return table


def _table(check: CheckResult) -> Table:
    table = _columns(
        (
            *("step", "state", "effect [90 %]", "from base [90 %]"),
            *(prefers(check), "held-out loss", "task gain", "truth"),
        )
    )
    base = check.base_reading
    preferred = words.percent(base.misaligned_preference)
    table.add_row("base", "", "", "", preferred, _per_token(base.loss), "", words.percent(base.truth))
    for c in check.checkpoints:
        table.add_row(
            str(c.step),
            Text(c.state.replace("_", " "), style=STYLES[c.state]),
            words.interval(c.effect),
            words.interval(c.base_effect) if has_control(c) else "",
            words.percent(c.misaligned_preference),
            _per_token(c.loss),
            words.interval(c.gain, 2),
            words.percent(c.truth),
        )
    return table


def _per_token(loss: Loss | None) -> str:
    return words.number(loss.per_token if loss else None)
