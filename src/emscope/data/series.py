"""Values along training from a file: by group, arm and step, and within them by unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable, asked, quoted


@dataclass(frozen=True, slots=True)
class Series:
    """Sums of values by cell, N cells.

    Attributes:
        groups, arms: names, by index. group, arm, step, unit: of each cell [N]; unit -1 where there are no units.
        total, count: sum and number of the values of a cell [N]; lost: its rows without a value [N].
        low, high: the smallest and largest value in the file. binary: all values are 0 or 1.
    """

    groups: list[tuple[str | None, ...]]
    arms: list[str]
    group: np.ndarray
    arm: np.ndarray
    step: np.ndarray
    unit: np.ndarray
    total: np.ndarray
    count: np.ndarray
    lost: np.ndarray
    low: float
    high: float
    binary: bool


def read_series(
    table: AnswerTable, value: str, *, step: str, unit: str | None, arm: str | None, groups: tuple[str, ...]
) -> Series:
    """Return the values of a table summed by cell.

    Args:
        value: an SQL expression, null where a row has no value.
        step, unit, arm, groups: columns.

    Raises:
        InputError: a step that is not a whole number, or no value at all.
    """
    table.named(step, unit, arm, *groups)
    number = table.number(step)
    wrong = table.rows(
        f"select {quoted(step)}::varchar from {table.source} where {number} is null or {number} <> floor({number}) or {number} < 0 limit 1"
    )
    if wrong:
        raise InputError(
            f"column '{step}' holds '{wrong[0][0]}', which is not a step", "steps are whole numbers from 0 (the base) on"
        )
    names = "".join(f", {quoted(g)}::varchar as g{n}" for n, g in enumerate(groups))
    keys = "".join(f", g{n}" for n in range(len(groups)))
    table.run(
        f"""create or replace temp table cells as select {number}::bigint as step, {f"{quoted(arm)}::varchar" if arm else "''"} as arm,
            {asked(unit) if unit else "''"} as unit{names}, {value} as x from {table.source}"""
    )
    low, high, binary = table.rows("select min(x), max(x), bool_and(x in (0, 1)) from cells")[0]
    if low is None:
        raise InputError(f"'{table.where}' holds no value to follow along training", "name its column with `value`")
    order = ", ".join(f"try_cast(g{n} as double) nulls last, g{n} nulls last" for n in range(len(groups))) or "1"
    found = table.run(
        f"""select dense_rank() over (order by {order})::bigint - 1 as g, dense_rank() over (order by arm nulls first)::bigint - 1 as a,
            dense_rank() over (order by unit nulls first)::bigint - 1 as u, step, coalesce(sum(x), 0)::double as total,
            count(x) as n, count(*) - count(x) as lost{keys}, arm from cells group by step, arm, unit{keys} order by g, a, step, u"""
    ).fetchnumpy()
    cells = {k: np.ma.getdata(v) for k, v in found.items()}
    groups_of = {int(g): tuple(cells[f"g{n}"][row] for n in range(len(groups))) for row, g in enumerate(cells["g"])}
    arms_of = {int(a): str(cells["arm"][row]) for row, a in enumerate(cells["a"])}
    return Series(
        groups=[groups_of[n] for n in sorted(groups_of)],
        arms=[arms_of[n] for n in sorted(arms_of)],
        group=cells["g"].astype(np.int64),
        arm=cells["a"].astype(np.int64),
        step=cells["step"].astype(np.int64),
        unit=cells["u"].astype(np.int64) if unit else np.full(len(cells["u"]), -1),
        total=cells["total"],
        count=cells["n"].astype(np.int64),
        lost=cells["lost"].astype(np.int64),
        low=float(low),
        high=float(high),
        binary=bool(binary),
    )
