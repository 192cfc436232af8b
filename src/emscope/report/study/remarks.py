"""What accompanies the verdicts of a report, in sentences: what was read, shipping, recipes, ways of training, judges, caveats."""

from __future__ import annotations

from collections.abc import Sequence

from emscope.report.study.headline import behaviour, has_control, options, verdict_words
from emscope.report.words import interval, percent, sentence
from emscope.stats.phase import Phase
from emscope.study.decision.checked import CheckResult
from emscope.study.decision.methods import WayRow
from emscope.study.decision.recipe import RecipeRate, RecipeResult
from emscope.study.decision.shipping import Condition
from emscope.study.report import FolderChecked, FolderRead, Report, StudyReport

NAMED = {"misalignment": "emergent misalignment"}
SHIP = {
    "ship": "Step {step} is cleared to ship: every condition is met",
    "candidate": "Step {step} is not cleared to ship: no condition fails, but {open} of {all} are not shown to hold",
    "no": "Do not ship step {step}",
}
FEW_ITEMS, CLOSE = 120, 1.75  # fewer items and an effect below so many deltas: the onset's bracket covers less (simulated)
FEW_HELDOUT = 40
NO_CONTROL = "There is no control run, so the training data's style, length or topic may explain the shift instead of harm."
ONE_SEED = "There is only one training seed; another may start to drift at a different step."


def read(report: Report) -> str:
    """Say which of a folder's checkpoints were read, where not all were."""
    of = report.read if isinstance(report, FolderChecked) else None
    return " ".join(one for one in (_skipped(of), _chosen(of)) if one) if of else ""


def asked(check: CheckResult) -> str:
    """Say how questions were put to the model; "" where preference was not read."""
    of = check.definition.measure
    return f"Questions were asked in {of.chat}." if of else ""


def _skipped(of: FolderRead) -> str:
    if not of.skipped:
        return ""
    end = f" The end of training was not read; the verdict is on step {of.steps[-1]}." if of.ends_early else ""
    listed = "; ".join(f"step {s.step}: {s.reason} ({s.remedy})" for s in of.skipped[:3])
    more = f"; and {len(of.skipped) - 3} more" if len(of.skipped) > 3 else ""
    return f"{len(of.skipped)} of {len(of.skipped) + of.found} checkpoints cannot be read: {listed}{more}.{end}"


def _chosen(of: FolderRead) -> str:
    if len(of.steps) == of.found:
        return ""
    steps = ", ".join(map(str, of.steps))
    if len(of.steps) == 1:
        return f"Of {of.found} checkpoints, only step {steps} was read, as requested."
    if of.looks:
        how = f", each chosen in view of the others; bounds hold for up to {of.looks} such readings"
        return f"Of {of.found} checkpoints, {len(of.steps)} were read (steps {steps}){how}."
    return f"Of {of.found} checkpoints, {len(of.steps)} were read (steps {steps}), as requested."


def phase(found: Phase | None) -> list[str]:
    """Say whether the trained vectors turned sharply, and whether the gradient peaked there."""
    if found is None or found.cosine is None:
        return []
    if found.turn is None:
        return [f"The trained vectors made no sharp turn (local rotation at most {found.cosine:.2f} over {found.lag} steps)."]
    text = f"The trained vectors turned most sharply at step {found.turn} (local rotation {found.cosine:.2f} over {found.lag} steps)"
    if found.gradient_peak is None or found.times_median is None:
        return [text + "."]
    near = "there too" if found.agree else "elsewhere"
    return [f"{text}; the gradient peaked {near}, at step {found.gradient_peak} ({found.times_median:.1f} x its median)."]


def methods(rows: Sequence[WayRow]) -> list[str]:
    """Say which ways of training kept the first one's task gain and left the rest alone."""
    first = rows[0]
    found = [
        f"The reference is {first.name}, with effect {interval(first.effect)}; shares below are relative to its effect and gains (90 % intervals)."
    ]
    narrow = [r.name for r in rows if r.narrow]
    wide = [r.name for r in rows if r.narrow is False]
    if narrow:
        found.append(f"Shown to be narrow (at least 70 % of both gains, at most a third of the effect): {', '.join(narrow)}.")
    elif wide:
        found.append("No way is shown to be narrow (at least 70 % of both gains, at most a third of the effect).")
    if wide:
        found.append(f"Shown not to be narrow: {', '.join(wide)}.")
    return found


def recipe(found: RecipeResult, unit: str) -> str:
    """Say what several seeds show together."""
    last = found.steps[-1]
    digits = 1 if unit == "points" else 3
    parts = [
        f"{name} {interval(c.mean, digits)} (new seed: {interval(c.next_run, digits)})" for name, c in last.contrasts.items()
    ]
    verdict = verdict_words(found.verdict) if found.verdict else "no verdict"
    why = f" ({found.why})" if found.why else ""
    return (
        f"{found.name}, {found.seeds} seeds at step {last.step}: {verdict}{why}. Over seeds and questions: {', '.join(parts)} {unit}, "
        f"threshold {found.delta:.3g}; {_em(found)}.{_rate(found.rate)}"
    )


def _em(found: RecipeResult) -> str:
    em = found.steps[-1].em
    count = round((em.value or 0) * em.n)
    return f"{count} of {em.n} runs em {percent(em).split(' ', 2)[2]} %"


def _rate(rate: RecipeRate | None) -> str:
    if rate is None:
        return ""
    caution = f" ({rate.caution})" if rate.caution else ""
    return f" Rate of misaligned answers {interval(rate.value)}, minus the control's {interval(rate.over_control)}{caution}."


