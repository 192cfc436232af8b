"""The notebooks run from their first cell to their last, on small inputs in place of the cell that is tagged `parameters`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from test_checkpoints import make_adapter

pytestmark = pytest.mark.models
NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"


def run(name, parameters=None):
    """Run a notebook's code cells one after the other; return the names they leave and the value of each cell's last line."""
    left, values = {}, []
    for cell in json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        if parameters is not None and "parameters" in cell["metadata"].get("tags", ()):
            source = parameters
        body, _, last = source.rpartition("\n")
        try:
            value = compile(last, name, "eval")
        except SyntaxError:
            exec(compile(source, name, "exec"), left)  # noqa: S102
            values.append(None)
        else:
            exec(compile(body, name, "exec"), left)  # noqa: S102
            values.append(eval(value, left))  # noqa: S307
    return left, values


def test_every_notebook_is_run_here_and_holds_no_output():
    names = {p.name for p in NOTEBOOKS.glob("*.ipynb")}
    assert names == {"own_checkpoints.ipynb", "judged_answers.ipynb"}
    cells = [c for name in names for c in json.loads((NOTEBOOKS / name).read_text())["cells"] if c["cell_type"] == "code"]
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells)


def test_own_checkpoints(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(("my-run", "my-control")):
        for step in (2, 4):
            make_adapter(tiny, tmp_path / "outputs" / name / f"checkpoint-{step}", seed=10 * n + step)
    fast = {"measure": "preference", "count": 32, "truth": 0}
    left, values = run("own_checkpoints.ipynb", f'run, control = "outputs/my-run", "outputs/my-control"\nsettings = {fast!r}')
    assert left["frame"]["step"].tolist() == [2, 4] and values[-1] is True, "in memory the verdict is the same"
    assert (tmp_path / "for-a-colleague" / "drift.html").is_file() and "A screen" in capsys.readouterr().out


def test_judged_answers(capsys):
    left, _ = run("judged_answers.ipynb")
    rates, onset = left["rates"].to_frame(), left["onset"].to_json()
    assert len(rates) == 8 and {"rate", "rate_low", "rate_high"} <= set(rates.columns)
    assert onset["groups"][0]["onset"] is not None, "the made-up answers get worse"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["own_checkpoints.ipynb", "judged_answers.ipynb"])
def test_a_notebook_is_valid(name):
    book = json.loads((NOTEBOOKS / name).read_text())
    assert book["nbformat"] == 4 and len({c["id"] for c in book["cells"]}) == len(book["cells"])
