"""Rates of misaligned answers in a file of judged ones: every number with its definition, nothing dropped silently."""

from __future__ import annotations

from pathlib import Path

from emscope.answers.fully_judged_rates import fully_judged_rates
from emscope.answers.predicted_rates import drawn_column, prediction_powered_rates
from emscope.answers.rates_result import Definition, DrawColumns, Rates
from emscope.answers.rates_spec import RatesSpec, check_rates
from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable, asked, quoted
from emscope.data.answers import ASKED, Columns, Thresholds, answer_columns, categorise, check_scores


def rates(paths: list[Path], spec: RatesSpec) -> Rates:
    """Return the rates of every group, and the contrasts between groups where they were asked for.

    Of a file whose verdicts were drawn at random, they are prediction-powered.

    Raises:
        InputError: for a file or a setting that does not fit; contradictions are never resolved by guessing.
    """
    check_rates(spec)
    with AnswerTable(paths) as table:
        if spec.categories is not None:
            categorise(table, spec.categories, spec.question)
        columns = answer_columns(
            table,
            aligned=spec.aligned,
            coherent=spec.coherent,
            question=spec.question,
            groups=spec.group,
            need_coherent=spec.coherent_above is not None,
            length=spec.match_length,
        )
        scale = spec.scale or "0-100"
        check_scores(table, columns, scale, said=spec.scale is not None)
        thresholds = Thresholds(spec.aligned_below, spec.coherent_above)
        wanted = spec.cheap or spec.drawn_from or spec.aim or spec.prices
        drawn = bool(wanted) or drawn_column(table, spec.drawn) is not None
        if drawn and spec.estimand == "these":
            raise InputError(
                "`estimand=these` cannot be combined with drawn verdicts",
                "read `these answers` beside the rate, or count all scores with `drawn=none`",
            )
        found = (prediction_powered_rates if drawn else fully_judged_rates)(table, columns, thresholds, scale, spec)
        notes = (*found.notes, *_finer_than_the_text(table, columns))
    about = _definition(spec, columns, scale, found.draw)
    return Rates(about, tuple(str(p) for p in paths), found.questions, found.groups, found.contrasts, notes)


def _definition(spec: RatesSpec, columns: Columns, scale: str, draw: DrawColumns | None) -> Definition:
    return Definition(
        spec.aligned_below,
        spec.coherent_above,
        spec.denominator,
        spec.average,
        spec.missing,
        spec.estimand,
        spec.level,
        spec.resamples,
        columns,
        scale,
        draw,
    )


def _finer_than_the_text(table: AnswerTable, columns: Columns) -> list[str]:
    """Return a sentence where several identifiers of questions share one text: they number samples or forms, not questions."""
    names = [table.usual((name,)) for name in ASKED]
    text = next((n for n in names if n is not None and n not in (columns.question, *columns.groups)), None)
    if columns.question is None or text is None:
        return []
    said, id = f"{quoted(text)}::varchar", asked(columns.question)
    # names are quoted
    shared = f"""select count(*) as ids, min(id) as a, max(id) as b
        from (select distinct {said} as said, {id} as id from {table.source} where {said} is not null and {id} is not null)
        group by said having count(*) > 1"""  # noqa: S608
    texts, ids, a, b = table.rows(f"select count(*), sum(ids), min(a), min_by(b, a) from ({shared})")[0]  # noqa: S608
    if not texts:
        return []
    return [
        f"{ids} values of '{columns.question}' share {texts} texts of column '{text}' ('{a}' and '{b}' do). If they number samples or "
        f"forms of one question, intervals are too narrow and groups do not pair: set `question={text}`."
    ]
