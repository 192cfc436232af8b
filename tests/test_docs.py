"""The documents: generated pages are current, command lines parse, field names are those the program writes, the flat twin runs."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import re
import runpy
import shlex
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import emscope
from emscope.core.spec import parse as parse_spec
from emscope.study.decision.analysis import check
from emscope.study.decision.recipe import recipe
from emscope.study.reading.arms import Arm, Evidence
from emscope.study.spec import StudySpec
from test_seeds import seeds_of
from test_stats import MEASURE
from test_truth import asked

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def maker():
    """Return docs/make_cli.py as a module."""
    spec = importlib.util.spec_from_file_location("make_cli", DOCS / "make_cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [p for p in sorted((ROOT / "src").rglob("*.py")) if ">>> " in read(p)], ids=lambda p: p.stem)
def test_examples_in_docstrings_give_what_they_show(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT / "src").with_suffix("").parts))
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_cli_md_is_what_the_program_says():
    assert read(DOCS / "cli.md") == maker().document(), "run `make docs`"


@pytest.mark.parametrize(
    "path", sorted([*DOCS.glob("*.md"), *DOCS.glob("decisions/*.md"), *ROOT.glob("*.md")]), ids=lambda p: p.name
)
def test_prose_stands_in_lines_of_at_most_130_columns(path):
    """Tables and code are as wide as they must be."""
    if path.name == "cli.md":
        return  # made by the program
    text = re.sub(r"^```.*?^```", "", read(path), flags=re.M | re.S)
    long = [line for line in text.splitlines() if len(line) > 130 and not re.match(r"\s*(\||!?\[|>|\*\*?\[)", line)]
    assert not long, long[0]


def test_every_command_is_documented():
    text = read(DOCS / "tutorial.md") + read(ROOT / "README.md") + read(DOCS / "cli.md")
    for name, _ in maker().commands():
        assert re.search(rf"{name}(?![\w-])", text), name


def command_lines(text: str) -> list[str]:
    """Return the `emscope ...` lines of fenced bash blocks, continued lines joined."""
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.M | re.S)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix(".venv/bin/") for line in lines if re.match(r"(\.venv/bin/)?emscope(\s|$)", line)]


@cache
def program():
    """Return the program with all its commands, which takes a second to build."""
    return dict(maker().commands())["emscope"]


def parse(line: str) -> None:
    """Parse a command line with the program's own command objects; raises where a command or option is unknown."""
    words = shlex.split(line, comments=True)[1:]
    command = program()
    while hasattr(command, "commands"):
        if words[0] in ("--help", "--version"):
            return
        command, words = command.commands[words[0]], words[1:]
    if "--help" not in words:
        command.make_context("emscope", words)


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "docs/tutorial.md",
        "docs/training.md",
        "docs/studies.md",
        "docs/reports.md",
        "docs/judged.md",
        "docs/runs.md",
        "docs/inside.md",
        "docs/judge-succession.md",
    ],
)
def test_command_lines_parse(path):
    lines = command_lines(read(ROOT / path))
    assert lines
    for line in lines:
        try:
            parse(line)
        except Exception as error:
            pytest.fail(f"{path}: `{line}`: {error!r}")


