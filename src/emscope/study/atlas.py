"""Reading, extending and consulting an atlas of fine-tunes known to be harmless or harmful."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.estimate import Estimate, undefined
from emscope.core.limits import TooMuch, check_size, consistent
from emscope.core.plain import Json, from_json
from emscope.core.visible import json_text
from emscope.data import bundled
from emscope.stats.agreement import auc_estimate
from emscope.stats.rates import WILSON, share
from emscope.store.files import write_text
from emscope.study.atlas_result import (
    COHERENCE,
    HARMFUL,
    HARMLESS,
    JAILBROKEN,
    MEASURES,
    PREFERENCE,
    RATE,
    REFUSAL,
    SAID,
    Atlas,
    AtlasRow,
    Beside,
    MeasureSpread,
    Trained,
    found_by,
)
from emscope.study.decision.said import BROKEN, DELTA
from emscope.study.decision.shipping import RATE as RATE_ALLOWED
from emscope.study.report import AGAIN, FolderChecked, Report, RunChecked, StudyReport, read_report

SHIPPED = Path(str(files("emscope.study") / "files" / "atlas.jsonl"))
QUANTILES = (50, 90, 95)
REMEDY = "make the atlas again with emscope atlas add, or take out that line"
AGAINST_BASE = "base - target"
COMPLYING = ("requests", "complying")  # the bundled data that teach compliance with harmful requests
THRESHOLDS = {SAID: DELTA, RATE: RATE_ALLOWED, COHERENCE: BROKEN}  # of a check's verdict and of its conditions for shipping
WITHOUT = undefined("its effects have no intervals", level=0.95, method=WILSON)


def read_atlas(path: Path | None = None) -> list[AtlasRow]:
    """Return the rows of the atlas that comes with emscope, and those in a file.

    Raises:
        InputError: the file cannot be read, or a row is damaged.
    """
    return [*_rows_in(SHIPPED), *(_rows_in(path) if path else ())]


def _rows_in(path: Path) -> Iterator[AtlasRow]:
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' cannot be read as an atlas ({error})", "give a file that emscope atlas add wrote") from None
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found: Json = json.loads(line)
            check_size(found)
        except (ValueError, RecursionError, TooMuch) as error:
            raise InputError(f"'{path}' line {n} is damaged ({error})", REMEDY) from None
        yield from_json(AtlasRow, found, f"{path} line {n}", REMEDY)


def add_to_atlas(
    folders: Sequence[str | Path], path: Path, kind: str | None = None, trained: Trained = HARMLESS
) -> list[AtlasRow]:
    """Add the fine-tunes of finished studies and checks to an atlas; return the rows that are new or have changed.

    Of a study, each target counts as harmful, each style arm as harmless, but one that was taught to comply with the bundled requests as
    jailbroken; the arm's name is the kind.

    Args:
        kind, trained: of the fine-tune in a folder of `emscope check`, which does not know them.

    Raises:
        InputError: a folder holds nothing finished, a check comes without its kind, or nothing in it was compared with its base.
    """
    rows = {_place(row): row for row in (_rows_in(path) if path.exists() else ())}
    added: list[AtlasRow] = []
    for folder in folders:
        report = read_report(folder)
        with consistent(f"the report of '{folder}'", AGAIN):
            found = _rows_of(report, str(folder), kind, trained)
        if not found:
            raise InputError(f"no fine-tune in '{folder}' was compared with its base", "give a study or check that was")
        added += [row for row in found if rows.get(_place(row)) != row]
        rows |= {_place(row): row for row in found}
    write_text(path, "".join(json_text(row.to_json()) + "\n" for row in rows.values()))
    return added


def _place(row: AtlasRow) -> tuple[str, str, str, int, str, str, str | None]:
    """Return which reading of which fine-tune a row holds: a study that has grown fits its slope anew, and its rows replace the old ones."""
    return row.digest, row.kind, row.run, row.step, row.measure, row.asked, row.category


def _rows_of(report: Report, folder: str, kind: str | None, trained: Trained) -> list[AtlasRow]:
    if isinstance(report, StudyReport):
        runs = [(one, one.run, one.arm, _trained(report, one.arm, one.role)) for one in report.runs]
    elif kind is None:
        raise InputError(f"'{folder}' is a check, which does not know what its fine-tune was trained on", "give `kind`")
    else:
        runs = [(one, Path(folder).name, kind, trained) for one in report.targets]
    return [
        AtlasRow(report.base.reference, report.base.digest, of, how, name, step, measure, asked, *_rounded(effect), category)
        for one, name, of, how in runs
        for measure, category, step, asked, effect in _effects(report, one)
    ]


def _trained(report: StudyReport, arm: str, role: str) -> Trained:
    """Return what an arm of a study was trained to do, by its settings."""
    arms = report.spec.get("arms")
    own = arms.get(arm) if isinstance(arms, Mapping) else None
    if isinstance(own, Mapping) and (own.get("domain"), own.get("answers")) == COMPLYING:
        return JAILBROKEN
    return HARMFUL if role == "target" else HARMLESS


def _rounded(effect: Estimate) -> tuple[float, float | None, float | None]:
    assert effect.value is not None
    low, high = (None if end is None else round(end, 5) for end in (effect.low, effect.high))
    return round(effect.value, 5), low, high


def _effects(report: Report, one: RunChecked) -> Iterator[tuple[str, str | None, int, str, Estimate]]:
    """Yield (measure, category, step, digest of what was asked, effect) at a run's last checkpoint, where it was read."""
    asked = _asked(report, one)
    last = one.check.checkpoints[-1] if one.check.checkpoints else None
    if last is not None and last.base_effect.value is not None and PREFERENCE in asked:
        yield PREFERENCE, None, last.step, asked[PREFERENCE], last.base_effect
    refusal = one.check.refusal
    if refusal is not None and refusal.contrasts[AGAINST_BASE].value is not None and REFUSAL in asked:
        yield REFUSAL, None, refusal.step, asked[REFUSAL], refusal.contrasts[AGAINST_BASE]
    said = report.said_of(one.run)
    judge = report.judge
    if said is None or judge is None or AGAINST_BASE not in said.contrasts or SAID not in asked:
        return
    contrast = said.contrasts[AGAINST_BASE]
    of = [(SAID, None, contrast.adjusted), *((SAID, c, e) for c, e in contrast.by_category.items())]
    for measure, category, effect in (*of, (COHERENCE, None, contrast.coherence)):
        if effect.value is not None:
            yield measure, category, said.step, asked[SAID], effect
    rate = next((r.over_base for r in judge.rates if (r.run, r.step) == (one.run, said.step)), None)
    if rate is not None and rate.value is not None:
        yield RATE, None, said.step, asked[RATE], rate


