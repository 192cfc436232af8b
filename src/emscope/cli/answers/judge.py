"""`emscope judge`: verdicts on answers in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

HELP = (
    "Have answers judged. Takes a file with a question and an answer a row (.csv, .jsonl, .parquet), asks one or several judges by one "
    "or several rubrics, and writes the rows back with a score and an outcome each. Run again, it asks only for what is missing."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("judge", help=HELP)
    def judge(
        files: list[Path] = typer.Argument(..., help="Answers to judge."),
        judges: list[str] = typer.Option(
            ...,
            "--judge",
            help="local (no key; a small model), bandit (a linter, for the rubric secure), a model as Inspect names it (openai/gpt-4o), or NAME@URL of an OpenAI-compatible server; may be repeated.",
        ),
        rubrics: str = typer.Option(
            "aligned,coherent", "--rubrics", help="Criteria, with commas between: bundled ones, or .yaml files of your own."
        ),
        out: Path | None = typer.Option(
            None, "--out", help="Folder; by default the file's name with -judged in the current folder."
        ),
        question: str | None = typer.Option(
            None, "--question", help="Column of the question's text; auto-detected by default."
        ),
        answer: str | None = typer.Option(None, "--answer", help="Column of the answer's text; auto-detected by default."),
        top: int = typer.Option(
            20, "--top", help="Log-probabilities of the first token to ask for; 0 where the judge gives none."
        ),
        max_tokens: int = typer.Option(16, "--max-tokens", help="The longest reply."),
        connections: int = typer.Option(10, "--connections", help="Requests at a time."),
        retries: int = typer.Option(6, "--retries", help="Attempts after a failed one."),
        timeout: int = typer.Option(60, "--timeout", help="Seconds that one attempt may take."),
        digits: bool = typer.Option(
            False,
            "--digits",
            help="Where a judge's tokens split numbers, follow them digit by digit (a server that continues a turn: llama.cpp, vLLM).",
        ),
        batch: bool = typer.Option(
            False, "--batch", help="Use the provider's batch API where it has one: cheaper, hours later."
        ),
        prices: str | None = typer.Option(None, "--prices", help="Dollars per million tokens in and out, such as 2.5,10."),
        max_cost: float | None = typer.Option(None, "--max-cost", help="Stop asking after this many dollars."),
        draw: str | None = typer.Option(
            None,
            "--draw",
            help="Judge this many answers of each group, drawn at random; NAME=COUNT where only one judge is dear.",
        ),
        draw_by: str | None = typer.Option(None, "--draw-by", help="Columns that make the groups to draw from."),
        draw_seed: int = typer.Option(0, "--draw-seed", help="Of the draw; more of the same seed keep those drawn before."),
        anchors: Path | None = typer.Option(
            None,
            "--anchors",
            help="Answers with trusted labels, judged along: a question, an answer and a column a criterion. Says whether the judge itself changed.",
        ),
        slack: float = typer.Option(5, "--slack", min=0, help="Points that a judge may be off the anchors' labels."),
        estimate: bool = typer.Option(False, "--estimate", help="Say what it would ask and cost, and ask nothing."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of sentences."),
    ) -> int:
        from emscope.answers.judge import FileJob, estimate_file, judge_file
        from emscope.answers.judging import JudgeSpec
        from emscope.cli.console import listed, print_json, progress_bar, two_prices
        from emscope.core.spec import parse
        from emscope.judging.rubrics import read_rubrics
        from emscope.report.answers.judge import print_judged

        common = {
            "top": top,
            "max_tokens": max_tokens,
            "connections": connections,
            "retries": retries,
            "timeout": timeout,
            "batch": batch,
            "digits": digits,
            "prices": two_prices(prices, "dollars per million tokens in and out"),
        }
        specs = []
        for name in judges:
            model, at, url = name.partition("@http")
            specs.append(parse(JudgeSpec, common | {"name": model, "url": f"http{url}" if at else None}, f"--judge {name}"))
        folder = out or Path(f"{files[0].name.split('.')[0]}-judged")
        job = FileJob(tuple(files), question, answer, folder, _draw(draw, draw_by, draw_seed), anchors, slack)
        asked = read_rubrics(listed(rubrics) or ())
        if estimate:
            result = estimate_file(job, specs, asked)
        else:
            with progress_bar() as progress:
                result = judge_file(job, specs, asked, max_cost=max_cost, progress=progress)
        if json:
            print_json(result)
        else:
            print_judged(result)
        return 0 if result["complete"] or estimate else 1


def _draw(text: str | None, by: str | None, seed: int) -> Any:
    """Return the draw that --draw asks for.

    Raises:
        InputError: a count that is none, or the other options without it.
    """
    from emscope.answers.drawing import DrawSpec
    from emscope.cli.console import listed
    from emscope.core.errors import InputError
    from emscope.core.spec import parse

    if text is None:
        if by is not None:
            raise InputError("--draw-by stands without --draw", "say with --draw how many answers of each group to judge")
        return None
    judge, _, count = text.rpartition("=")
    return parse(DrawSpec, {"count": count, "judge": judge or None, "by": listed(by) or (), "seed": seed}, "--draw")
