"""The program: its commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback

import typer
from typer.core import TyperGroup

from emscope.cli import data, models
from emscope.cli.answers import agreement, bridge, distil, export, judge, onset, rates, sample
from emscope.cli.inside import diff, direction, probe, solutions, subspaces, trajectories
from emscope.cli.study import check, doctor, ladder, quickstart, report, run, train
from emscope.cli.terminal import cleaned
from emscope.core.errors import EmscopeError
from emscope.core.signals import interrupted_by_signals
from emscope.core.visible import one_line
from emscope.version import __version__

SHOW = "EMSCOPE_TRACEBACK"
LONGEST = 300
INTERRUPTED = "interrupted; run the same command again and it goes on where it stopped"

app = typer.Typer(
    name="emscope",
    cls=TyperGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Did a fine-tune misalign a language model beyond its task, since which step, and which checkpoint is safe to ship?",
)
quickstart.register(app)
run.register(app)
check.register(app)
train.register(app)
sample.register(app)
judge.register(app)
distil.register(app)
rates.register(app)
agreement.register(app)
bridge.register(app)
onset.register(app)
ladder.register(app)
export.register(app)
direction.register(app)
solutions.register(app)
subspaces.register(app)
diff.register(app)
trajectories.register(app)
probe.register(app)
report.register(app)
models.register(app)
data.register(app)
doctor.register(app)


def _version(show: bool) -> None:
    if show:
        print(f"emscope {__version__}")
        raise typer.Exit


@app.callback()
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
    # Everything is read from folders; a hub look-up behind the scenes would only cost time-outs.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = int(app(arguments, standalone_mode=False) or 0)
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
        return _complain("there is not enough memory for this; close other programs, or give it less at a time", 1)
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
    """Return the one sentence about what nothing else turned into one: its class, where it arose, and how to report it."""
    if os.environ.get(SHOW):
        traceback.print_exception(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}emscope{os.sep}" in frame.filename]
    at = f" in {frames[-1].filename.rpartition(f'{os.sep}emscope{os.sep}')[2]} line {frames[-1].lineno}" if frames else ""
    said = one_line(str(error))[:LONGEST] or "no message"
    return (
        f"something that nobody foresaw: {type(error).__name__}{at} ({said}); please report this line and the command, "
        f"and what {SHOW}=1 shows before it",
        1,
    )


def _os_fault(error: OSError) -> tuple[str, int]:
    from emscope.store.files import unknown_fault

    known = unknown_fault(error)
    return str(known), known.exit_code


def _complain(text: str, code: int) -> int:
    print(f"emscope: {one_line(text)}", file=sys.stderr)
    return code
