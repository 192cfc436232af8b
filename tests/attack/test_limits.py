"""Limits, texts made visible, messages of faults, what is swept and what stays: without a model."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
import zipfile
from pathlib import Path

import pytest

from attack.texts import TEXTS
from conftest import make_tokenizer
from emscope.cli import app
from emscope.cli.app import run_arguments
from emscope.cli.terminal import Cleaned, cleaned
from emscope.core.errors import InputError, WorldError
from emscope.core.limits import TooMuch, bounded, check_size, consistent, strangers
from emscope.core.plain import read_json
from emscope.core.signals import interrupted_by_signals
from emscope.core.spec import parse, read_yaml
from emscope.core.visible import CONTROL, HALF, json_text, one_line, shown, whole
from emscope.data.tables import rows
from emscope.models.adapters import lora
from emscope.models.fast.head import output_head
from emscope.models.fast.packed import packed_attention
from emscope.models.loading import templates
from emscope.models.remote.address import check_address, scrubbed
from emscope.store import files
from emscope.store.study import Study, read_table
from emscope.train.folders import can_go_on, complete_checkpoint, drop_incomplete, drop_training_state
from emscope.train.log import log_of
from emscope.train.spec import TrainSpec


def test_a_block_ends_at_its_time_also_inside_a_regular_expression():
    begun = time.process_time()
    with pytest.raises(TooMuch, match=r"more than 0\.2 seconds"), bounded(0.2):
        re.match(r"(x+x+)+y", "x" * 40)
    assert time.process_time() - begun < 2
    with bounded(0.05):
        pass
    end = time.process_time() + 0.15
    while time.process_time() < end:  # an alarm that stayed set would ring here
        pass


def test_a_block_ends_at_its_memory_and_the_limit_is_gone_after_it():
    with pytest.raises(TooMuch, match="memory"), bounded(5, 2**28):
        bytearray(2**31)
    assert len(bytearray(2**29)) == 2**29


def test_a_template_that_does_not_end_is_waited_for_once(monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages }}"
    template, begun = templates.Jinja(make_tokenizer(), endless, {}), time.process_time()
    for _ in range(20):
        assert "takes more than 0.5 seconds" in template.fault()
    assert time.process_time() - begun < 5


def test_outside_of_the_main_thread_a_block_runs_as_it_is():
    done = []

    def run() -> None:
        with bounded(0.001, 2**20):
            done.append(sum(range(10**5)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [sum(range(10**5))]


def test_sizes_of_values():
    shared = ["x"] * 9
    for _ in range(8):
        shared = [shared] * 9
    itself: list = []
    itself.append(itself)
    deep: list = []
    for _ in range(300):
        deep = [deep]
    for value, message in ((shared, "values"), (itself, "itself"), (deep, "nested")):
        with pytest.raises(TooMuch, match=message):
            check_size(value)
    check_size({"a": [shared[0][0][0][0]] * 3, "b": (1, 2)})


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_shown_steers_nothing_and_what_is_kept_can_be_written(text):
    assert not CONTROL.search(shown(text)) and "\n" not in one_line(text)
    assert not HALF.search(whole(text)) and whole(text).encode().decode() == whole(text)
    written = json_text({text[:500]: [text]}, indent=1)
    assert not CONTROL.search(written) and json.loads(written.encode()) == {text[:500]: [text]}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_styles_of_tables_and_no_others(monkeypatch):
    from rich.console import Console
    from rich.table import Table

    sink = Terminal()
    monkeypatch.setattr("sys.stdout", sink)
    hostile = "\x1b]0;title\x07\x1b[31mred\x9b2J\u202eb\x08\ud800"
    with cleaned():
        print(f"run {hostile}")
        console = Console(force_terminal=True, color_system="standard", width=200)
        table = Table()
        table.add_column(hostile, style="green")
        table.add_row(hostile)
        console.print(table)
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", sink.getvalue())
    assert not CONTROL.search(drawn) and "title" in drawn
    assert "\x1b[32m" in sink.getvalue() and "\x1b[31m" not in sink.getvalue()


def test_streams_keep_what_else_they_can():
    stream = Terminal()
    assert Cleaned(stream).isatty() and Cleaned(stream).write("a\x07") == 2 and stream.getvalue() == "a\\x07"


def test_an_unexpected_error_is_one_sentence_with_its_class(monkeypatch, capsys):
    def raises(*_: object, **__: object) -> None:
        raise KeyError("odd\nname \x1b[31m")

    monkeypatch.setattr(app, "app_for", lambda words: raises)
    monkeypatch.delenv(app.SHOW, raising=False)
    assert run_arguments(["x"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "KeyError" in said and "report" in said and app.SHOW in said and not CONTROL.search(said)
    monkeypatch.setenv(app.SHOW, "1")
    run_arguments(["x"])
    assert "Traceback" in capsys.readouterr().err


def test_whatever_a_library_raises_is_a_sentence_and_interrupts_are_not():
    class PanicException(BaseException):
        pass

    for error in (PanicException("rust"), RecursionError("deep"), AttributeError(), ValueError("first:\nsecond")):
        with pytest.raises(InputError, match="it cannot be read"), strangers("it cannot be read", "mend it"):
            raise error
    with pytest.raises(KeyboardInterrupt), strangers("x", "y"):
        raise KeyboardInterrupt
    with pytest.raises(WorldError), strangers("x", "y"):
        raise WorldError("as it is")


def test_values_that_do_not_go_together_are_a_sentence_and_a_full_disk_is_another():
    with (
        pytest.raises(InputError, match=r"'r\.json' is inconsistent \(IndexError: "),
        consistent("'r.json'", "make it again"),
    ):
        ()[1]
    for passing in (WorldError("no space", "free some"), BrokenPipeError()):
        with pytest.raises(type(passing)), consistent("'r.json'", "make it again"):
            raise passing


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_what_is_no_number_of_json_is_refused(number, tmp_path):
    (tmp_path / "r.json").write_text(f'{{"value": {number}, "other": 1.5}}')
    with pytest.raises(InputError, match=f"damaged \\({number} is not a JSON number"):
        read_json(tmp_path / "r.json", "make it again")


@pytest.mark.models  # it imports PEFT
def test_patterns_of_an_adapter_have_one_time_limit_together(monkeypatch):
    pytest.importorskip("peft.utils.other")  # takes longer than what is timed
    monkeypatch.setattr(lora, "SECONDS", 0.3)
    modules = [f"model.layers.{n}.self_attn.q_proj" for n in range(40)]
    settings = {"r": 2, "lora_alpha": 4, "rank_pattern": {"(([a-z_.]+)+)+!": 3}}
    begun = time.process_time()
    with pytest.raises(InputError, match=r"rank and alpha for model\.layers\.0\.self_attn\.q_proj cannot be read"):
        lora.ranks_and_scales(settings, modules)
    assert time.process_time() - begun < 2
    settings |= {"rank_pattern": {"layers.7.self_attn.q_proj": 8}, "use_rslora": True}
    found = lora.ranks_and_scales(settings, modules)
    assert found[modules[7]] == (8, pytest.approx(4 / 8**0.5)) and found[modules[8]] == (2, pytest.approx(4 / 2**0.5))


@pytest.mark.models  # it imports PEFT
@pytest.mark.parametrize("alpha", [1e308, -1e308, float("inf"), float("nan"), "1e400"])
def test_a_scale_that_float32_cannot_hold_is_refused(alpha):
    with pytest.raises(InputError, match="B A would be multiplied by"):
        lora.ranks_and_scales({"r": 2, "lora_alpha": alpha}, ["model.layers.0.self_attn.q_proj"])


@pytest.mark.parametrize("entry", [3, {"emscope_reading": [3]}, {"emscope_reading": {"loss": 1}}, {"emscope_geometry": 5}])
def test_a_checkpoint_whose_log_cannot_be_read_is_not_complete(entry, tmp_path):
    sound = {"step": 1, "loss": 0.5}
    for entries, complete in (([sound], True), ([sound, entry], False)):
        (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 4, "log_history": entries}))
        assert complete_checkpoint(tmp_path, 4) is complete and bool(log_of(tmp_path)) is complete


@pytest.mark.parametrize("value", [1, 0.1, 0, -1, [[0]], "1", None, True, float("nan"), float("inf"), {}])
def test_a_checkpoint_whose_counts_are_no_numbers_is_not_complete(value, tmp_path):
    state = {"global_step": 4, "log_history": [], "logging_steps": value, "save_steps": 500, "max_steps": 4}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert complete_checkpoint(tmp_path, 4) is (value in (1, 0.1) and value is not True)


def test_a_signal_to_end_is_an_interrupt_and_an_ignored_one_stays_ignored():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before
    held = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, held)


@pytest.fixture
def heard():
    """A shell has what it starts in the background ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("busy", [0.0, 0.1])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_arrives_while_python_clears_up_is_not_lost(name, busy, heard, monkeypatch):
    class Thing:
        pass

    def slow(thread, start=threading.Thread.start):
        start(thread)
        time.sleep(busy)  # a busy machine: whoever dropped it goes on longer than the wait

    monkeypatch.setattr(threading.Thread, "start", slow)

    thing, before = Thing(), (sys.unraisablehook, signal.getsignal(signal.SIGTERM))
    dropped = weakref.ref(thing, lambda _: signal.raise_signal(getattr(signal, name)))  # in a callback, an error is dropped
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        del thing
        assert dropped() is None
        for _ in range(1000):
            time.sleep(0.01)
    assert (sys.unraisablehook, signal.getsignal(signal.SIGTERM)) == before


