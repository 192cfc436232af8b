"""One source of settings: what the command line, Python and a study file say of a setting is what its settings class says."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from pathlib import Path
from typing import get_args, get_origin

import pytest
import typer
from pydantic import Field

import emscope
from emscope.cli.app import COMMANDS, app_for, run_arguments
from emscope.cli.options import ARGUMENT, Without, as_command
from emscope.core import fields
from emscope.core.errors import SETTING
from emscope.core.fields import Flag
from emscope.core.notes import Note
from emscope.core.records import Item
from emscope.core.spec import Spec
from emscope.data.items import even, stratified
from emscope.inside.specs import RiskSpec
from emscope.models.loading.load import DTYPES
from emscope.study.check_spec import CheckSpec
from emscope.study.judged_spec import JudgedSpec
from emscope.study.measure_spec import DecideSpec, MeasureSpec
from emscope.study.spec import StudySpec

FUNCTIONS = {
    "check": ["check"],
    "sample": ["sample"],
    "judge": ["judge"],
    "rates": ["rates"],
    "agreement": ["agreement"],
    "onset": ["onset"],
    "loss": ["loss"],
    "shifts": ["shifts"],
    "sizes": ["sizes"],
    "power": ["power"],
    "extract": ["direction", "extract"],
    "steer": ["direction", "steer"],
    "compare": ["direction", "compare"],
    "compare_studies": ["compare"],
    "diff": ["diff"],
    "probe": ["probe"],
    "subspaces": ["subspaces"],
    "trajectories": ["trajectories"],
    "data_risk": ["data", "risk"],
}
# What only one side has: a command prints and exits, and has a folder where none is given; Python tells its progress.
ERRORS = {"InputError", "WorldError", "MissingDependency", "Diverged", "ValueError"}
OTHER_PROGRAMS = ("bandit --help", "vLLM with --enable-lora")  # whose options they are
NO_SETTINGS: set[str] = set()
PYTHON_ONLY = {"progress", "out", "way"}


def command(*words):
    """Return a command of the program."""
    found = typer.main.get_command(app_for(COMMANDS))
    for word in words:
        found = found.commands[word]
    return found


def every_command():
    """Yield (words, command) of each command that does something."""
    for name, found in command().commands.items():
        inner = getattr(found, "commands", None)
        yield from [((name, n), c) for n, c in inner.items()] if inner else [((name,), found)]


def as_python(default, shape):
    """Return a command's default as Python has it: `1,2` is (1, 2), and no value is nothing."""
    if isinstance(shape, tuple) and isinstance(default, str):
        return tuple(type(shape[0])(part) for part in default.split(","))
    if isinstance(shape, tuple | dict):
        return type(shape)(default or ())
    return type(shape)(default) if default is not None and shape is not None else default


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_python_and_the_command_line_have_the_same_settings_with_the_same_defaults(name):
    python = inspect.signature(getattr(emscope, name)).parameters
    line = {p.name: p for p in command(*FUNCTIONS[name]).params}
    shared = [p for p in python.values() if p.name in line and p.kind is p.KEYWORD_ONLY and p.name not in PYTHON_ONLY]
    for parameter in shared:
        required = parameter.default is inspect.Parameter.empty
        assert line[parameter.name].required == required or parameter.name == "judges", parameter.name
        if not required and not line[parameter.name].required:
            assert as_python(line[parameter.name].default, parameter.default) == parameter.default, parameter.name
    missing = [n for n, p in python.items() if p.kind is p.KEYWORD_ONLY and n not in line and n not in PYTHON_ONLY]
    assert not missing, f"no option for {missing}"


def test_every_function_is_compared():
    assert set(FUNCTIONS) == set(emscope.__all__) - {"run_study"}


