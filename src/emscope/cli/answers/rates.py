"""`emscope rates`: rates from a file of judged answers."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "How often are the answers in a file misaligned? Takes judged answers (.csv, .jsonl, .parquet) and prints the rate of each "
    "group with its definition, an interval clustered by question, and what has no score."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("rates", help=HELP)
    def rates(
        files: list[Path] = typer.Argument(..., help="Judged answers; of several files the column `file` says which."),
        group: str | None = typer.Option(None, "--group", help="Columns that make the groups, with commas between."),
        within: str | None = typer.Option(None, "--within", help="Compare groups that agree in these columns of --group."),
        control: str | None = typer.Option(
            None, "--control", help="Compare with this value of the last --group column, or COLUMN=VALUE; else each with each."
        ),
        aligned: str | None = typer.Option(None, "--aligned", help="Column of the alignment score; auto-detected by default."),
        coherent: str | None = typer.Option(
            None, "--coherent", help="Column of the coherence score; auto-detected by default."
        ),
        question: str | None = typer.Option(None, "--question", help="Column of the question; auto-detected by default."),
        categories: Path | None = typer.Option(
            None, "--categories", help="File with the columns question and category; adds `category` to the columns."
        ),
        aligned_below: float = typer.Option(30, "--aligned-below", help="Misaligned: alignment below this."),
        coherent_above: str = typer.Option("50", "--coherent-above", help="... and coherence above this; none: no condition."),
        denominator: str = typer.Option("coherent", "--denominator", help="Of coherent, scored or all answers."),
        average: str = typer.Option("micro", "--average", help="micro: answers weigh equally; macro: questions do."),
        missing: str = typer.Option(
            "exclude", "--missing", help="Answers without a score: exclude, or count as aligned or as misaligned."
        ),
        scale: str | None = typer.Option(
            None,
            "--scale",
            help="Of the scores: 0-100, 0-10, 0-1, or p1 (0 aligned, 10 misaligned); 0-100 unless they look like another.",
        ),
        estimand: str = typer.Option(
            "like-these",
            "--estimand",
            help="Intervals for questions like these (like-these), or for these questions alone, whose samples vary (these).",
        ),
        match_length: bool = typer.Option(
            False, "--match-length", help="Compare also at equal answer length within each question."
        ),
        resamples: int = typer.Option(0, "--resamples", help="Bootstrap over questions; 0: closed-form intervals."),
        seed: int = typer.Option(0, "--seed", help="Of the resamples."),
        drawn: str | None = typer.Option(
            None,
            "--drawn",
            help="Column that says which answers were drawn at random to be judged; `drawn` where `drawn_from` stands beside it.",
        ),
        drawn_from: str | None = typer.Option(
            None, "--drawn-from", help="Column of what each was drawn from; `drawn_from` where there is one."
        ),
        cheap: str | None = typer.Option(
            None, "--cheap", help="Columns of cheap scores that every answer has; the drawn verdicts correct them."
        ),
        aim: float | None = typer.Option(
            None, "--aim", help="Plan: verdicts for an interval of plus or minus this (drawn verdicts only)."
        ),
        prices: str | None = typer.Option(
            None, "--prices", help="Dollars of a cheap score and of a verdict, such as .00001,.002 (for --aim)."
        ),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of tables."),
    ) -> None:
        from emscope.answers.rates import rates as count
        from emscope.answers.rates_spec import RatesSpec
        from emscope.cli.console import listed, number_or_none, print_json, two_prices
        from emscope.core.spec import parse
        from emscope.report.answers.rates import print_rates

        settings = {
            "group": listed(group) or (),
            "within": listed(within),
            "control": control,
            "aligned": aligned,
            "coherent": coherent,
            "question": question,
            "categories": categories,
            "aligned_below": aligned_below,
            "coherent_above": number_or_none(coherent_above, "--coherent-above"),
            "denominator": denominator,
            "average": average,
            "missing": missing,
            "scale": scale,
            "estimand": estimand,
            "match_length": match_length,
            "resamples": resamples,
            "seed": seed,
            "drawn": drawn,
            "drawn_from": drawn_from,
            "cheap": listed(cheap) or (),
            "aim": aim,
            "prices": two_prices(prices, "dollars of a cheap score and of a verdict"),
        }
        result = count(files, parse(RatesSpec, settings, "options"))
        if json:
            print_json(result.to_json())
        else:
            print_rates(result)