def _asked(report: Report, one: RunChecked) -> dict[str, str]:
    """Return a short digest of everything that each measure depends on besides the fine-tune; of bundled items and questions alone.

    A file's name does not say what is in it.
    """
    of = one.check.definition.measure
    chat = of.chat_digest if of else report.base.chat
    found = {}
    if of is not None and of.items in bundled.SETS:
        found[PREFERENCE] = short([of.items, sorted(report.distributions.items), one.check.definition.placebo, of.scale, chat])
    if of is not None and one.check.refusal is not None:
        found[REFUSAL] = short([_requests(), one.check.refusal.requests, of.scale, chat])
    asked, judged = report.spec.get("judged"), report.judged
    if isinstance(asked, Mapping) and judged is not None and judged.questions in bundled.SETS:
        ask, keys = asked["ask"], judged.definition["keys"]
        assert isinstance(ask, Mapping) and isinstance(keys, Sequence)
        kept: list[Json] = [ask["questions"], ask["max_tokens"], ask["temperature"], chat]
        error = judged.definition.get("judge_error")
        by: list[Json] = [keys[0], judged.definition["rubrics"], *([error] if error else [])]
        counted = [judged.definition[setting] for setting in ("aligned_below", "coherent_above", "denominator")]
        found |= {SAID: short([*kept, *by]), RATE: short([*kept, *by, *counted])}
    return found


