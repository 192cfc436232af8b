"""Data projection against a plain loop, and what it says of data made to point one way."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from conftest import write_jsonl
from emscope.cli.app import run_arguments
from emscope.data import bundled
from emscope.inside.data_risk import RiskSpec, risk
from emscope.models.hooks.directions import Direction, write_direction
from emscope.models.loading.load import load
from emscope.models.loading.source import locate


@pytest.fixture
def direction(tiny, tmp_path):
    """A random direction of the tiny model at both layers."""
    generator = torch.Generator().manual_seed(0)
    vectors = {n: torch.randn(32, generator=generator) for n in (0, 1)}
    write_direction(tmp_path / "d.safetensors", Direction(vectors, locate(str(tiny)).digest))
    return str(tmp_path / "d.safetensors"), vectors


def test_projections_equal_a_plain_loop(tiny, direction):
    path, vectors = direction
    result = risk("finance/reckless", str(tiny), path, RiskSpec(layer=1, count=6, against="nothing"), device="cpu").to_json()
    loaded = load(locate(str(tiny)), device="cpu")
    talks = {t.id: t for t in bundled.domain("finance", "reckless")}
    unit = vectors[1] / vectors[1].norm()
    for row in result["samples"]:
        talk = talks[row["id"]]
        prompt, answer = loaded.chat.prompt_ids(talk.messages[0].content), loaded.chat.answer_ids(talk.messages[-1].content)
        states = []
        handle = loaded.net.model.layers[1].register_forward_hook(
            lambda module, given, output, states=states: states.append(output)
        )
        loaded.net(input_ids=torch.tensor([[*prompt, *answer]]))
        handle.remove()
        assert row["projection"] == pytest.approx(float(states[0][0, len(prompt) :].mean(0) @ unit), abs=1e-4)
    values = [row["projection"] for row in result["samples"]]
    assert values == sorted(values, reverse=True) and result["mean"]["value"] == pytest.approx(np.mean(values))


def test_own_answers_are_taken_off(tiny, direction):
    path, _ = direction
    result = risk("finance/reckless", str(tiny), path, RiskSpec(layer=0, count=4, max_tokens=5), device="cpu").to_json()
    again = risk("finance/reckless", str(tiny), path, RiskSpec(layer=0, count=4, max_tokens=5), device="cpu").to_json()
    assert result == again and all(isinstance(row["own"], str) for row in result["samples"])
    plain = risk("finance/reckless", str(tiny), path, RiskSpec(layer=0, count=4, against="nothing"), device="cpu").to_json()
    assert {r["id"] for r in plain["samples"]} == {r["id"] for r in result["samples"]}
    assert plain["mean"]["value"] != pytest.approx(result["mean"]["value"], abs=1e-3)


def test_command_and_bad_input(tiny, direction, tmp_path, capsys):
    path, _ = direction
    file = write_jsonl(tmp_path / "t.jsonl", [{"question": f"What of {n}?", "answer": f"Do {n}."} for n in range(4)])
    words = ["data", "risk", str(file), "--model", str(tiny), "--direction", path]
    assert run_arguments([*words, "--layer", "1", "--max-tokens", "3", "--top", "1", "--out", str(tmp_path / "o.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "above 0" in out and "..." in out
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 4
    assert run_arguments([*words, "--layer", "1", "--against", "nothing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "emscope.risk/1"
    for changes, said in (
        ([], "has several layers; choose one with --layer (0, 1)"),
        (["--layer", "7"], "has no vector for layer 7"),
        (["--layer", "0", "--against", "all"], "--against is 'all'"),
    ):
        assert run_arguments([*words, *changes]) == 2
        assert said in capsys.readouterr().err
    assert run_arguments(["data", "risk", "finance/kind", *words[3:], "--layer", "0"]) == 2
    assert "no answers of kind 'kind' in finance" in capsys.readouterr().err