def test_faults_of_reading_are_not_called_faults_of_writing(tmp_path):
    refused = files.unknown_fault(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "model")))
    assert "write" not in str(refused) and "no permission for" in str(refused) and refused.exit_code == 2
    assert "'.'" not in str(files.unknown_fault(OSError("odd"))) and files.unknown_fault(OSError("odd")).exit_code == 1
    words = RuntimeError("I/O error: No space left on device (os error 28)")
    assert "no space left" in str(files.unsaved(tmp_path / "not there" / "x", words))
    assert "cannot be saved" in str(files.unsaved(tmp_path, RuntimeError("odd")))


def test_only_our_own_leftovers_are_swept(tmp_path):
    ours, theirs = tmp_path / "a" / f"{files.OURS}x.json.abc{files.CUT_OFF}", tmp_path / "a" / ".emscope-notes"
    ours.parent.mkdir()
    for path in (ours, theirs, tmp_path / ".x.json.abcdefgh", tmp_path / "x.part"):
        path.write_text("mine")
    files.sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [".emscope-notes", ".x.json.abcdefgh", "x.part"]


@pytest.mark.parametrize("column", ["step", "key"])
def test_a_table_of_other_types_is_one_sentence(column, tmp_path):
    """A list where a number is wanted, and nothing where a key is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from emscope.store.rows import part
    from emscope.store.schemas import TABLES

    whole = {f.name: pa.array(["k"]) if f.name == "key" else pa.nulls(1, f.type) for f in TABLES["answers"]}
    odd = {"step": pa.array([[1]]), "key": pa.nulls(1, pa.string())}[column]
    part(tmp_path, "answers", "a").parent.mkdir(parents=True)
    pq.write_table(pa.table(whole | {column: odd}), part(tmp_path, "answers", "a"))
    with pytest.raises(InputError, match=r"table .answers. .* is damaged"):
        read_table(tmp_path, "answers")


HOLDS = """
import sys, time
from pathlib import Path
from emscope.store.files import write_atomic