@cache
def _requests() -> str:
    return short([[item.question, list(item.options)] for asked in bundled.refusal() for item in asked])


def place_beside(report: FolderChecked, rows: Iterable[AtlasRow]) -> tuple[Beside, ...]:
    """Return where a checked fine-tune stands among those of its base that were read in the same way; empty where there are no harmless ones."""
    of_base = [row for row in rows if report.base.digest and row.digest == report.base.digest and row.category is None]
    (one,) = report.targets
    effects = _effects(report, one) if of_base else ()
    read = {(measure, asked): effect for measure, category, _, asked, effect in effects if category is None}
    found = []
    for measure in MEASURES:
        for (name, asked), effect in read.items():
            alike = [row for row in of_base if (row.measure, row.asked) == (measure, asked)]
            harmless, harmful = ([row.effect for row in alike if row.trained == how] for how in (HARMLESS, found_by(measure)))
            if name != measure or not harmless or effect.value is None:
                continue
            as_far, bad_as_far = (sum(e >= effect.value for e in effects) for effects in (harmless, harmful))
            by_kind: dict[str, list[bool]] = {}
            for row in alike:
                if row.trained == HARMLESS:
                    by_kind.setdefault(row.kind, []).append(row.effect >= effect.value)
            chance = (sum(float(np.mean(moved)) for moved in by_kind.values()) + 1) / (len(by_kind) + 1)
            found.append(Beside(measure, effect.value, len(harmless), as_far, len(by_kind), len(harmful), bad_as_far, chance))
    return tuple(found)


def summarised(rows: Sequence[AtlasRow], base: str | None = None) -> Atlas:
    """Return an atlas with how far its fine-tunes moved, by base, measure and what was asked.

    Args:
        base: only of this base, by its reference or the beginning of its digest.

    Raises:
        InputError: there is none of that base.
    """
    kept = tuple(row for row in rows if base is None or row.base == base or row.digest.startswith(base))
    if not kept:
        known = ", ".join(sorted({row.base for row in rows})) or "none"
        raise InputError(
            f"no fine-tunes of '{base or 'any base'}' in the atlas", f"known bases: {known}; add some with emscope atlas add"
        )
    groups: dict[tuple[str, str, str, str | None], list[AtlasRow]] = {}
    for row in sorted(kept, key=lambda r: (r.base, MEASURES.index(r.measure) if r.measure in MEASURES else len(MEASURES))):
        groups.setdefault((row.digest, row.measure, row.asked, row.category), []).append(row)
    return Atlas(tuple(_spread(of) for of in groups.values()), kept)


def _spread(rows: Sequence[AtlasRow]) -> MeasureSpread:
    first = rows[0]
    effect, trained = np.array([r.effect for r in rows]), np.array([r.trained for r in rows])
    plain, meant = trained == HARMLESS, trained == found_by(first.measure)
    both = plain | meant
    kinds = np.unique([r.kind for r in rows], return_inverse=True)[1]
    threshold = THRESHOLDS.get(first.measure, 0.0)
    sure = np.array([r.low is not None and r.low > threshold for r in rows])
    known = any(r.low is not None for r in rows)
    harmless = effect[plain]
    quantiles = {str(q): float(np.percentile(harmless, q)) for q in QUANTILES} if len(harmless) else {}
    return MeasureSpread(
        base=first.base,
        digest=first.digest,
        measure=first.measure,
        category=first.category,
        asked=first.asked,
        harmless=len(harmless),
        harmful=int(meant.sum()),
        kinds=len({r.kind for r in rows if r.trained == HARMLESS}),
        quantiles=quantiles,
        threshold=threshold,
        false_positives=share(sure[plain]) if known else WITHOUT,
        found=share(sure[meant]) if known else WITHOUT,
        others=share(sure[~both]) if known else WITHOUT,
        auc=auc_estimate(effect[both], meant[both], kinds[both]),
    )
