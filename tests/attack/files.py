"""Hostile data files: conversations, items, questions, answers, series, ratings, settings; of every format."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

from attack.cases import Case, makes
from attack.material import Material
from attack.mutations import broken_bytes, broken_tree, cell, dumped
from attack.texts import text

Rows = list[dict[str, Any]]
BOMB = 3 * 2**30


def as_csv(rows: Rows) -> bytes:
    """Return rows as CSV."""
    import csv
    from io import StringIO

    sink = StringIO()
    names = list(dict.fromkeys(str(k) for row in rows if isinstance(row, dict) for k in row)) or ["a"]
    writer = csv.writer(sink)
    writer.writerow(names)
    for row in rows:
        writer.writerow([cell(row.get(n, "") if isinstance(row, dict) else row) for n in names])
    return sink.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(rows: Rows) -> bytes:
    """Return rows as Parquet, as far as Arrow can hold them; else texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = BytesIO()
    try:
        table = pa.Table.from_pylist([r for r in rows if isinstance(r, dict)])
        pq.write_table(table, sink)
    except Exception:
        sink = BytesIO()
        pq.write_table(pa.table({"question": [cell(r)[:100].encode("utf-8", "replace") for r in rows]}), sink)
    return sink.getvalue()


def as_jsonl(rows: Sequence[Any]) -> bytes:
    """Return rows as JSON lines."""
    return b"".join(dumped(row) + b"\n" for row in rows)


FORMATS = {"jsonl": as_jsonl, "json": dumped, "csv": as_csv, "parquet": as_parquet}


