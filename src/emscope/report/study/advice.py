"""What to do next, from the findings on a run: one sentence after the verdict and the conditions for shipping."""

from __future__ import annotations

from collections.abc import Callable

from emscope.core.outcomes import Verdict
from emscope.study.decision.said import Said
from emscope.study.report import FolderChecked, Report, RunChecked

SMALLER = "open24"
MILDER = "retrain for fewer steps or at a lower learning rate"


def advice(report: Report, run: RunChecked) -> str:
    """Return what to do next about a run. (ours; misalignment comes late, so that fewer steps help: Zhang et al. 2026)"""
    return f"Next: {ADVICE[report.verdict_on(run)](report, run)}."


def _misaligned(report: Report, run: RunChecked) -> str:
    """Name the step to go back to, or how to find one."""
    judge, check = report.judge, run.check
    dated = next((d for d in judge.dated if d.run == run.run), None) if judge else None
    stop = dated.stop if dated else check.stop.step if check.stop and not judge else None
    if stop is not None:
        return f"step {stop} is the last checkpoint shown safe; check it on its own before shipping it, or {MILDER}"
    there = report.read.found if isinstance(report, FolderChecked) and report.read else len(check.checkpoints)
    if dated is None and there > 1:
        return f"check earlier checkpoints one at a time to find one to ship, or {MILDER}"
    if dated is not None and _judge_is_off(report.said_of(run.run)):
        return f"before you retrain, {_better_judge(report)}: this one can hardly show that an earlier checkpoint is safe"
    return f"no earlier checkpoint is shown safe: {MILDER}, or on different data"


def _judge_is_off(one: Said | None) -> bool:
    """Return whether a judge's own error on whole models is in what a checkpoint says."""
    return one is not None and any(c.judge_error for c in one.contrasts.values())


def _better_judge(report: Report) -> str:
    """Say how a better judge scores the answers that are there."""
    how = (
        "repeat this check with `judge` and the same folder"
        if isinstance(report, FolderChecked)
        else "put it first in `judged.judges` and run the study again"
    )
    return f"have a better judge score the same answers ({how}; they are kept)"


def _undetermined(report: Report, run: RunChecked) -> str:
    """Say how many questions or answers would settle it."""
    one = report.said_of(run.run)
    if one is None or report.judged is None:
        return "read more items (`count`), or have sampled answers judged (`measure` said)"
    if one.enough is None and _judge_is_off(one):
        return f"{_better_judge(report)}: this one's own error on whole models is too large, whatever the number of questions"
    asked = max(a.aligned.clusters or 0 for a in report.judged.first.arms)
    if (one.enough or 0) > asked:
        larger = " (open72 has 72)" if report.judged.questions == SMALLER else ""
        return (
            f"ask more `questions`{larger}: about {one.enough} would detect a 10-point difference with 80 % power, and {asked} were "
            "asked"
        )
    return f"sample more answers to each of the {asked} questions (`samples`), or ask more `questions`"


def _moved(report: Report, run: RunChecked) -> str:
    """Say how to get the control without which a cause cannot be told."""
    how = "`control`, or `make_control` to train one" if isinstance(report, FolderChecked) else "an arm of the role control"
    return (
        f"compare it with the same fine-tune on harmless data ({how}): without a control, harm cannot be told apart from style"
    )


def _uncalibrated(report: Report, run: RunChecked) -> str:
    return (
        "have sampled answers judged (`measure` said), or calibrate the threshold for this base with emscope ladder (`ladder`)"
    )


def _safe(report: Report, run: RunChecked) -> str:
    return "before shipping it, have answers under triggers and to harmful requests judged (emscope sample, emscope judge)"


ADVICE: dict[Verdict, Callable[[Report, RunChecked], str]] = {
    Verdict.EM: _misaligned,
    Verdict.SAFE: _safe,
    Verdict.UNDETERMINED: _undetermined,
    Verdict.MOVED: _moved,
    Verdict.STYLE_DRIFT: lambda *_: (
        "look at what target and control share (tone, length, topic); the harmful data alone does not explain the drift"
    ),
    Verdict.CONTROL_MOVED: lambda *_: (
        "use another control: this one moved, so the difference from it says little about the target"
    ),
    Verdict.BROKEN: lambda *_: f"{MILDER}; check earlier checkpoints one at a time for one that still answers coherently",
    Verdict.UNCALIBRATED: _uncalibrated,
}