def slowly(path):
    path.write_text("half")
    print("there", flush=True)
    time.sleep(60)

write_atomic(Path(sys.argv[1]), slowly)
"""


def test_what_a_killed_process_left_is_swept_and_what_a_running_one_writes_is_not(tmp_path):
    killed, running = (
        subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / name)], stdout=subprocess.PIPE) for name in ("a", "b")
    )
    for process in (killed, running):
        assert process.stdout and process.stdout.readline() == b"there\n"
    killed.kill()
    killed.wait()
    theirs = tmp_path / f"{files.OURS}notes"
    theirs.write_text("mine")
    another = tmp_path / f"{files.OURS}x.abc.{'0' * 16}{files.CUT_OFF}"  # of a machine whose locks may not be seen here
    another.write_text("half")
    files.write_text(tmp_path / "c", "whole")
    assert sorted(p.name[:11] for p in tmp_path.iterdir()) == [".emscope-b.", ".emscope-no", ".emscope-x.", "c"]
    another.unlink()
    running.kill()
    running.wait()
    files._sweep_once.cache_clear()  # as in another process
    files.write_text(tmp_path / "b", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".emscope-notes", "b", "c"]


def test_a_study_takes_half_characters_and_a_folder_with_a_first_write_cut_off(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{files.OURS}ledger.json.q{files.CUT_OFF}").write_text("{")
    (out / "study.yaml").write_text("cut o")
    with Study(out, {"a": "\ud800"}, {}) as study:
        study.append("failures", [{"key": "k", "error": "a\ud800b\0"}])
    assert read_table(out, "failures").to_pylist()[0]["error"] == "a\\ud800b\0"
    assert not list(out.rglob(f"*{files.CUT_OFF}"))
    with Study(out, {"a": "\ud800"}, {}):
        pass


@pytest.mark.parametrize("content", [[], {"spec": [], "tables": 6}, {"spec": None, "tables": 6}, 5, None])
def test_a_ledger_of_another_shape_is_one_sentence(content, tmp_path):
    (tmp_path / "ledger.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is damaged"), Study(tmp_path, {"a": 1}, {}):
        pass


def test_bombs_and_damage_in_packed_files(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"question": "a", "answer": "b"}\n' * 100))
    assert len(list(rows(path))) == 100
    path.write_bytes(gzip.compress(b" " * 2**26, 9))
    for words in (["data", "check"], ["rates"]):
        assert run_arguments([*words, str(path)]) == 2
    with pytest.raises(InputError, match="200 times its size"):
        list(rows(path))
    whole_file = gzip.compress(os.urandom(500))
    for damaged in (whole_file[:100], whole_file[:50] + b"xx" + whole_file[52:], b"\x1f\x8b"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged|cannot be read"):
            list(rows(path))


def test_half_characters_in_data_are_refused_at_the_door(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "\\ud83d\\ude00", "answer": "\\\\ud800"}\n')
    assert next(rows(path))[1] == {"question": "\U0001f600", "answer": "\\ud800"}
    path.write_text('{"question": "a\\ud800", "answer": "b"}\n')
    with pytest.raises(InputError, match="line 1 holds half a character"):
        list(rows(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "contains itself"),
        ("[" * 5000, "nested too deep"),
        (
            "a: &a [x,x]\n"
            + "".join(
                f"b{n}: &b{n} [{'*' + (f'b{n - 1}' if n else 'a')},{'*' + (f'b{n - 1}' if n else 'a')}]\n" for n in range(40)
            ),
            "values",
        ),
        ('a: "\\ud800"', "half a character"),
        ("a: 2001-99-99", "is not YAML"),
    ],
)
def test_yaml_that_is_no_settings(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(tmp_path / "a.yaml")


def test_addresses_and_what_is_struck_out(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "canary-123456")
    for url in ("http://127.0.0.1:8000/v1", "https://host/v1?api-version=2024", "http://[::1]:1/v1"):
        check_address(url)
    for url in ("ftp://a/b", "http://", "http://a b/v1", "http://h:x/v1", "http://me@h/v1", "http://h/v1?token=a", "//h/v1"):
        with pytest.raises(InputError):
            check_address(url)
    said = scrubbed("at http://me:pw@h/v1?api_key=pw2&x=1 with Bearer abcdefgh and canary-123456")
    assert not re.search("pw|abcdefgh|canary", said) and "x=1" in said


def state(folder: Path, step: int) -> Path:
    """Write a checkpoint as the trainer does, with states that are archives."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(path / name, "w") as archive:
            archive.writestr("data", b"0123456789" * 50)
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    (path / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    return path


def test_training_goes_on_only_where_all_states_are_whole(tmp_path):
    one, two, three = (state(tmp_path, n) for n in (1, 2, 3))
    steps = (1, 2, 3)
    assert drop_incomplete(tmp_path, steps) == three
    (three / "optimizer.pt").unlink()
    assert drop_incomplete(tmp_path, steps) == two and three.is_dir()
    content = bytearray((two / "scheduler.pt").read_bytes())
    content[60] ^= 1
    (two / "scheduler.pt").write_bytes(bytes(content))
    assert not can_go_on(two) and drop_incomplete(tmp_path, steps) == one
    (one / "rng_state.pth").write_bytes(b"\x80\x02pickle")
    assert drop_incomplete(tmp_path, steps) is None
    assert drop_incomplete(tmp_path, steps, ["rotation.safetensors"]) is None


def test_nothing_of_the_users_is_deleted(tmp_path):
    state(tmp_path, 1)
    cut = state(tmp_path, 2)
    (cut / "trainer_state.json").write_text("{")
    mine = [tmp_path / "checkpoint-best" / "x", tmp_path / "checkpoint-9" / "model.safetensors", cut / "notes.txt"]
    mine += [tmp_path / "checkpoint-1" / name for name in ("notes.md", "my_optimizer.pt")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (tmp_path / "checkpoint-1" / "README.md").write_text("my own words")
    drop_incomplete(tmp_path, (1, 2, 3))
    assert [p.name for p in cut.iterdir()] == ["notes.txt"]
    drop_training_state(tmp_path, (1, 2, 3))
    assert all(path.read_text() == "mine" for path in mine)
    left = sorted(p.name for p in (tmp_path / "checkpoint-1").iterdir())
    assert left == ["README.md", "adapter_model.safetensors", "my_optimizer.pt", "notes.md", "trainer_state.json"]


def test_pages_of_figures_ask_for_nothing(tmp_path):
    import plotly.graph_objects as go

    from emscope.core.pages import POLICY, drawn, guarded, plot_data
    from emscope.report.figures import write_figures

    figure = go.Figure(
        go.Scatter(x=["</script><script>alert(1)</script>"], y=[1]), {"title": "<img src=http://127.0.0.1:9/x>\ud800"}
    )
    write_figures([figure], tmp_path / "a.html", "<title>&")
    for page in (
        (tmp_path / "a.html").read_text(),
        guarded(drawn(figure, with_plotly=False)),
        guarded("<!doctype html><p>x"),
    ):
        head = page[: page.index("</head>")]
        assert POLICY in head and "<script" not in head.partition(POLICY)[0], "the policy comes before any script"
        assert "<script>alert" not in page
    assert "&lt;title&gt;&amp;" in (tmp_path / "a.html").read_text()
    assert "\\ud800" in str(plot_data(figure)), "also where plotly finds orjson, which refuses it"


def test_a_message_is_never_longer_than_one_reads(capsys):
    assert run_arguments(["data", "check", "x" * 100_000 + ".jsonl"]) == 2
    said = capsys.readouterr().err
    assert len(said) < 5000 and said.startswith("emscope: ") and said.count("\n") == 1


def test_damage_that_shows_where_rows_are_read_is_one_sentence(tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    rows_of = [
        {"question": f"q{n % 7}", "response": f"an answer of some length {n}", "aligned": n % 90, "aligned_outcome": "scored"}
        for n in range(3000)
    ]
    pq.write_table(pa.Table.from_pylist(rows_of), path)
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(bytes(content))
    for words in (["export", str(path)], ["judge", str(path), "--judge", "bandit", "--rubrics", "secure"]):
        assert run_arguments([*words, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert "cannot be read" in said and said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 10**30}, "steps"),
        ({"steps": 10**6, "batch": 10**3}, "20,000,000 examples"),
        ({"batch": 10**12}, "batch"),
        ({"checkpoints": {"log": 10**30}}, "log"),
        ({"kl": {"weight": 1, "domain": "sports", "batch": 10**12}}, "batch"),
    ],
)
def test_a_training_that_no_memory_could_plan_is_refused_at_once(changes, message):
    with pytest.raises(InputError, match=message):
        parse(TrainSpec, changes, "train")
    parse(TrainSpec, {"steps": 10**6, "batch": 20, "checkpoints": {"log": 40}}, "train")


@pytest.mark.models
def test_a_model_whose_first_pass_fails_is_refused_in_one_sentence(loaded, monkeypatch):
    def fails(*_, **__):
        raise AssertionError

    monkeypatch.setattr(loaded.net.model.layers[0].mlp, "forward", fails)
    message = r"LlamaForCausalLM cannot be computed with \(AssertionError\)"
    with pytest.raises(InputError, match=message), packed_attention(loaded.net, 8):
        pass
    with pytest.raises(InputError, match=message):
        output_head(loaded.net)