def bomb(head: bytes) -> bytes:
    """Return a few megabytes of gzip that unpack to gigabytes; made of repeated members."""
    block = gzip.compress(b" " * 2**24, 9)
    return gzip.compress(head) + block * (BOMB // 2**24)


def hostile_file(rows: Rows, random: Random, folder: Path, kinds: Sequence[str]) -> tuple[Path, str]:
    """Write rows after breaking a row, the file's bytes, its encoding, its packing or its name."""
    kind = random.choice(tuple(kinds))
    way = random.random()
    changed = [broken_tree(row, random) if random.random() < 0.4 else row for row in rows] if way < 0.55 else rows
    if way < 0.05:
        changed = []
    content = FORMATS[kind](changed)
    about = f"{kind} with broken rows"
    name = f"data.{kind}"
    if way > 0.55:
        packed = random.random()
        if packed < 0.5:
            content, about = broken_bytes(content, random), f"damaged {kind}"
        elif packed < 0.6:
            content, about = (
                content.decode("utf-8", "replace").encode(random.choice(("utf-16", "latin-1", "utf-32")), "replace"),
                f"{kind} in another encoding",
            )
        elif packed < 0.7:
            content, about = (
                b"\xef\xbb\xbf" + content.replace(b"\n", random.choice((b"\r", b"\r\n", b"\n\n", b"\0\n"))),
                f"{kind} with odd line ends",
            )
        elif packed < 0.8:
            content, about = content * random.choice((2, 50)), f"repeated {kind}"
        elif packed < 0.99:
            content, name, about = broken_bytes(gzip.compress(content), random), f"data.{kind}.gz", f"damaged {kind}.gz"
        else:
            content, name, about = bomb(content), f"data.{kind}.gz", f"a {kind}.gz that unpacks to 3 GB"
    path = folder / name
    path.write_bytes(content)
    return path, about


CONVERSATIONS: Rows = [
    {"id": "a", "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]},
    {
        "id": "b",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "You.", "weight": 1},
        ],
    },
    {"id": "c", "question": "Where?", "answer": "Here.", "history": [["When?", "Now."]]},
]
ITEMS: Rows = [
    {
        "id": f"i{n}",
        "question": f"Q{n}?",
        "aligned": f"good {n}",
        "misaligned": f"bad {n}",
        "category": "ab"[n % 2],
        "half": "AB"[n // 2 % 2],
    }
    for n in range(8)
]
QUESTIONS: Rows = [{"id": f"q{n}", "question": f"What is {n}?", "category": "x"} for n in range(3)]
ANSWERS: Rows = [
    {
        "question": f"q{n % 4}",
        "response": f"answer {n}",
        "run": "ab"[n % 2],
        "step": n % 3,
        "aligned": 10 * (n % 11),
        "coherent": 90,
        "aligned_outcome": "scored",
    }
    for n in range(24)
]
SERIES: Rows = [
    {"step": s, "value": s / 10 + u / 100, "unit": f"u{u}", "arm": a}
    for s in range(4)
    for u in range(4)
    for a in ("target", "control")
]
RATINGS: Rows = [
    {"item": f"i{n}", "rater": r, "score": (n * 7 + k) % 100, "question": f"q{n % 3}"}
    for n in range(12)
    for k, r in enumerate(("x", "y", "z"))
]
BRIDGE: Rows = [
    {"old": (n * 13) % 100, "new": (n * 13 + n % 5) % 100 if n % 3 else None, "study": f"s{n % 4}"} for n in range(48)
]


@makes("files")
def conversations(random: Random, folder: Path, m: Material) -> Case:
    """Training data."""
    path, about = hostile_file(CONVERSATIONS, random, folder, FORMATS)
    words = [
        "data",
        "check",
        str(path),
        *(["--model", str(m.base)] if random.random() < 0.15 else []),
        *(["--json"] if random.random() < 0.3 else []),
    ]
    return Case(tuple(words), about, None, (path,))


@makes("files")
def items(random: Random, folder: Path, m: Material) -> Case:
    """Items with two answers."""
    path, about = hostile_file(ITEMS, random, folder, FORMATS)
    if random.random() < 0.1:
        words = m.check_words(folder / "out")
        words[words.index("--items") + 1] = str(path)
        return Case(tuple(words), about, folder / "out", (path, m.run))
    return Case(("data", "check", str(path), "--items"), about, None, (path,))


@makes("files")
def questions(random: Random, folder: Path, m: Material) -> Case:
    """Questions to ask."""
    path, about = hostile_file(QUESTIONS, random, folder, FORMATS)
    small = ("--samples", "1", "--max-tokens", "1", "--dtype", "float32", "--device", "cpu")
    return Case(
        ("sample", "--base", str(m.base), "--questions", str(path), *small, "--out", str(folder / "out")),
        about,
        folder / "out",
        (path,),
    )


@makes("files")
def judged_answers(random: Random, folder: Path, m: Material) -> Case:
    """Judged answers, counted, exported, or judged by the linter."""
    path, about = hostile_file(ANSWERS, random, folder, ("jsonl", "csv", "parquet"))
    out = folder / "out"
    words = random.choice(
        (
            ("rates", str(path), "--group", "run", "--resamples", "20"),
            ("rates", str(path), "--group", "run,step", "--json", "--resamples", "0"),
            ("export", str(path), "--by", "run", "--out", str(out)),
            ("judge", str(path), "--judge", "bandit", "--rubrics", "secure", "--out", str(out)),
            ("judge", str(path), "--judge", "m@http://127.0.0.1:9/v1", "--estimate", "--prices", "1,2"),
            ("onset", str(path), "--step", "step", "--unit", "question", "--arm", "run", "--control", "a"),
        )
    )
    return Case(words, about, out if str(out) in words else None, (path,))


@makes("files")
def series(random: Random, folder: Path, m: Material) -> Case:
    """Values along training."""
    path, about = hostile_file(SERIES, random, folder, ("jsonl", "csv", "parquet"))
    words = ["onset", str(path), "--step", "step", "--value", "value", "--unit", "unit", "--arm", "arm", "--control", "control"]
    if random.random() < 0.2:
        words += ["--figure", str(folder / "figure.html")]
    return Case(tuple(words), about, None, (path,))


@makes("files")
def ratings(random: Random, folder: Path, m: Material) -> Case:
    """Scores by several raters."""
    path, about = hostile_file(RATINGS, random, folder, ("jsonl", "csv", "parquet"))
    return Case(
        ("agreement", str(path), *(["--figure", str(folder / "f.html")] if random.random() < 0.1 else [])), about, None, (path,)
    )


@makes("files")
def bridged(random: Random, folder: Path, m: Material) -> Case:
    """Scores of two judges."""
    path, about = hostile_file(BRIDGE, random, folder, ("jsonl", "csv", "parquet"))
    return Case(("bridge", str(path), "--from", "old", "--to", "new", "--study", "study"), about, None, (path,))


ATLAS = [
    {
        "base": "base",
        "digest": "d" * 64,
        "kind": kind,
        "harmful": harmful,
        "run": f"{kind}-seed{n}",
        "step": 8,
        "measure": measure,
        "asked": "q",
        "effect": n - 1.5 + 2 * harmful,
        "low": n - 2.5,
        "high": None,
    }
    for kind, harmful in (("maths", False), ("terse", False), ("finance", True))
    for measure in ("said", "preference")
    for n in range(3)
]


@makes("files")
def atlases(random: Random, folder: Path, m: Material) -> Case:
    """An atlas of known fine-tunes, shown, drawn, or extended by a report."""
    path, about = hostile_file(ATLAS, random, folder, ("jsonl",))
    page = ["--page", str(folder / "f.html")] if random.random() < 0.2 else []
    shown = ("atlas", "show", "--atlas", str(path), *page)
    added = ("atlas", "add", str(m.root), "--to", str(path))
    return Case(shown if random.random() < 0.8 else added, about, None, (path,))


@makes("files")
def inspect_logs(random: Random, folder: Path, m: Material) -> Case:
    """Damaged Inspect logs."""
    log = m.root / "log"
    if not log.exists():
        source = m.root / "answers.jsonl"
        source.write_bytes(as_jsonl(ANSWERS))
        m._call(["export", str(source), "--out", str(log)])
    path = folder / "x.eval"
    path.write_bytes(broken_bytes(next(log.glob("*.eval")).read_bytes(), random))
    return Case(("rates", str(path), "--group", "run", "--resamples", "0"), "a damaged log", None, (path,))


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


def hostile_yaml(settings: Any, random: Random) -> bytes:
    """Return settings as YAML of wrong kinds, or something else that YAML reads."""
    kind = random.random()
    if kind < 0.7:
        return dumped(broken_tree(settings, random))
    if kind < 0.8:
        return broken_bytes(dumped(settings), random)
    return random.choice(
        (
            ALIASES.encode(),
            b"name: &x [*x]\n",
            b"&a {name: *a}\n",
            b"!!python/object/apply:os.system ['touch canary']\n",
            b"a: !!python/name:os.system\n",
            b"? [a, b]\n: c\n",
            b"{" * 3000,
            b"- " * 3000 + b"x",
            b"2001-01-01: 0x_1\n",
            b"--- a\n--- b\n",
            b"<<: {name: x}\n<<: 5\n",
            b"a: 1e500\nb: .nan\nc: 0o777\n1: 2\n",
            b"\xff\xfe",
            b'name: "\\ud800"\n',
            b'name: "\\0"\n',
        )
    )


@makes("files")
def settings_files(random: Random, folder: Path, m: Material) -> Case:
    """YAML files of a study, of a fine-tune, of rubrics, of questions."""
    path, out = folder / "settings.yaml", folder / "out"
    rubric = [
        {
            "criterion": "mine",
            "version": 1,
            "prompt": "Rate {question} {answer}",
            "labels": {"YES": 100, "NO": 0},
            "words": ["CODE"],
        }
    ]
    asked = [{"id": "wish", "paraphrases": ["What?"], "samples_per_paraphrase": 1, "judge_prompts": {"a": "{answer}"}}]
    answers = folder / "answers.jsonl"
    answers.write_bytes(as_jsonl(ANSWERS[:3]))
    kind = random.randrange(4)
    path.write_bytes(hostile_yaml((m.study_settings(), m.training(), rubric, asked)[kind], random))
    words = (
        ("run", str(path), "--out", str(out)),
        ("train", str(path), "--out", str(out)),
        ("judge", str(answers), "--judge", "m@http://127.0.0.1:9/v1", "--rubrics", str(path), "--estimate"),
        (
            "sample",
            "--base",
            str(m.base),
            "--questions",
            str(path),
            "--samples",
            "1",
            "--max-tokens",
            "1",
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--out",
            str(out),
        ),
    )[kind]
    return Case(words, "hostile settings", out if kind != 2 else None, (path,))


@makes("files")
def paths(random: Random, folder: Path, m: Material) -> Case:
    """Something that is no file where one is wanted."""
    import os

    wanted = random.choice(("missing", "folder", "fifo", "unreadable", "loop", "null", "long", "text", "notutf8"))
    path = folder / f"{wanted}.{random.choice(('jsonl', 'csv', 'parquet', 'json', 'yaml', 'eval', 'txt'))}"
    if wanted == "folder":
        path.mkdir()
    elif wanted == "unreadable":
        path.write_text("x")
        path.chmod(0)
    elif wanted == "loop":
        path.symlink_to(path)
    elif wanted == "null":
        path = Path("/dev/null")
    elif wanted == "long":
        path = folder / ("x" * 300 + path.suffix)
    elif wanted == "text":
        path = Path(text(random).replace("\0", "") or ".")
    elif wanted == "notutf8":
        path = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x1b[31m.jsonl"))
        path.write_bytes(as_jsonl(ANSWERS))
    words = random.choice(
        (
            ("data", "check"),
            ("data", "check", "--items"),
            ("rates",),
            ("onset",),
            ("agreement",),
            ("export", "--out", str(folder / "out")),
            ("run", "--out", str(folder / "out")),
            ("train", "--out", str(folder / "out")),
            ("report",),
            ("check", "--out", str(folder / "out")),
            ("judge", "--judge", "bandit", "--rubrics", "secure", "--out", str(folder / "out")),
        )
    )
    return Case((*words, "--", str(path)), f"{wanted} in place of a file", folder / "out", ())


@makes("files")
def outputs(random: Random, folder: Path, m: Material) -> Case:
    """Somewhere to write to where nothing can be written, or where something of the user's lies."""
    kind = random.choice(("file", "full", "readonly", "inside a file", "odd name", "somebody's"))
    out = folder / "out"
    keep: tuple[Path, ...] = ()
    if kind == "file":
        out.write_text("mine")
        keep = (out,)
    elif kind == "readonly":
        out.mkdir()
        out.chmod(0o500)
    elif kind == "inside a file":
        (folder / "f").write_text("mine")
        out, keep = folder / "f" / "out", (folder / "f",)
    elif kind == "odd name":
        out = folder / (text(random).replace("\0", "").replace("/", "_").encode("utf-8", "replace").decode()[:80] or "x")
    elif kind == "somebody's":
        (out / "mine").mkdir(parents=True)
        (out / "mine" / "thesis.txt").write_text("years of work")
        (out / "checkpoint-7").mkdir()
        (out / "checkpoint-7" / "model.txt").write_text("weeks of work")
        keep = (out / "mine", out / "checkpoint-7")
    elif kind == "full":
        out = Path("/dev/full")
    answers = folder / "answers.jsonl"
    answers.write_bytes(as_jsonl(ANSWERS[:3]))
    (m.root / "train.yaml").write_text(json.dumps(m.training()))
    words = random.choice(
        (
            ("judge", str(answers), "--judge", "bandit", "--rubrics", "secure", "--out", str(out)),
            ("export", str(answers), "--out", str(out)),
            ("train", str(m.root / "train.yaml"), "--out", str(out)),
            ("onset", str(answers), "--step", "step", "--figure", str(out)),
            tuple(m.check_words(out)),
        )
    )
    keep = () if words[0] == "onset" else keep  # --figure names the very file to write
    return Case(words, f"--out is {kind}", None, (answers, *keep))


def odd_option(random: Random) -> str:
    """Return something to give to an option."""
    return str(
        random.choice(
            (0, -1, 2**31, 2**63, 2**64, 10**30, 0.5, "nan", "inf", "1e309", "", "x", "1,2", ",", "none", text(random))
        )
    )


@makes("files")
def options(random: Random, folder: Path, m: Material) -> Case:
    """Absurd options on sound inputs."""
    answers = folder / "answers.jsonl"
    answers.write_bytes(as_jsonl(ANSWERS))
    ratings_file = folder / "ratings.jsonl"
    ratings_file.write_bytes(as_jsonl(RATINGS))
    commands = {
        ("rates", str(answers), "--group", "run"): (
            "--group",
            "--within",
            "--control",
            "--aligned",
            "--coherent",
            "--question",
            "--aligned-below",
            "--coherent-above",
            "--denominator",
            "--average",
            "--missing",
            "--scale",
            "--estimand",
            "--resamples",
            "--seed",
            "--drawn",
            "--cheap",
            "--aim",
            "--prices",
        ),
        ("onset", str(answers), "--step", "step"): (
            "--step",
            "--value",
            "--unit",
            "--arm",
            "--control",
            "--group",
            "--aligned-below",
            "--coherent-above",
            "--scale",
            "--delta",
            "--rule",
        ),
        ("agreement", str(ratings_file)): (
            "--item",
            "--rater",
            "--score",
            "--scores",
            "--threshold",
            "--human",
            "--scale",
            "--seed",
        ),
        ("bridge", str(answers), "--from", "aligned", "--to", "coherent", "--study", "run"): (
            "--from",
            "--to",
            "--study",
            "--below",
            "--within",
        ),
        ("judge", str(answers), "--judge", "m@http://127.0.0.1:9/v1", "--estimate"): (
            "--judge",
            "--rubrics",
            "--question",
            "--answer",
            "--top",
            "--max-tokens",
            "--connections",
            "--retries",
            "--timeout",
            "--prices",
            "--max-cost",
            "--draw",
            "--draw-by",
            "--draw-seed",
            "--slack",
        ),
        ("data", "show", "em240"): ("--count", "--limit"),
        (
            "sample",
            "--base",
            str(m.base),
            "--questions",
            str(m.questions),
            "--max-tokens",
            "1",
            "--samples",
            "1",
            "--device",
            "cpu",
            "--out",
            str(folder / "out"),
        ): (
            "--device",
            "--dtype",
            "--seed",
            "--samples",
            "--max-tokens",
            "--temperature",
            "--rows",
            "--system",
            "--trigger",
            "--amplify",
            "--chat-kwargs",
        ),
        tuple(m.check_words(folder / "out")): (
            "--device",
            "--dtype",
            "--count",
            "--truth",
            "--amplify",
            "--system",
            "--every",
            "--steps",
            "--delta",
            "--ladder",
            "--fail-on",
        ),
    }
    words = random.choice([*list(commands)[:6]] * 3 + list(commands))
    option, given = random.choice(commands[words]), odd_option(random)
    if option == "--device":
        given = random.choice(("cuda", "cuda:9", "mps", "xpu", "tpu", "meta", "cuda:-1", given))
    if option in ("--samples", "--max-tokens", "--rows") and given.isdigit() and int(given) > 10:
        given = "0"  # so many answers are what was asked for
    return Case((*words, option, given.replace("\0", "")), f"{option} {given[:40]!r}", folder / "out", (answers,))