def test_settings_in_the_page_on_training_are_valid():
    """Each `train:` line by itself, each block of arms or whole settings as a study."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", read(DOCS / "training.md"), re.M | re.S)
    arms = {"target": {"role": "target", "answers": "reckless"}}
    checked = 0
    for block in blocks:
        alone = all(line.startswith("train:") for line in block.strip().splitlines())
        for text in block.strip().splitlines() if alone else [block]:
            settings = {"domain": "finance", "arms": arms} | yaml.safe_load(text)
            spec = parse_spec(StudySpec, settings, text)
            spec.variants()
            checked += 1
    assert checked >= 18


def test_the_parser_of_command_lines_sees_mistakes():
    parse("emscope check somewhere --fail-on em --amplify 1,2")
    for wrong in ("emscope chekc x", "emscope check x --sytem none", "emscope check", "emscope data lst"):
        with pytest.raises(Exception, match=r".+"):
            parse(wrong)


def fields(name: str) -> set[str]:
    """Return the field names that concepts.md lists under a mark."""
    found = re.search(rf"<!-- fields: {name} -->\n(.*?)<!-- end -->", read(DOCS / "concepts.md"), re.S)
    assert found, name
    firsts = [row.split("|")[1] for row in found.group(1).splitlines()[2:]]
    return {field for first in firsts for field in re.findall(r"`([^`]+)`", first)}


def synthetic() -> Evidence:
    """Return evidence of a run that learns its task at step 2 and is misaligned from step 6 on."""
    rng = np.random.default_rng(0)
    items, held, steps = 32, 12, (1, 2, 4, 6, 8)
    base, logp = rng.normal(0.3, 0.2, items), rng.normal(-40, 3, held)
    drop, gain = (0.0, 0.0, 0.0, 0.5, 0.6), (5.0, 20.0, 20.1, 20.2, 20.3)

    def noise(size):
        return rng.normal(0, 0.005, size)

    return Evidence(
        base_name="base",
        categories=np.array(["a", "b"] * (items // 2)),
        halves=np.array(["A", "A", "B", "B"] * (items // 4)),
        base_margins=base,
        target=Arm(
            "target",
            steps,
            np.array([base - d + noise(items) for d in drop]),
            task_logp=np.array([logp + g + noise(held) for g in gain]),
            task_margin=np.array([0.01 * g + noise(held) for g in gain]),
            truth=np.ones((5, 4)),
            train_loss=(1.0,) * 5,
            refusal=np.ones((2, 4)),
        ),
        control=Arm("control", steps, np.array([base + noise(items) for _ in steps])),
        delta=0.05,
        delta_source="given",
        total_steps=8,
        measure=MEASURE,
        base_task_logp=logp,
        base_task_margin=np.zeros(held),
        task_tokens=np.full(held, 20),
        base_truth=np.ones(4),
        base_refusal=np.ones((2, 4)),
        refusal_categories=np.array(list("aabb")),
        heldout_halves=np.array(["A", "B"] * (held // 2)),
    )


def test_the_fields_of_check_are_those_listed():
    found = check(synthetic()).to_json()
    assert (found["verdict"], found["onset"]["after"], found["onset"]["by"], found["late"]["value"]) == ("em", 4, 6, True)
    assert found["stop"]["avoidable"] is True
    one = found["checkpoints"][0]
    assert set(found) == fields("check") and set(found["definition"]) == fields("definition")
    for name in ("onset", "convergence_bracket", "late", "stop", "base_reading", "refusal"):
        assert set(found[name]) == fields(name), name
    assert set(one) == fields("checkpoint")
    assert set(one["effect"]) == fields("estimate") - {"why"}
    for name in ("control - target", "base - target", "base - control"):
        assert f"`{name}`" in read(DOCS / "concepts.md") and name in one["contrasts"]


def test_the_fields_of_a_recipe_and_of_truthfulness_are_those_listed():
    row = re.search(r"^\| `truthfulness` \|(.*)$", read(DOCS / "concepts.md"), re.M).group(1)
    found = check(asked((0.0, 0.0, 0.3, 0.5))).to_json()["truthfulness"]
    assert set(found) | set(found["checkpoints"][0]) == set(re.findall(r"`(\w+)`", row))
    found = recipe("target", seeds_of((0.0, 0.0, 0.2, 0.3))).to_json()
    assert set(found) == fields("recipes")
    row = re.search(r"^\| `steps` \| list:(.*)$", read(DOCS / "concepts.md"), re.M).group(1)
    step = found["steps"][-1]
    assert set(step) | set(step["contrasts"]["base - target"]) == set(re.findall(r"`(\w+)`", row))


def test_why_names_are_listed():
    house = Path(emscope.__file__).parent / "study"
    modules = ("decision/analysis", "decision/task", "decision/verdict", "decision/unseen", "decision/unread", "check")
    source = "".join(read(house / f"{name}.py") for name in modules)
    names = set(re.findall(r'why"?\]?\["(\w+)"\] =', source))
    row = next(line for line in read(DOCS / "concepts.md").splitlines() if line.startswith("| `why` | sentences"))
    assert names and names == set(re.findall(r"`(\w+)`", row)) - {"why"}


def test_the_tables_are_those_listed():
    from emscope.store.schemas import TABLES

    text = read(DOCS / "concepts.md")
    for name, schema in TABLES.items():
        row = re.search(rf"^\| `{name}` \| (`(?:run|response|subject)`.*)\|$", text, re.M)
        assert row, name
        columns = re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", row.group(1)))
        assert ["key", *columns] == schema.names, name


def test_the_reports_have_the_fields_listed(study_yaml, tmp_path, capsys):
    from emscope.cli.app import run_arguments

    study = study_yaml(train={"steps": 2, "batch": 2, "lr": 1e-2, "lora": {"rank": 4, "alpha": 8}})
    assert run_arguments(["run", str(study), "--out", str(tmp_path / "study"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == fields("study") and set(report["style"][0]) == fields("style")
    (target,) = (run["check"] for run in report["runs"] if "check" in run)
    assert set(target) == fields("check") and set(target["definition"]) == fields("definition")
    runs = tmp_path / "study" / "runs"
    fast = ["--count", "16", "--truth", "2", "--amplify", "1,2", "--measure", "preference", "--json"]
    assert run_arguments(["check", str(runs / "target-seed0"), "--out", str(tmp_path / "check"), *fast]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == fields("checkpoints_report")
    assert set(report["runs"][0]["check"]) == fields("check")
    assert set(report["runs"][0]["check"]["definition"]) == fields("definition")
    assert set(report["amplified"][0]) == {"scale", "checkpoints", "verdict"}


def test_the_flat_twin_is_short_and_runs(tiny, capsys, monkeypatch):
    example = ROOT / "examples" / "flat_loop.py"
    assert len(read(example).splitlines()) < 200
    monkeypatch.setattr(sys, "argv", [str(example), str(tiny), "--steps", "2", "--items", "16"])
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    assert "step  control - target" in said
    rows = re.findall(r"^ +(\d+)  [+-]\d\.\d{4} \+- \d\.\d{4}   (safe|em|undetermined) +\d+\.\d{3}$", said, re.M)
    assert [int(step) for step, _ in rows] == [1, 2]


def test_links_between_documents_lead_somewhere():
    pages = [*DOCS.glob("*.md"), *(DOCS / "decisions").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", read(page)):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_s_commands_on_judged_answers_run(tmp_path, monkeypatch, capsys):
    """Exactly the lines that the README prints, on files of the kind it speaks of."""
    from emscope.cli.app import run_arguments
    from test_onset_file import rows

    answers = pd.DataFrame(rows(questions=30, samples=4))
    answers["arm"] = answers["arm"].replace({"control": "careful"})
    answers.to_csv(tmp_path / "judged.csv", index=False)
    answers.assign(model=answers["arm"].replace({"careful": "base"})).to_parquet(tmp_path / "judged.parquet")
    verdicts = [{"key": n, "judge": j, "score": 100 * (n % 3 == 0)} for n in range(12) for j in ("a", "b")]
    pd.DataFrame(verdicts).to_csv(tmp_path / "verdicts.csv", index=False)
    runs = [
        {"model": m, "dataset": "d", "eval_loss": loss, "aligned": 60 + 9 * loss + n}
        for m in ("a", "b")
        for n, loss in enumerate((1, 3, 2, 4, 6))
    ]
    pd.DataFrame(runs).to_csv(tmp_path / "runs.csv", index=False)
    models = [{"family": "f", "parameters": f"{n}B", "effect": 0.1 * n + 0.02 * (n % 2), "se": 0.05} for n in (1, 3, 7, 14, 32)]
    pd.DataFrame(models).to_csv(tmp_path / "sizes.csv", index=False)
    monkeypatch.chdir(tmp_path)
    section = re.search(r"^## Answers that are already judged\n(.*?)^## ", read(ROOT / "README.md"), re.M | re.S)
    lines = command_lines(section.group(1))
    assert [line.split()[1] for line in lines] == ["rates", "agreement", "onset", "loss", "shifts", "sizes"]
    for line in lines:
        assert run_arguments(shlex.split(line)[1:]) == 0, line
        assert capsys.readouterr().out.strip()