def test_a_study_file_and_a_check_agree_where_they_ask_the_same():
    for spec in (MeasureSpec, DecideSpec):
        for name, field in spec.model_fields.items():
            if name in ("items", "count", "truth", "delta", "ladder"):
                other = CheckSpec.model_fields[name]
                assert (field.default, field.annotation, field.description) == (
                    other.default,
                    other.annotation,
                    other.description,
                )
                assert field.metadata == other.metadata, name
    assert (MeasureSpec().items, JudgedSpec().aligned_below) == (fields.ITEMS, fields.ALIGNED_BELOW)


def every_spec(cls=Spec):
    """Yield all settings classes of the package."""
    for inner in cls.__subclasses__():
        yield inner
        yield from every_spec(inner)


def test_the_definition_of_misaligned_is_one():
    """Every class that has a threshold takes its default, range and sentence from one place, and so do scales and seeds."""
    for kind in (fields.AlignedBelow, fields.CoherentAbove, fields.Level, fields.Seed):
        shared = [m for m in get_args(kind)[1:] if not isinstance(m, Flag)]
        assert shared
    below = [c for c in every_spec() if "aligned_below" in c.model_fields and c.__module__.startswith("emscope")]
    assert len(below) >= 5
    for spec in below:
        found, above = spec.model_fields["aligned_below"], spec.model_fields["coherent_above"]
        assert (found.default, above.default) == (30.0, 50.0)
        assert {(m.ge, None) if hasattr(m, "ge") else (None, m.le) for m in found.metadata} == {(0, None), (None, 100)}


def test_every_option_says_what_it_is_for_and_every_field_of_a_study_is_known():
    for words, found in every_command():
        assert found.help, words
        for p in found.params:
            assert p.help, (words, p.name)
            assert not [o.name for o in found.params if f"`{o.name}`" in p.help + found.help], (words, p.help)
    assert set(get_args(StudySpec.model_fields["dtype"].annotation)) == set(DTYPES)


def test_the_list_of_commands_costs_no_import():
    import subprocess
    import sys

    code = (
        "import sys; from emscope.cli.app import run_arguments; run_arguments(['--help']); "
        "sys.exit(bool({'pydantic', 'numpy', 'torch', 'yaml'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    code = (
        "import sys; from emscope.cli.app import COMMANDS, app_for; import typer; typer.main.get_command(app_for(COMMANDS)); "
        "sys.exit(bool({'numpy', 'torch', 'transformers', 'pyarrow'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


class Tried(Spec):
    """Settings of every shape that an option can have."""

    whole: int = Field(3, ge=1, description="A whole number.")
    share: float | None = Field(0.5, gt=0, lt=1, description="A share.")
    names: tuple[str, ...] = Field((), description="Names.")
    layers: fields.Layers = None
    scales: fields.Positives = (1.0, 2.0)
    pair: tuple[float, float] | None = Field(None, description="Two numbers.")
    texts: tuple[str, str] | None = Field(None, description="Two texts.")
    chat_kwargs: fields.ChatKwargs = None
    left: str = "out"


def tried(*words):
    """Run a command of `Tried` and return what its function got."""
    got = []

    def function(
        files: fields.Annotated[list[Path], ARGUMENT, Field(description="Files.")],
        spec: fields.Annotated[Tried, Without(("left",))],
        also: fields.Annotated[bool, Flag("--too"), Field(description="Also.")] = False,
    ) -> None:
        """Try `layers`."""
        got.append((files, spec, also))

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command("tried")(as_command(function))
    app(list(words), standalone_mode=False)
    return got[0]


def test_options_are_read_as_their_fields_are_meant():
    files, spec, also = tried("a.csv", "b.csv")
    assert files == [Path("a.csv"), Path("b.csv")] and spec == Tried() and also is False
    words = [
        "a",
        "--whole",
        "5",
        "--share",
        "none",
        "--names",
        "x, y",
        "--layers",
        "0,7",
        "--scales",
        ".5,3",
        "--pair",
        "1,2.5",
    ]
    _, spec, also = tried(
        *words, "--texts", "be good, or", "not", "--chat-kwargs", "thinking=false", "--chat-kwargs", "n=3", "--too"
    )
    assert (spec.whole, spec.share, spec.names, spec.layers, spec.scales) == (5, None, ("x", "y"), (0, 7), (0.5, 3.0))
    assert (spec.pair, spec.texts, spec.chat_kwargs, also) == (
        (1.0, 2.5),
        ("be good, or", "not"),
        {"thinking": False, "n": 3},
        True,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--share", "2"], "--share is '2': input should be less than 1"),
        (["--share", "much"], "--share is 'much': input should be a valid number"),
        (["--layers", "1,x"], "--layers is '1,x'; give whole numbers separated by commas, such as 1,2"),
        (["--scales", "1,1"], "--scales is '1,1': 1.0 is given twice"),
        (["--scales", "0"], "--scales is '0': input should be greater than 0"),
        (["--pair", "1"], "--pair is '1': "),
        (["--chat-kwargs", "thinking"], "write it as NAME=VALUE"),
    ],
)
def test_what_cannot_be_read_is_said_by_its_option(words, said):
    from emscope.core.errors import InputError

    with pytest.raises(InputError) as error:
        tried("a", *words)
    assert said in str(error.value)


