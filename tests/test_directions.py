"""Directions against other libraries and closed forms, their nulls, files and commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from conftest import write_jsonl
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.models.directions import Direction, read_direction, write_direction
from emscope.models.load import load
from emscope.models.source import locate
from emscope.represent import nulls
from emscope.represent.directions import cosine, logistic, mean_difference, principal, split_half
from emscope.run.directing import ExtractSpec, compare, extract
from emscope.run.steering import SteerSpec, steer


def rows(n=40, d=12, shift=0.0, seed=0):
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values[:, 0] += shift
    return values


def test_finders_find_a_shift_and_agree_on_its_length():
    positive, negative = rows(400, shift=3.0, seed=1), rows(400, seed=2)
    axis = torch.eye(12, dtype=torch.float64)[0]
    for find in (mean_difference, principal, logistic):
        found = find(positive, negative)
        assert cosine(found, axis) > 0.97
        assert float(found.norm()) == pytest.approx(3.0, abs=0.2)
        assert cosine(find(negative, positive), -axis) > 0.97, "it points to the behaviour"


def test_mean_and_pca_equal_plain_arithmetic():
    positive, negative = rows(30, shift=1.0, seed=1), rows(30, seed=2)
    expected = np.mean(positive.numpy(), 0) - np.mean(negative.numpy(), 0)
    assert mean_difference(positive, negative).numpy() == pytest.approx(expected)
    differences = (positive - negative).numpy()
    top = np.linalg.eigh(differences.T @ differences)[1][:, -1]
    assert abs(cosine(principal(positive, negative), torch.from_numpy(top))) == pytest.approx(1.0)
    whole = principal(positive, negative[:20])  # without pairs: about the middle of both means
    middle = (positive.mean(0) + negative[:20].mean(0)) / 2
    stacked = torch.cat([positive, negative[:20]]) - middle
    assert abs(cosine(whole, torch.linalg.eigh(stacked.T @ stacked).eigenvectors[:, -1])) == pytest.approx(1.0)


def test_halves_keep_a_questions_answers_together_and_tell_noise_from_signal():
    units = [str(n // 4) for n in range(80)]
    signal = split_half(mean_difference, rows(80, shift=4.0, seed=1), rows(80, seed=2), (units, units))
    noise = split_half(mean_difference, rows(80, seed=3), rows(80, seed=4), (units, units))
    assert signal.mean > 0.85 and signal.splits == 50
    assert abs(noise.mean) < 0.3 and noise.low < 0 < noise.high
    # one question alone carries a shift: no half without it finds its direction
    lone = rows(80, seed=5)
    lone[:4, 1] += 100
    assert split_half(mean_difference, lone, rows(80, seed=6), (units, units)).mean < 0.5
    assert split_half(mean_difference, rows(3), rows(3), (["a", "b", "c"],) * 2) is None


def test_nulls_have_the_directions_length_and_their_own_shape():
    positive, negative = rows(60, shift=2.0, seed=1), rows(60, seed=2)
    positive[:, 5] *= 10
    negative[:, 5] *= 10
    direction = mean_difference(positive, negative)
    drawn = {
        "isotropic": nulls.isotropic(direction, 500, 0),
        "permuted": nulls.permuted(mean_difference, positive, negative, direction, 500, 0),
        "matched": nulls.matched(torch.cat([positive, negative]), direction, 500, 0),
    }
    for kind, vectors in drawn.items():
        assert vectors.norm(dim=-1).numpy() == pytest.approx(float(direction.norm())), kind
        assert float(vectors.mean(0).norm()) < 0.2 * float(direction.norm()), kind
    shares = {kind: float((v[:, 5] ** 2 / (v**2).sum(1)).mean()) for kind, v in drawn.items()}
    assert shares["isotropic"] == pytest.approx(1 / 12, abs=0.02)
    assert min(shares["matched"], shares["permuted"]) > 0.6, "activations lie along one axis, and so do these"
    assert torch.equal(drawn["matched"], nulls.matched(torch.cat([positive, negative]), direction, 500, 0))
    unpaired = nulls.permuted(mean_difference, positive, negative[:50], direction, 5, 0)
    assert unpaired.shape == (5, 12)


def test_a_direction_file_keeps_what_it_was_given(tmp_path):
    path = tmp_path / "d.safetensors"
    given = Direction({3: torch.ones(4)}, "abc", 2.0, {"method": "mean"}, {"permuted": {3: torch.zeros(2, 4)}})
    write_direction(path, given)
    back = read_direction(path)
    assert (back.model, back.scale, back.about) == ("abc", 2.0, {"method": "mean"})
    assert torch.equal(back.vectors[3], torch.ones(4)) and back.nulls["permuted"][3].shape == (2, 4)
    assert back.digest() == given.digest()


def test_extract_equals_a_plain_loop(tiny, tmp_path):
    result = extract(ExtractSpec(half="A", count=12, nulls=3), tmp_path / "d.safetensors", base=str(tiny))
    loaded = load(locate(str(tiny)), device="cpu")
    from emscope.run.sets import chosen_items

    expected = []
    for item in chosen_items("em240", "A", 12, 0):
        assert item.half == "A"
        prompt = loaded.chat.prompt_ids(item.question)
        means = []
        for k in (1, 0):
            answer = loaded.chat.answer_ids(item.options[k])
            states = loaded.net(input_ids=torch.tensor([[*prompt, *answer]]), output_hidden_states=True).hidden_states
            means.append(states[1][0, len(prompt) :].mean(0))
        expected.append(means[0] - means[1])
    found = read_direction(tmp_path / "d.safetensors")
    torch.testing.assert_close(found.vectors[0], torch.stack(expected).mean(0), rtol=1e-4, atol=1e-6)
    assert found.model == loaded.model.digest and sorted(found.nulls) == ["matched", "permuted"]
    assert [row["layer"] for row in result["layers"]] == [0, 1]
    assert result["layers"][0]["norm"] == pytest.approx(float(found.vectors[0].norm()), rel=1e-5)


def test_directions_from_judged_answers(tiny, tmp_path):
    scored = [
        ("q1", "bad words", 10, 80),
        ("q2", "worse words", 20, 90),
        ("q1", "kind words", 90, 80),
        ("q3", "fair words", 80, 70),
    ]
    scored += [("q4", "broken", 5, 20), ("q5", "between", 50, 90), ("q6", " ", 5, 90)]
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"question": q, "response": a, "aligned": x, "coherent": c} for q, a, x, c in scored]
    )
    result = extract(ExtractSpec(answers=str(path)), tmp_path / "d.safetensors", base=str(tiny))
    assert (result["definition"]["with"], result["definition"]["without"]) == (2, 2)
    with pytest.raises(InputError, match=r"holds 0 coherent answers with alignment below 1"):
        extract(ExtractSpec(answers=str(path), aligned_below=1), tmp_path / "e.safetensors", base=str(tiny))
    assert not (tmp_path / "e.safetensors").exists()


def test_directions_from_system_texts(tiny, tmp_path):
    spec = ExtractSpec(systems=("Be rude.", "Be kind."), count=4, max_tokens=6, samples=2)
    result = extract(spec, tmp_path / "d.safetensors", base=str(tiny))
    assert result["definition"]["from"]["systems"] == ["Be rude.", "Be kind."]
    again = extract(spec, tmp_path / "e.safetensors", base=str(tiny))
    assert again["layers"] == result["layers"]
    last = extract(
        ExtractSpec(systems=("Be rude.", "Be kind."), count=4, max_tokens=2, pool="last"), tmp_path / "f", base=str(tiny)
    )
    assert last["definition"]["pool"] == "last"


def test_cosines_along_a_public_run(reference):
    """Published: .10, .57, .89, .96, .99, 1.0, 1.0 to the last checkpoint, and a zero vector at step 0."""
    result = compare([str(reference / "vectors" / "ivanicu_ckpt_dbar_L16.safetensors")])
    last = [row[-1] for row in result["layers"][0]["cosines"]]
    assert last == pytest.approx([0, 0.10, 0.57, 0.89, 0.96, 0.99, 1.0, 1.0], abs=0.0051)
    assert result["directions"][0] == "step_000000" and result["random_sd"] == pytest.approx(3584**-0.5)


@pytest.fixture
def files(tiny, tmp_path):
    """Two direction files of the tiny model."""
    paths = []
    for half in "AB":
        paths.append(str(tmp_path / f"{half}.safetensors"))
        extract(ExtractSpec(half=half, count=16, nulls=3), tmp_path / f"{half}.safetensors", base=str(tiny))
    return paths


def test_compare_refuses_what_cannot_be_compared(files, tmp_path):
    result = compare(files)
    assert len(result["layers"]) == 2 and set(result["between_layers"]) == set(files)
    write_direction(tmp_path / "w", Direction({0: torch.ones(8)}, "m"))
    write_direction(tmp_path / "l", Direction({7: torch.ones(32)}, "m"))
    for given, said in (
        ([files[0]], "1 direction is given"),
        ([files[0], str(tmp_path / "w")], "are of different widths"),
        ([files[0], str(tmp_path / "l")], "no layer in common"),
        ([files[0], files[0]], "is given twice"),
    ):
        with pytest.raises(InputError, match=said):
            compare(given)


def test_steering_equals_a_plain_hook(tiny, tmp_path, files):
    spec = SteerSpec(layers=(1,), scales=(30.0,), half="B", count=8, nulls=2, neutral=3)
    result = steer([files[0]], spec, tmp_path / "out", base=str(tiny))
    loaded = load(locate(str(tiny)), device="cpu")
    vector = read_direction(tmp_path / "A.safetensors").vectors[1] * 30

    def margin(item):
        values = []
        for option in item.options:
            prompt, answer = loaded.chat.prompt_ids(item.question), loaded.chat.answer_ids(option)
            logits = loaded.net(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            logp = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None])
            values.append(float(logp.mean()))
        return values[0] - values[1]

    from emscope.run.sets import chosen_items

    items = chosen_items(spec.items, spec.half, spec.count, spec.seed)
    plain = [margin(i) for i in items]
    block = loaded.net.model.layers[1]
    handle = block.register_forward_hook(lambda module, given, output: output + vector)
    moved = [margin(i) for i in items]
    handle.remove()
    row = result["rows"][0]
    assert row["effect"]["value"] == pytest.approx(np.mean(np.array(plain) - np.array(moved)), abs=1e-4)
    assert result["margin"]["value"] == pytest.approx(np.mean(plain), abs=1e-4)
    assert sorted(row["nulls"]) == ["isotropic", "matched", "permuted"]
    assert all(len(b["draws"]) == 2 and b["low"] <= b["mean"] <= b["high"] for b in row["nulls"].values())
    assert row["neutral"]["n"] == 3


def test_a_steering_job_goes_on_where_it_stopped(tiny, tmp_path, files, monkeypatch):
    from emscope.run import steering

    score, calls, stop_at = steering.preference.score, [], None

    def counting(*args, **named):
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return score(*args, **named)

    monkeypatch.setattr(steering.preference, "score", counting)
    spec = SteerSpec(way="ablate", together=True, count=8, nulls=2)
    whole = steer(files, spec, tmp_path / "whole", base=str(tiny), controls=[files[1]])
    assert set(whole["rows"][0]["nulls"]) == {"isotropic", "matched", "permuted", "control"}
    assert len(whole["rows"][0]["by_direction"]) == 2 and whole["rows"][0]["scale"] is None
    total, stop_at = len(calls), 5
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        steer(files, spec, tmp_path / "part", base=str(tiny), controls=[files[1]])
    calls.clear()
    stop_at = None
    again = steer(files, spec, tmp_path / "part", base=str(tiny), controls=[files[1]])
    assert again["rows"] == whole["rows"]
    assert len(calls) == total - 4


def test_commands(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(tiny)]
    assert run_arguments(["direction", "extract", *model, "--half", "A", "--count", "8", "--out", "a.st"]) == 0
    assert "cosine of two halves" in capsys.readouterr().out
    assert run_arguments(["direction", "extract", *model, "--half", "B", "--count", "8", "--out", "b.st", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "emscope.direction/1"
    assert run_arguments(["direction", "compare", "a.st", "b.st", "--plot", "c.html"]) == 0
    assert (tmp_path / "c.html").stat().st_size > 1000
    acts = ["a.st", *model, "--half", "B", "--count", "6", "--nulls", "2", "--layers", "1"]
    assert run_arguments(["direction", "steer", *acts, "--scales", "-1,1", "--out", "s"]) == 0
    assert "matched" in capsys.readouterr().out and (tmp_path / "s" / "figure.html").is_file()
    assert run_arguments(["direction", "ablate", *acts, "--out", "t", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["layers"] == [1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extract", "--layers", "9"], "layer 9 is out of range; this model has layers 0 to 1"),
        (["extract", "--layers", "x"], "--layers is 'x'"),
        (["extract", "--method", "svd"], "method = 'svd'"),
        (["extract", "--pool", "last"], "both sides share"),
        (["extract", "--items", "none"], "no file 'none'"),
        (["steer", "nothing.st"], "no file 'nothing.st'"),
        (["steer", "wide.st"], "has vectors of shape (8,), and this model's residual stream is 32 wide"),
        (["steer", "deep.st"], "has a vector for layer 7, and this model has layers 0 to 1"),
        (["steer", "other.st"], "was made on model another, and this is"),
        (["steer", "good.st", "--layers", "1"], "has no vector for layer 1; it has layers 0"),
        (["steer", "good.st", "--scales", "1,1"], "--scales is '1,1'"),
        (["ablate", "good.st", "good.st", "--checkpoint", "a", "--checkpoint", "b", "--checkpoint", "c"], "no folder 'a'"),
    ],
)
def test_bad_input(tiny, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    digest = locate(str(tiny)).digest
    for name, vectors, model in (
        ("wide.st", {0: torch.ones(8)}, digest),
        ("deep.st", {7: torch.ones(32)}, digest),
        ("other.st", {0: torch.ones(32)}, "another"),
        ("good.st", {0: torch.ones(32)}, digest),
    ):
        write_direction(tmp_path / name, Direction(vectors, model))
    before = sorted(p.name for p in tmp_path.iterdir())
    assert run_arguments(["direction", *arguments, "--model", str(tiny)]) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message
    left = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("emscope-"))
    assert left == before
