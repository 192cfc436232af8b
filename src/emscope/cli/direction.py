"""`emscope direction`: vectors inside a model that point to a behaviour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Directions inside a model that point to misalignment: find and compare them.",
)

EXTRACT = (
    "Find a direction at each layer: from questions with an aligned and a misaligned answer, from judged answers (--answers), or from what the model "
    "answers under two system texts (--systems). Writes a direction file, with the directions of shuffled labels beside it."
)
COMPARE = (
    "Cosines between directions: direction files, runs that trained a steering vector, or safetensors files of plain vectors, each tensor of "
    "which is a direction (one for each checkpoint, say)."
)
STEER = (
    "Add a direction to a model, at each layer and strength, and read how its preference between aligned and misaligned answers moves, beside "
    "directions that mean nothing: random ones, random ones with the activations' covariance, those of shuffled labels, those of harmless fine-tunes."
)
SAMPLE = "Sample answers while a direction is added or taken out, one run name for each layer and strength. `emscope judge` and `emscope rates --group run` take the file that comes out."
EXPORT = "Write a direction as a control vector in GGUF, for llama.cpp."
ABLATE = "Take a direction out of a model and read how its preference moves, beside directions that mean nothing."


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app, name="direction")


@app.command("extract", help=EXTRACT)
def extract(
    model: str | None = typer.Option(None, "--model", help="The base; by default the one that the checkpoint names."),
    checkpoint: str | None = typer.Option(
        None, "--checkpoint", help="The fine-tune whose activations are read, its last checkpoint; the base itself without it."
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
    aligned: str | None = typer.Option(None, "--aligned", help="Column of the alignment score; by default a usual name."),
    coherent: str | None = typer.Option(None, "--coherent", help="Column of the coherence score; by default a usual name."),
    question: str | None = typer.Option(None, "--question", help="Column of the question's text; by default a usual name."),
    answer: str | None = typer.Option(None, "--answer", help="Column of the answer's text; by default a usual name."),
    systems: tuple[str, str] | None = typer.Option(
        None, "--systems", help="Two system texts, the first asking for the behaviour, the second for its opposite."
    ),
    questions: str = typer.Option("em240", "--questions", help="With --systems: bundled set or file of questions to answer."),
    samples: int = typer.Option(1, "--samples", help="With --systems: answers to each question under each text."),
    max_tokens: int = typer.Option(64, "--max-tokens", help="With --systems: the most tokens an answer may have."),
    count: int | None = typer.Option(None, "--count", help="Use so many items or questions."),
    method: str = typer.Option("mean", "--method", help="mean (difference of means), pca or logistic."),
    pool: str = typer.Option(
        "answer", "--pool", help="Tokens to take the mean over: answer; with --systems also last, the prompt's last token."
    ),
    layers: str | None = typer.Option(None, "--layers", help="Such as 8,12,16; 0 is the first block. All by default."),
    nulls: int = typer.Option(10, "--nulls", help="Meaningless directions of each kind to keep beside it."),
    system: str = typer.Option("none", "--system", help="System prompt of items and answers: none, template, or a text."),
    seed: int = typer.Option(0, "--seed", help="Of everything drawn."),
    device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
    json: bool = typer.Option(False, "--json", help="Print the result object instead of a table."),
) -> None:
    from emscope.cli.console import number_or_none, print_json, progress_bar, whole_numbers
    from emscope.core.spec import parse
    from emscope.report.directions import print_extracted
    from emscope.run.inside.directing import ExtractSpec
    from emscope.run.inside.directing import extract as find

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
            parse(ExtractSpec, settings, "options"), out, base=model, checkpoint=checkpoint, device=device, progress=progress
        )
    if json:
        print_json(result)
    else:
        print_extracted(result)


def _tries(way: str) -> Callable[..., None]:
    """Return the command that tries directions by adding them or by taking them out: they share all options but the scales."""

    def run(
        directions: list[str] = typer.Argument(
            ..., help="Direction files, or runs that trained a steering vector; several are averaged."
        ),
        model: str | None = typer.Option(None, "--model", help="The base; by default the one that the checkpoint names."),
        checkpoint: list[str] = typer.Option(
            [],
            "--checkpoint",
            help="Act in this fine-tune, its last checkpoint; once for all directions, or once for each. The base without it.",
        ),
        control: list[str] = typer.Option(
            [], "--control", help="Direction of a harmless fine-tune, to compare with; may be given several times."
        ),
        out: Path = typer.Option(Path(f"emscope-{way}"), "--out", help="Folder of scores, report.json and figure.html."),
        layers: str | None = typer.Option(
            None, "--layers", help="Such as 8,12,16; 0 is the first block. All of the file's by default."
        ),
        together: bool = typer.Option(
            False, "--together", help="Act at all these layers at once; by default at one at a time."
        ),
        scales: str = typer.Option(
            "-2,-1,1,2", "--scales", help="What the direction is multiplied by.", hidden=way == "ablate"
        ),
        update: bool = typer.Option(
            False,
            "--update",
            help="Take it out of what the LoRA fine-tune itself writes into the stream, and leave the stream alone.",
            hidden=way == "add",
        ),
        tokens: str = typer.Option("all", "--tokens", help="Act at all tokens, at the prompt's or at the answer's."),
        items: str = typer.Option("em240", "--items", help="Bundled set, or file with question, aligned and misaligned."),
        half: str = typer.Option("both", "--half", help="A or B: the half that the direction was not found on."),
        count: int | None = typer.Option(None, "--count", help="Use so many items."),
        neutral: int = typer.Option(0, "--neutral", help="Also read so many neutral texts: what it does to anything else."),
        nulls: int = typer.Option(5, "--nulls", help="Try so many meaningless directions of each kind."),
        system: str = typer.Option("none", "--system", help="System prompt: none, template, or a text."),
        seed: int = typer.Option(0, "--seed", help="Of everything drawn."),
        device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of a table."),
    ) -> None:
        from emscope.cli.console import print_json, progress_bar, real_numbers, whole_numbers
        from emscope.core.errors import InputError
        from emscope.core.spec import parse
        from emscope.report.directions import dose_figures, print_steered
        from emscope.report.figures import write_figures
        from emscope.run.inside.steering import SteerSpec, steer

        if update and way == "add":
            raise InputError("--update stands with steer", "it belongs to ablate")
        settings = {
            "way": "ablate_update" if update else way,
            "layers": whole_numbers(layers, "--layers"),
            "together": together,
            "scales": real_numbers(scales, "--scales"),
            "tokens": tokens,
            "items": items,
            "half": half,
            "count": count,
            "neutral": neutral,
            "nulls": nulls,
            "system": system,
            "seed": seed,
        }
        with progress_bar() as progress:
            result = steer(
                directions,
                parse(SteerSpec, settings, "options"),
                out,
                base=model,
                checkpoints=checkpoint,
                controls=control,
                device=device,
                progress=progress,
            )
        write_figures(dose_figures(result), out / "figure.html", "What a direction does")
        if json:
            print_json(result)
        else:
            print_steered(result)
            print(f"numbers and figure: {out / 'report.json'}, {out / 'figure.html'}")

    return run


@app.command("sample", help=SAMPLE)
def sample(
    direction: str = typer.Argument(..., help="Direction file, or a run that trained a steering vector."),
    model: str | None = typer.Option(None, "--model", help="The base; by default the one that the checkpoint names."),
    checkpoint: str | None = typer.Option(
        None, "--checkpoint", help="Act in this fine-tune, its last checkpoint; the base without it."
    ),
    layers: str | None = typer.Option(None, "--layers", help="Layers to act at; all of the file's by default."),
    together: bool = typer.Option(False, "--together", help="Act at all these layers at once; by default at one at a time."),
    scales: str = typer.Option(
        "1,2", "--scales", help="What the direction is multiplied by; the untouched model is always asked too."
    ),
    ablate: bool = typer.Option(False, "--ablate", help="Take the direction out instead of adding it."),
    nulls: int = typer.Option(0, "--nulls", help="Also ask under so many meaningless directions of each kind."),
    questions: str = typer.Option("em240", "--questions", help="Bundled set, or a file."),
    samples: int | None = typer.Option(None, "--samples", help="Answers to each; by default the file's own number, or 1."),
    max_tokens: int = typer.Option(600, "--max-tokens", help="The longest answer."),
    temperature: float = typer.Option(1.0, "--temperature", help="0 takes the likeliest token."),
    systems: list[str] = typer.Option(["none"], "--system", help="none, template, or a text; may be repeated."),
    rows: int | None = typer.Option(None, "--rows", help="Answers to write side by side; by default what suits the device."),
    out: Path = typer.Option(Path("emscope-steered-answers"), "--out", help="Folder of the answers."),
    seed: int = typer.Option(0, "--seed", help="Of all draws."),
    device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
) -> None:
    from emscope.cli.console import progress_bar, real_numbers, whole_numbers
    from emscope.core.spec import parse
    from emscope.run.ask_spec import AskSpec
    from emscope.run.inside.steered_answers import sample_steered
    from emscope.run.inside.steering import SteerSpec

    steered = {
        "way": "ablate" if ablate else "add",
        "layers": whole_numbers(layers, "--layers"),
        "together": together,
        "scales": real_numbers(scales, "--scales"),
        "nulls": nulls,
        "seed": seed,
    }
    asked = {
        "questions": questions,
        "samples": samples,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "systems": systems,
        "rows": rows,
        "seed": seed,
    }
    with progress_bar() as progress:
        path = sample_steered(
            direction,
            parse(SteerSpec, steered, "options"),
            parse(AskSpec, asked, "options"),
            out,
            base=model,
            checkpoint=checkpoint,
            device=device,
            progress=progress,
        )
    print(f"answers: {path}")


@app.command("export", help=EXPORT)
def export(
    direction: str = typer.Argument(..., help="Direction file, or a run that trained a steering vector."),
    gguf: Path = typer.Option(..., "--gguf", help="The control vector to write, for llama.cpp's --control-vector."),
    layers: str | None = typer.Option(None, "--layers", help="Layers to write; all of the file's but 0 by default."),
    architecture: str = typer.Option("llama", "--architecture", help="The model's architecture, as GGUF files name it."),
) -> None:
    from emscope.cli.console import whole_numbers
    from emscope.run.inside.exporting import export_gguf

    written = export_gguf(direction, gguf, whole_numbers(layers, "--layers"), architecture)
    print(f"layers {', '.join(map(str, written))}: {gguf}")


app.command("steer", help=STEER)(_tries("add"))
app.command("ablate", help=ABLATE)(_tries("ablate"))


@app.command("compare", help=COMPARE)
def compare(
    directions: list[str] = typer.Argument(..., help="Direction files, runs, or files of plain vectors."),
    json: bool = typer.Option(False, "--json", help="Print the result object instead of a table."),
    plot: Path | None = typer.Option(None, "--plot", help="Write the figure into this HTML file."),
) -> None:
    from emscope.cli.console import print_json
    from emscope.report.directions import cosine_figures, print_compared
    from emscope.report.figures import write_figures
    from emscope.run.inside.directing import compare as compared

    result = compared(directions)
    if plot is not None:
        write_figures(cosine_figures(result), plot, "Directions compared")
    if json:
        print_json(result)
    else:
        print_compared(result)
