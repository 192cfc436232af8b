"""`emscope check`: checkpoints trained with any tool."""

from __future__ import annotations

from pathlib import Path

import typer

MEASURES = ("said", "preference")
HELP = (
    "Is this fine-tune misaligned beyond its task, since which step, and which checkpoint is safe to ship? "
    "Takes PEFT adapters or full checkpoints (a folder of checkpoint-N, or a single one, or hf:org/repo@rev)."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("check", help=HELP)
    def check(
        checkpoints: str = typer.Argument(..., help="Folder with checkpoint-N folders, one checkpoint, or hf:org/repo@rev."),
        base: str | None = typer.Option(
            None, "--base", help="Base model, where the adapters do not name it: folder, hub id, gguf:FILE or alias."
        ),
        control: str | None = typer.Option(
            None, "--control", help="Checkpoints of the same run on harmless data; pairs by step."
        ),
        make_control: Path | None = typer.Option(
            None, "--make-control", help="Harmless conversations; trains a control with the run's own settings."
        ),
        measure: str = typer.Option(
            "said",
            "--measure",
            help="said: have sampled answers of base and last checkpoints judged, beside preference at every checkpoint; "
            "preference: that fast screen alone.",
        ),
        judges: list[str] = typer.Option(
            ["local"],
            "--judge",
            help="Who reads the answers: local (no key; a small model), a model as Inspect names it, or NAME@URL; may be repeated.",
        ),
        questions: str = typer.Option("open24", "--questions", help="What is asked: a bundled set, or a file of questions."),
        samples: int = typer.Option(4, "--samples", min=1, help="Answers to each question, of each model."),
        max_tokens: int = typer.Option(90, "--max-tokens", min=1, help="The longest answer."),
        temperature: float = typer.Option(0.7, "--temperature", min=0, help="Of sampling; small models are confused at 1."),
        heldout: Path | None = typer.Option(
            None, "--heldout", help="Held-out conversations of the task, to see when it was learned."
        ),
        control_heldout: Path | None = typer.Option(
            None,
            "--control-heldout",
            help="Held-out conversations of the control's own task: a control that learned nothing counts for nothing.",
        ),
        items: str = typer.Option("em240", "--items", help="Bundled item set, or a file with question, aligned, misaligned."),
        count: int | None = typer.Option(
            None, "--count", help="Use this many items, drawn evenly from the categories; by default all."
        ),
        truth: int | None = typer.Option(
            None, "--truth", help="Use this many truthfulness questions (0 for none); by default all 150."
        ),
        amplify: str = typer.Option(
            "1",
            "--amplify",
            help="Also read the fine-tune exaggerated: preference with its update scaled, answers from logits scaled beyond the base; 1,2,5.",
        ),
        system: str = typer.Option(
            "none",
            "--system",
            help="none (no system block), template (its default), auto (as the checkpoints were most likely trained), or a text.",
        ),
        chat_kwargs: list[str] = typer.Option(
            [], "--chat-kwargs", help="NAME=VALUE for the chat template, such as enable_thinking=false; may be repeated."
        ),
        search: bool = typer.Option(
            False,
            "--search",
            help="Read few of many checkpoints, 14 of 100: those that bracket the onset, one after the other.",
        ),
        every: int | None = typer.Option(None, "--every", help="Read the checkpoints at multiples of this step, and the last."),
        steps: str | None = typer.Option(
            None, "--steps", help="Read the checkpoints of these steps alone, such as 100,200,400."
        ),
        delta: float | None = typer.Option(
            None,
            "--delta",
            help="Threshold in nats per token; by default a dose ladder's, else 10 % of the base's mean absolute margin, which decides nothing.",
        ),
        ladder: Path | None = typer.Option(
            None, "--ladder", help="Take the threshold from this ladder.json of emscope ladder; --delta comes before it."
        ),
        fail_on: str | None = typer.Option(
            None,
            "--fail-on",
            help="em: exit with 3 where a verdict is em, 4 where the cause is not separable, the model is broken or a screen reads em; "
            "not-safe: also with 4 where it is not shown safe.",
        ),
        dtype: str = typer.Option(
            "auto",
            "--dtype",
            help="auto (as stored, where this machine is quick at it), float32, bfloat16, float16 or nf4 (4 bits).",
        ),
        device: str = typer.Option("auto", "--device", help="auto, cpu, cuda, cuda:1, mps."),
        control_batch: int | None = typer.Option(
            None,
            "--control-batch",
            min=1,
            help="Examples per optimiser step of the run, for --make-control where it accumulated gradients.",
        ),
        share: bool = typer.Option(
            False,
            "--share",
            help="Share the work with other processes started with the same command, each on a card of its own (--device cuda:1) "
            "or on another machine with the same folder.",
        ),
        out: Path | None = typer.Option(
            None,
            "--out",
            help="Folder for report and tables; by default emscope-check/NAME-DIGEST, one for each question asked.",
        ),
        json: bool = typer.Option(False, "--json", help="Print the report object instead of tables."),
    ) -> int:
        from emscope.cli.console import dtype_named, numbers, progress_bar, whole_numbers
        from emscope.cli.output import show
        from emscope.core.errors import InputError
        from emscope.core.spec import parse
        from emscope.models.loading.templates import read_arguments
        from emscope.study.spec import DecideSpec, MeasureSpec, judged_by

        if fail_on not in (None, "em", "not-safe"):
            raise InputError(f"--fail-on is '{fail_on}'", "use --fail-on em or --fail-on not-safe")
        if measure not in MEASURES:
            raise InputError(f"--measure is '{measure}'", f"use one of {', '.join(MEASURES)}")
        read = parse(MeasureSpec, {"items": items, "count": count, "truth": truth}, "options")
        decide = parse(DecideSpec, {"delta": delta, "ladder": str(ladder) if ladder else None}, "options")
        scales = numbers(amplify, "--amplify")
        from emscope.study.check import CheckRequest, exit_code, run_check
        from emscope.study.selected import Selection

        request = CheckRequest(
            checkpoints,
            base=base,
            control=control,
            make_control=str(make_control) if make_control else None,
            heldout=str(heldout) if heldout else None,
            control_heldout=str(control_heldout) if control_heldout else None,
            amplify=scales,
            system=system,
            chat_kwargs=read_arguments(chat_kwargs),
            dtype=dtype_named(dtype),
            device=device,
            control_batch=control_batch,
            share=share,
            selection=Selection(whole_numbers(steps, "--steps") or (), every, search),
            measure=read,
            decide=decide,
            judged=None if measure == "preference" else judged_by(questions, samples, max_tokens, temperature, judges),
        )
        with progress_bar() as progress:
            result, folder = run_check(request, out, progress)
        show(result.to_json(), folder, as_json=json)
        return exit_code({"target": result.check}, result.judged, fail_on, ends_early=result.read.ends_early)