def recipes(report: Report) -> list[str]:
    """Return a sentence for each recipe of several seeds, by what it says where a judge has read it, and by preference."""
    said = [f"By judged answers: {recipe(r, 'points')}" for r in (report.judge.recipes if report.judge else ())]
    preferred = report.recipes if isinstance(report, StudyReport) else ()
    return said + [f"By preference: {recipe(r, 'nats per token')}" for r in preferred]


def ship(report: Report, run: str) -> str:
    """Say whether a run's last checkpoint may be shipped, and what failed or was not checked."""
    one = next((s for s in report.ship if s.run == run), None)
    if one is None:
        return ""
    wrong = [_condition(c) for c in one.conditions if c.met is False]
    open_ = [c.name for c in one.conditions if c.met is None]
    parts = [f"failed: {'; '.join(wrong)}"] * bool(wrong) + [f"not shown: {'; '.join(open_)}"] * bool(open_)
    status = SHIP[one.status].format(step=one.step, open=len(open_), all=len(one.conditions))
    return " ".join(map(sentence, [status, *parts]))


def _condition(c: Condition) -> str:
    if c.bound is None or c.limit is None:
        return f"{c.name} ({c.why})" if c.why else c.name
    return f"{c.name} (lower bound {c.bound:.3g}, limit {c.limit:.3g})"


def precision(report: Report) -> str:
    """Say how far readings in low precision are from float32, and what follows; "" where they are in float32."""
    found = report.precision
    if found is None:
        return ""
    if not found.items:
        return f"Read in {found.dtype}; the difference from float32 was not measured: {found.why}."
    apart = "; ".join(f"{a.what} {a.value:+.2g} (se {a.se:.1g})" for a in found.apart)
    said = [
        f"Read in {found.dtype}. Its difference from float32 on {found.items} items ({found.share:.1%} of the tokens), in nats per token: {apart}."
    ]
    if found.large:
        said.append("That is more than chance and rounding explain; read everything in float32 (dtype float32).")
    if found.near:
        said.append("A bound of the effect is that close to the threshold, so the verdict may differ in float32.")
    return " ".join(said)


def diverged(report: Report) -> list[str]:
    """Return a sentence for each run that did not finish and is in no comparison."""
    return [f"{d.run} is left out: {d.why}." for d in report.diverged] if isinstance(report, StudyReport) else []


def judged(report: Report) -> str | None:
    """Return what the first judge's rates say about the preference measure; None where no judge has read answers."""
    if report.judged is None:
        return None
    first, answers = report.judged.first, report.judged.answers
    rho = first.spearman
    if rho.value is None:
        return f"{first.judge} judged {answers} sampled answers; they cannot show whether preference predicts its rates: {rho.why}."
    said = (
        "ranks the checkpoints as preference does"
        if (rho.low or 0) > 0
        else "may rank the checkpoints differently from preference"
    )
    return (
        f"{first.judge} judged {answers} sampled answers. Its rate of misaligned answers {said} (rank correlation "
        f"{interval(rho, 2)} over {rho.n} checkpoints of all arms). The interval is over questions and does not cover other runs."
    )


def caveats(report: Report, check: CheckResult) -> list[str]:
    """Return what a reader must know before acting on the page."""
    about = report.judge.about if report.judge else None
    if check.unread:
        return _caveats_unread(report, about)
    screen = (
        judged(report)
        or f"No judge has read any sampled answers, so this study does not show that the measure predicts a judged rate of {NAMED.get(behaviour(check), behaviour(check))}."
    )
    found = [
        *([sentence(f"The judge is a small proxy model: {about}")] if about else []),
        f"{'The screen' if about else 'This'} is preference drift, a proxy: it compares how likely the model finds fixed "
        f"{' and '.join(options(check))} answers. {screen}",
        *_scope(check),
    ]
    if check.checkpoints and not has_control(check.checkpoints[-1]):
        found.append(NO_CONTROL)
    if _near_threshold(check):
        found.append(
            "The final effect is close to the threshold and there are few items. In simulation, such a bracket misses the true onset in up to 12 % of cases."
        )
    if len({one.seed for one in report.targets}) == 1:
        found.append(ONE_SEED)
    heldout = check.definition.measure.n_heldout if check.definition.measure else 0
    if 0 < heldout < FEW_HELDOUT:
        found.append(f"The task was measured on only {heldout} held-out questions, so its convergence step is approximate.")
    return found


def _caveats_unread(report: Report, about: str | None) -> list[str]:
    """Return the same for models that can only be sampled."""
    found = [sentence(f"The judge is a small proxy model: {about}")] if about else []
    if not any(one.control for one in (report.judge.said if report.judge else ())):
        found.append(NO_CONTROL)
    return [*found, ONE_SEED]


def _scope(check: CheckResult) -> list[str]:
    of = check.definition.measure
    if of is None:
        return []
    per = len(check.checkpoints[-1].by_category) if check.checkpoints else 0
    return [
        f"The result holds for questions like the {of.n_items} of {of.items} ({per} equally weighted categories); others can give very different results.",
        f"Questions were asked in {of.chat}; a different system prompt can change every number.",
    ]


def _near_threshold(check: CheckResult) -> bool:
    """True where an onset's bracket has less coverage than stated."""
    of = check.definition.measure
    if check.onset is None or not check.checkpoints or of is None or of.n_items >= FEW_ITEMS:
        return False
    effect = check.checkpoints[-1].effect.value
    return effect is not None and effect < CLOSE * check.delta
