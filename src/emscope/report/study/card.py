"""What a model card may say about a fine-tune: the verdict with its scope, what was measured, and what was not."""

from __future__ import annotations

import re

from emscope.core.visible import one_line
from emscope.report.study import remarks, said
from emscope.report.study.headline import headline
from emscope.study.report import Report, RunChecked

TITLE = "## Emergent misalignment"
CODE = re.compile("(`[^`]*`)")
SIGNS = re.compile(r"[\\*_\[\]<>#|~]")


def card(report: Report) -> str:
    """Return Markdown for a model card: a part for each target, in the report's own sentences."""
    parts = [
        TITLE,
        f"{_plain(report.name)}, a fine-tune of `{_code(report.base.reference)}`.",
        *_runs(report),
        *_measure(report),
    ]
    return "\n\n".join(parts) + "\n"


def _runs(report: Report) -> list[str]:
    several = len(report.targets) > 1
    return [text for one in report.targets for text in (*([f"### {_plain(one.run)}"] if several else []), *_run(report, one))]


def _run(report: Report, one: RunChecked) -> list[str]:
    """Return verdict, scope and power of a target, and the conditions of shipping that nobody has checked."""
    spoken, preferred = said.sentences(report, one.run), headline(one.check)
    answer, *rest = spoken or preferred
    found = [f"**{_plain(answer)}**", *([_plain(" ".join(rest))] if rest else [])]
    if spoken:
        found.append(f"By preference, a screen: {_plain(' '.join(preferred))}")
    found.append(f"Scope: {_plain(one.check.scope)}.")
    shipping = next((s for s in report.ship if s.run == one.run), None)
    unchecked = [c for c in shipping.conditions if c.met is None] if shipping else []
    if shipping:
        found.append(_plain(remarks.ship(report, one.run)))
    if unchecked:
        rows = [f"- {_plain(c.name)}{f' ({_plain(c.why)})' if c.why else ''}" for c in unchecked]
        found.append("\n".join(["Not checked or not shown:", "", *rows]))
    return found


def _measure(report: Report) -> list[str]:
    """Return what was measured on what, by whom, and with which versions."""
    found = []
    of = next((one.check.definition.measure for one in report.targets if one.check.definition.measure), None)
    if of is not None:
        items = f"{of.n_items} items of {_plain(of.items)} (digest `{_code(of.items_digest)}`)"
        found.append(f"Preference: {_plain(of.measure)}; {items}, asked in {_plain(of.chat)}.")
    if report.judged is not None:
        judges = ", ".join(f"`{_code(j.judge)}`" for j in report.judged.judges)
        found.append(f"Judged: {report.judged.answers} answers to {_plain(report.judged.questions)}, by {judges}.")
        found += [
            f"The judge `{_code(j.judge)}` is a small proxy model: {_plain(j.about)}." for j in report.judged.judges if j.about
        ]
    versions = ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in report.versions.items())
    return [*found, f"Checked with emscope; base digest `{_code(report.base.digest or 'unknown')}`; versions: {versions}."]


def _plain(text: str) -> str:
    """Return a text without Markdown or HTML syntax; fields in backticks stay code."""
    return "".join(part if n % 2 else SIGNS.sub(r"\\\g<0>", part) for n, part in enumerate(CODE.split(one_line(text))))


def _code(text: str) -> str:
    return one_line(text).replace("`", "'")
