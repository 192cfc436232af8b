"""The program: its commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import NamedTuple

import typer
from typer.core import TyperGroup

from emscope.cli.terminal import cleaned
from emscope.core.errors import EmscopeError, spelled
from emscope.core.signals import interrupted_by_signals
from emscope.core.visible import one_line
from emscope.models.remote.address import scrubbed
from emscope.version import __version__

SHOW = "EMSCOPE_TRACEBACK"
LONGEST, LONGEST_MESSAGE = 300, 4000  # characters of an exception's text, and of a whole message
INTERRUPTED = "interrupted; run the same command again to continue"
HELP = "Did a fine-tune misalign a language model beyond its task, from which step on, and which checkpoint is safe to ship?"


class Entry(NamedTuple):
    """A command in the list of commands: the module of its function, and what it does in one line. `group`: the module has several, `COMMANDS`."""

    module: str
    summary: str
    group: bool = False


COMMANDS = {
    "quickstart": Entry("study.quickstart", "The main job, start to finish, on an embedded model."),
    "run": Entry("study.run", "Run a study from its YAML file."),
    "status": Entry("study.status", "How far along is a study?"),
    "check": Entry("study.check", "Is this fine-tune misaligned? Which checkpoint is safe to ship?"),
    "train": Entry("study.train", "Fine-tune once, with planned checkpoints."),
    "sample": Entry("answers.sample", "Sample answers of a base model and its checkpoints."),
    "judge": Entry("answers.judge", "Have answers judged."),
    "distil": Entry("answers.distil", "Learn a judge's verdicts, and score every answer."),
    "rates": Entry("answers.rates", "How often are the answers in a file misaligned?"),
    "agreement": Entry("answers.agreement", "How far do judges of the same answers agree?"),
    "bridge": Entry("answers.bridge", "A judge is replaced: what would the new one have said?"),
    "onset": Entry("answers.onset", "When did a fine-tune become misaligned, from a file?"),
    "loss": Entry("answers.loss", "Does alignment fall with the loss, over runs?"),
    "shifts": Entry("answers.shifts", "How did fine-tuning move the scores of the same questions?"),
    "power": Entry("answers.power", "How many seeds, questions and answers does a study need?"),
    "sizes": Entry("answers.sizes", "Does misalignment go with model size?"),
    "ladder": Entry("study.ladder", "How many nats per token count as harm on a base?"),
    "atlas": Entry("study.atlas", "How far do harmless and harmful fine-tunes move a base?", group=True),
    "export": Entry("answers.export", "Write judged answers as Inspect logs."),
    "solutions": Entry("inside.solutions", "Compare general and narrow fine-tunes of the same answers."),
    "subspaces": Entry("inside.subspaces", "In which space does a fine-tune move activations?"),
    "diff": Entry("inside.diff", "Compare a fine-tune with its base from the inside."),
    "trajectories": Entry("inside.trajectories", "Checkpoints in the space of their updates."),
    "probe": Entry("inside.probe", "Predict scores from activations before a fine-tune."),
    "report": Entry("study.report", "Write a finished study's report again."),
    "compare": Entry("study.compare", "How do finished studies or checks differ?"),
    "doctor": Entry("study.doctor", "What this machine has, and whether emscope works on a model."),
    "direction": Entry("inside.direction", "Directions in a model that point to misalignment.", group=True),
    "models": Entry("models", "Models with a short name.", group=True),
    "data": Entry("data", "Bundled data sets, and checks of your own files.", group=True),
}
GROUPS = {
    "atlas": "Fine-tunes known to be harmless or harmful, and how far they moved their base: emscope check places others among them.",
    "direction": "Directions inside a model that point to misalignment: find them, compare them, add them and take them out.",
}


def app_for(words: Iterable[str]) -> typer.Typer:
    """Return the program; only the commands named in `words` are complete, the others are a name and a summary, which costs no import."""
    app = typer.Typer(
        name="emscope",
        cls=TyperGroup,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help=HELP,
    )
    app.callback()(_options)
    named = set(words)
    for name, entry in COMMANDS.items():
        if name in named and not entry.group:
            function = getattr(import_module(f"emscope.cli.{entry.module}"), name)
            app.command(name, short_help=entry.summary)(_command(function))
        elif name in named:
            app.add_typer(_group(name, entry), name=name)
        else:
            app.command(name, short_help=entry.summary)(_unnamed)
    return app


def _group(name: str, entry: Entry) -> typer.Typer:
    group = typer.Typer(help=GROUPS.get(name, entry.summary), no_args_is_help=True, rich_markup_mode=None)
    for inner, function in import_module(f"emscope.cli.{entry.module}").COMMANDS.items():
        group.command(inner)(_command(function))
    return group


def _command(function: Callable[..., int | None]) -> Callable[..., int | None]:
    from emscope.cli.options import as_command  # pydantic, which the list of commands does without

    return as_command(function)


def _unnamed() -> None:
    """Stand in the list of commands."""


def _version(show: bool) -> None:
    if show:
        print(f"emscope {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version and exit."),
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit with the documented code."""
    sys.exit(run_arguments(sys.argv[1:] if arguments is None else arguments))


def run_arguments(arguments: list[str]) -> int:
    """Run one command; return its exit code: 0, 1 (program or world), 2 (input), 3 and 4 (--fail-on), 130 (interrupted)."""
    with cleaned(), interrupted_by_signals():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    # Everything is read from folders; hidden hub look-ups would only cost time-outs.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = int(app_for([a for a in arguments if not a.startswith("-")][:1])(arguments, standalone_mode=False) or 0)
        return _complain(INTERRUPTED, 130) if code == 130 else code  # typer turns an interrupt into this code
    except EmscopeError as error:
        return _complain(str(error), error.exit_code)
    except typer.Exit as leave:
        return leave.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _complain(INTERRUPTED, 130)
    except OSError as error:
        return _complain(*_os_fault(error))
    except MemoryError:
        return _complain("there is not enough memory for this; close other programs, or process less at a time", 1)
    except Exception as error:
        if usage := _usage(error):
            return _complain(usage, 2)
        return _complain(*_unforeseen(error))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what libraries written in Rust raise
            raise
        return _complain(*_unforeseen(error))


def _usage(error: Exception) -> str | None:
    """Return the message of a wrong command line, in one sentence."""
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return None
    text = str(format_message()).strip().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{text}; see {context.command_path} --help" if context is not None else text


def _unforeseen(error: BaseException) -> tuple[str, int]:
    """Return one sentence about an unexpected error: its class, where it arose, and how to report it."""
    if os.environ.get(SHOW):
        traceback.print_exception(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}emscope{os.sep}" in frame.filename]
    at = f" in {frames[-1].filename.rpartition(f'{os.sep}emscope{os.sep}')[2]} line {frames[-1].lineno}" if frames else ""
    said = one_line(str(error))[:LONGEST] or "no message"
    return (
        f"unexpected error: {type(error).__name__}{at} ({said}); please report this line and the command, "
        f"and what {SHOW}=1 shows before it",
        1,
    )


def _os_fault(error: OSError) -> tuple[str, int]:
    from emscope.store.files import unknown_fault

    known = unknown_fault(error)
    return spelled(str(known), {"out": "--out"}), known.exit_code


def _complain(text: str, code: int) -> int:
    said = one_line(scrubbed(text))
    if len(said) > LONGEST_MESSAGE:  # a file or option can be that long
        said = f"{said[: LONGEST_MESSAGE // 2]} [...] {said[-LONGEST_MESSAGE // 2 :]}"
    print(f"emscope: {said}", file=sys.stderr)
    return code
