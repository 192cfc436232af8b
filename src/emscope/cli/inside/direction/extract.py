"""`emscope direction extract`: find a vector at each layer."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "Find a direction at each layer: from questions with an aligned and a misaligned answer, from judged answers (--answers), from what the model "
    "answers under two system texts (--systems), or from what separates two models on the same texts (--minus). Writes a direction file, with the "
    "directions of shuffled labels beside it."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("extract", help=HELP)
    def extract(
        model: str | None = typer.Option(None, "--model", help="The base; by default the one that the checkpoint names."),
        checkpoint: str | None = typer.Option(
            None,
            "--checkpoint",
            help="The fine-tune whose activations are read, its last checkpoint; the base itself without it.",
        ),
        out: Path = typer.Option(Path("direction.safetensors"), "--out", help="The direction file."),
        items: str = typer.Option("em240", "--items", help="Bundled set, or file with question, aligned and misaligned."),
        half: str = typer.Option("both", "--half", help="A or B: leave the other half of the items for testing."),
        answers: Path | None = typer.Option(None, "--answers", help="File of judged answers to use in place of items."),
        aligned_below: float = typer.Option(30, "--aligned-below", help="Judged answers: misaligned are those below this."),
        aligned_above: float = typer.Option(70, "--aligned-above", help="Judged answers: aligned are those above this."),
        coherent_above: str = typer.Option(
            "50", "--coherent-above", help="... and both more coherent than this; none: no condition."
        ),
        aligned: str | None = typer.Option(None, "--aligned", help="Column of the alignment score; auto-detected by default."),
        coherent: str | None = typer.Option(
            None, "--coherent", help="Column of the coherence score; auto-detected by default."
        ),
        question: str | None = typer.Option(
            None, "--question", help="Column of the question's text; auto-detected by default."
        ),
        answer: str | None = typer.Option(None, "--answer", help="Column of the answer's text; auto-detected by default."),
        systems: tuple[str, str] | None = typer.Option(
            None, "--systems", help="Two system texts, the first asking for the behaviour, the second for its opposite."
        ),
        minus: str | None = typer.Option(
            None,
            "--minus",
            help="A fine-tune, or base: what separates the model of --checkpoint from that one on the same texts, the items' questions (--pool last) or answers.",
        ),
        questions: str = typer.Option(
            "em240", "--questions", help="With --systems: bundled set or file of questions to answer."
        ),
        samples: int = typer.Option(1, "--samples", help="With --systems: answers to each question under each text."),
        max_tokens: int = typer.Option(64, "--max-tokens", help="With --systems: the most tokens an answer may have."),
        count: int | None = typer.Option(None, "--count", help="Use so many items or questions."),
        method: str = typer.Option("mean", "--method", help="mean (difference of means), pca or logistic."),
        pool: str = typer.Option(
            "answer",
            "--pool",
            help="Tokens to take the mean over: answer; with --systems and --minus also last, the prompt's last token.",
        ),
        layers: str | None = typer.Option(None, "--layers", help="Such as 8,12,16; 0 is the first block. All by default."),
        nulls: int = typer.Option(10, "--nulls", help="Null directions of each kind to keep beside it."),
        system: str = typer.Option("none", "--system", help="System prompt of items and answers: none, template, or a text."),
        seed: int = typer.Option(0, "--seed", help="Random seed."),
        device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of a table."),
    ) -> None:
        from emscope.cli.console import number_or_none, print_json, progress_bar, whole_numbers
        from emscope.core.spec import parse
        from emscope.inside.extract import ExtractSpec
        from emscope.inside.extract import extract as find
        from emscope.report.inside.directions import print_extracted

        settings = {
            "items": items,
            "half": half,
            "count": count,
            "answers": str(answers) if answers else None,
            "aligned": aligned,
            "coherent": coherent,
            "question": question,
            "answer": answer,
            "aligned_below": aligned_below,
            "aligned_above": aligned_above,
            "coherent_above": number_or_none(coherent_above, "--coherent-above"),
            "systems": systems,
            "minus": minus,
            "questions": questions,
            "samples": samples,
            "max_tokens": max_tokens,
            "method": method,
            "pool": pool,
            "layers": whole_numbers(layers, "--layers"),
            "nulls": nulls,
            "system": system,
            "seed": seed,
        }
        with progress_bar() as progress:
            result = find(
                parse(ExtractSpec, settings, "options"),
                out,
                base=model,
                checkpoint=checkpoint,
                device=device,
                progress=progress,
            )
        if json:
            print_json(result.to_json())
        else:
            print_extracted(result.to_json())