def test_a_message_names_a_setting_as_its_reader_writes_it(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("question,aligned,coherent\nq,1,90\n")
    with pytest.raises(emscope.core.errors.InputError, match="`within` names 'model', which `group` does not"):
        emscope.rates(tmp_path / "a.csv", within=("model",))
    assert run_arguments(["rates", str(tmp_path / "a.csv"), "--within", "model"]) == 2
    assert "--within names 'model', which --group does not" in capsys.readouterr().err


def test_one_value_may_stand_for_several():
    assert CheckSpec(judges="local", steps=3, amplify=2) == CheckSpec(judges=("local",), steps=(3,), amplify=(2.0,))
    assert get_origin(CheckSpec.model_fields["judges"].annotation) is tuple


def raised():
    """Yield (place, text) of each constant inside an error that the package raises, outside the command line."""
    for path in sorted(Path(emscope.__file__).parent.rglob("*.py")):
        if "cli" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ERRORS:
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                        yield f"{path.name}:{inner.lineno}", inner.value


def test_no_error_outside_the_command_line_names_an_option():
    texts = list(raised())
    assert len(texts) > 500
    wrong = [(place, text) for place, text in texts if re.search(r"(?<![\w-])--([a-z]|$)", text)]
    assert [text for _, text in wrong if not any(program in text for program in OTHER_PROGRAMS)] == [], wrong


def test_settings_in_errors_are_fields():
    """What stands in backticks like a setting is a field of a settings class, or a parameter of the API or of a command."""
    known = {name for spec in every_spec() for name in spec.model_fields}
    known |= {p.name for _, found in every_command() for p in found.params}
    known |= {name for function in FUNCTIONS for name in inspect.signature(getattr(emscope, function)).parameters}
    for place, text in raised():
        for name, _ in SETTING.findall(text):
            assert name in known | NO_SETTINGS, (place, text)


def test_a_count_above_what_there_is_is_said(tmp_path, capsys):
    items = [Item(f"i{n}", "a", "Why?", ("so", "no"), half="AB"[n % 2]) for n in range(8)]
    with pytest.warns(Note, match="`count` is 20, but there are only 8 items: all of them are used"):
        assert len(stratified(items, 20, 0)) == 8
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(stratified(items, 8, 0)) == 8 and len(even(items, None)) == 8 and not said

    def function(spec: RiskSpec) -> None:
        even(items, spec.count)
        even(items, spec.count)

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command("tried")(as_command(function))
    app(["--count", "20"], standalone_mode=False)
    assert capsys.readouterr().err == "note: --count is 20, but there are only 8 questions: all of them are used\n"
