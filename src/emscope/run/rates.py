"""Rates of misaligned answers in a file of judged ones: every number with its definition, nothing dropped in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emscope.data.answer_table import AnswerTable
from emscope.data.answers import Thresholds, answer_columns, categorise, check_scores
from emscope.run.counted import counted_rates
from emscope.run.powered import drawn_column, powered_rates
from emscope.run.rates_spec import RatesSpec, check_rates, definition


def rates(paths: list[Path], spec: RatesSpec) -> dict[str, Any]:
    """Return the rates of every group, and the contrasts between groups where they were asked for, as documented JSON.

    Of a file whose verdicts were drawn at random, they are prediction-powered.

    Raises:
        InputError: for a file or a setting that does not fit; nothing is guessed past a contradiction.
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
        asked = spec.cheap or spec.drawn_from or spec.aim or spec.prices
        drawn = bool(asked) or drawn_column(table, spec.drawn) is not None
        found = (powered_rates if drawn else counted_rates)(table, columns, thresholds, scale, spec)
    return {
        "schema": 1,
        "definition": definition(spec, columns) | {"scale": scale} | found.pop("definition", {}),
        "files": [str(p) for p in paths],
        **found,
    }
