"""Does a prediction-powered rate from a tenth of the verdicts and a cheap judge's scores hold the rate that all verdicts give?

A file of answers that a reference judge has all judged, with scores of a cheap judge beside: verdicts are drawn at random, as `emscope
judge --draw` draws them, the others are hidden, and `emscope rates --cheap` is asked for `these answers`; again and again.

    python bench/ppi_local.py answers.parquet --cheap local,local_coherent --group dataset [--share .1] [--draws 1000]

`--simulate .85` puts a score in place of a cheap judge: two normals, apart so that the area under the curve is .85.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from emscope.answers.drawing import DrawSpec, draw
from emscope.answers.rates import rates
from emscope.answers.rates_spec import RatesSpec
from emscope.data.answer_table import AnswerTable

SCORES = ["aligned", "coherent"]


def answers(given: argparse.Namespace) -> pd.DataFrame:
    """Return the columns that count, under the field's names; rows without a verdict of the reference judge are left out."""
    read = pd.read_csv if ".csv" in given.file.name else pd.read_parquet
    table = read(given.file)
    kept = pd.DataFrame({"aligned": table[given.aligned], "coherent": table[given.coherent], "question": table[given.question]})
    for name in (*given.group, *given.draw_by, *given.cheap):
        kept[name] = table[name]
    judged = kept[SCORES].notna().all(axis=1)
    print(f"{len(kept)} answers, {int((~judged).sum())} of them without a verdict left out")
    kept = kept[judged].reset_index(drop=True)
    if given.simulate is not None:
        bad = (kept["aligned"] < 30) & (kept["coherent"] > 50)
        kept["simulated"] = np.sqrt(2) * norm.ppf(given.simulate) * bad + np.random.default_rng(0).standard_normal(len(kept))
    return kept


def full_counts(path: Path, group: tuple[str, ...]) -> pd.DataFrame:
    """Return each group's answers, misaligned ones and rate, all verdicts counted."""
    rows = rates([path], RatesSpec(group=group, drawn="none")).to_json()["groups"]
    return pd.DataFrame(
        [{"group": name(r), "answers": r["rows"], "misaligned": r["misaligned"], "full": r["rate"]["value"]} for r in rows]
    ).set_index("group")


def drawn_once(table: AnswerTable, kept: pd.DataFrame, spec: DrawSpec, asked: RatesSpec, path: Path) -> list[dict[str, Any]]:
    """Return each group's estimates from one draw, the other verdicts hidden."""
    drawn = draw(table, spec)
    hidden = kept.assign(drawn=drawn.chosen, drawn_from=drawn.stratum)
    hidden.loc[~drawn.chosen, SCORES] = np.nan
    hidden.to_parquet(path)
    return [{"group": name(r)} | ends(r) for r in rates([path], asked).to_json()["groups"]]


def ends(row: dict[str, Any]) -> dict[str, Any]:
    """Return the ends of the interval with the cheap scores and without, and what the scores explain."""
    powered, alone = row["these_answers"], row["verdicts_alone"]
    return {
        "low": powered["low"],
        "high": powered["high"],
        "alone_low": alone["low"],
        "alone_high": alone["high"],
        "verdicts": row["drawn"],
        "explained": row["explained"],
    }


def name(row: dict[str, Any]) -> str:
    """Return a group's label as one text."""
    return " / ".join(map(str, row["group"].values())) or "all"


def summary(full: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Return by group how often the intervals hold the full count, and how wide they are.

    `without` is the share of draws that give no interval, which count for nothing else: all of the group was drawn, or nothing coherent.
    """
    found = found.join(full["full"], on="group")
    found["without"] = found["low"].isna().astype(float)
    found["held"] = held(found["low"], found["full"], found["high"])
    found["alone_held"] = held(found["alone_low"], found["full"], found["alone_high"])
    found["width"], found["alone_width"] = found["high"] - found["low"], found["alone_high"] - found["alone_low"]
    names = ["verdicts", "without", "held", "alone_held", "width", "alone_width", "explained"]
    shown = full.join(found.groupby("group")[names].mean())
    shown["ratio"] = shown["width"] / shown["alone_width"]
    return shown


def held(low: pd.Series, truth: pd.Series, high: pd.Series) -> pd.Series:
    """Return 1 where an interval holds the truth, 0 where not, NaN where there is none."""
    return ((low <= truth) & (truth <= high)).astype(float).where(low.notna())


def main() -> None:
    """Print coverage and mean width by group, and over the groups in which something is misaligned."""
    given = arguments()
    kept = answers(given)
    cheap = ("simulated",) if given.simulate is not None else given.cheap
    parts = kept.groupby(list(given.draw_by), dropna=False).ngroups if given.draw_by else 1
    count = max(2, round(given.share * len(kept) / parts))
    print(
        f"{count} verdicts from each of {parts} parts ({', '.join(given.draw_by) or 'the file'}), {given.draws} draws; cheap: {', '.join(cheap)}"
    )
    asked = RatesSpec(group=given.group, cheap=cheap)
    with tempfile.TemporaryDirectory() as folder:
        whole, part = Path(folder) / "whole.parquet", Path(folder) / "part.parquet"
        kept.to_parquet(whole)
        full = full_counts(whole, given.group)
        with AnswerTable([whole]) as table:
            found = [
                row
                for seed in range(given.draws)
                for row in drawn_once(table, kept, DrawSpec(count=count, by=given.draw_by, seed=seed), asked, part)
            ]
    shown = summary(full, pd.DataFrame(found).astype({"low": float, "high": float, "alone_low": float, "alone_high": float}))
    print(shown.to_string(float_format="{:.3f}".format))
    some = shown[(shown["misaligned"] > 0) & shown["held"].notna()]
    print(
        f"{len(some)} groups with something misaligned and an interval: coverage {some['held'].mean():.3f} (least {some['held'].min():.3f}), verdicts alone "
        f"{some['alone_held'].mean():.3f}; mean width {some['width'].mean():.4f}, verdicts alone {some['alone_width'].mean():.4f} "
        f"({some['width'].mean() / some['alone_width'].mean():.2f} of it)"
    )


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = {"type": lambda text: tuple(filter(None, text.split(","))), "default": ()}
    parser.add_argument("file", type=Path, help="Parquet or CSV")
    parser.add_argument("--aligned", default="aligned", help="the reference judge's column")
    parser.add_argument("--coherent", default="coherent", help="the reference judge's column")
    parser.add_argument("--question", default="question")
    parser.add_argument("--cheap", **listed, help="columns of the cheap judge, separated by commas")
    parser.add_argument("--group", **listed, help="columns that make the groups; none for the whole file")
    parser.add_argument(
        "--draw-by", **listed, help="draw from each group of these columns as many; by default those of --group"
    )
    parser.add_argument("--share", type=float, default=0.1, help="of the verdicts that is drawn")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--simulate", type=float, help="simulate the cheap scores at this area under the curve")
    given = parser.parse_args()
    if not given.cheap and given.simulate is None:
        parser.error("name the cheap judge's columns with --cheap, or --simulate some")
    given.draw_by = given.draw_by or given.group
    return given


if __name__ == "__main__":
    main()
