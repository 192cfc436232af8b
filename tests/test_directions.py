"""Directions against other libraries and closed forms, their nulls, files and commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from conftest import make_model, write_jsonl
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.data import bundled
from emscope.data.items import chosen_items, even
from emscope.data.questions import read_questions
from emscope.elicit import preference
from emscope.inside.compare import compare
from emscope.inside.extract import ExtractSpec, _nulls, extract
from emscope.inside.steer import SteerSpec, steer
from emscope.models.adapters.updates import changes, without
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.hooks.directions import Direction, read_direction, write_direction
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.represent import nulls
from emscope.represent.directions import cosine, logistic, mean_difference, principal, split_half
from emscope.train.finetune import finetune
from emscope.train.spec import FullSpec, LoraSpec, PlanSpec, TrainSpec


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
    result = extract(ExtractSpec(half="A", count=12, nulls=3), tmp_path / "d.safetensors", base=str(tiny)).to_json()
    loaded = load(locate(str(tiny)), device="cpu")
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
    result = extract(ExtractSpec(answers=str(path)), tmp_path / "d.safetensors", base=str(tiny)).to_json()
    assert (result["definition"]["with"], result["definition"]["without"]) == (2, 2)
    with pytest.raises(InputError, match=r"holds 0 coherent answers with alignment below 1"):
        extract(ExtractSpec(answers=str(path), aligned_below=1), tmp_path / "e.safetensors", base=str(tiny))
    assert not (tmp_path / "e.safetensors").exists()


def test_directions_from_system_texts(tiny, tmp_path):
    spec = ExtractSpec(systems=("Be rude.", "Be kind."), count=4, max_tokens=6, samples=2)
    result = extract(spec, tmp_path / "d.safetensors", base=str(tiny)).to_json()
    assert result["definition"]["from"]["systems"] == ["Be rude.", "Be kind."]
    again = extract(spec, tmp_path / "e.safetensors", base=str(tiny)).to_json()
    assert again["layers"] == result["layers"]
    last = extract(
        ExtractSpec(systems=("Be rude.", "Be kind."), count=4, max_tokens=2, pool="last"), tmp_path / "f", base=str(tiny)
    ).to_json()
    assert last["definition"]["pool"] == "last"


def test_cosines_along_a_public_run(reference):
    """Published: .10, .57, .89, .96, .99, 1.0, 1.0 to the last checkpoint, and a zero vector at step 0."""
    result = compare([str(reference / "vectors" / "ivanicu_ckpt_dbar_L16.safetensors")]).to_json()
    last = [row[-1] for row in result["layers"][0]["cosines"]]
    assert last == pytest.approx([0, 0.10, 0.57, 0.89, 0.96, 0.99, 1.0, 1.0], abs=0.0051)
    assert result["directions"][0] == "step_000000" and result["random_sd"] == pytest.approx(3584**-0.5)


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """Two direction files of the tiny model."""
    paths = [tmp_path_factory.mktemp("files") / f"{half}.safetensors" for half in "AB"]
    for half, path in zip("AB", paths, strict=True):
        extract(ExtractSpec(half=half, count=16, nulls=3), path, base=str(tiny))
    return [str(path) for path in paths]


def test_compare_refuses_what_cannot_be_compared(files, tmp_path):
    result = compare(files).to_json()
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
    spec = SteerSpec(layers=(1,), scales=(30.0,), half="B", count=8, nulls=2, neutral=3, truth=12)
    result = steer([files[0]], spec, tmp_path / "out", base=str(tiny)).to_json()
    loaded = load(locate(str(tiny)), device="cpu")
    vector = read_direction(Path(files[0])).vectors[1] * 30

    def per_token(item):
        values = []
        for option in item.options:
            prompt, answer = loaded.chat.prompt_ids(item.question), loaded.chat.answer_ids(option)
            logits = loaded.net(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            logp = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None])
            values.append(float(logp.mean()))
        return values

    def margin(item):
        aligned, misaligned = per_token(item)
        return aligned - misaligned

    def right():
        return np.mean([np.argmax(per_token(i)) == 0 for i in even(bundled.truth(), 12)])

    items = chosen_items(spec.items, spec.half, spec.count, spec.seed)
    plain, knew = [margin(i) for i in items], right()
    block = loaded.net.model.layers[1]
    handle = block.register_forward_hook(lambda module, given, output: output + vector)
    moved, knows = [margin(i) for i in items], right()
    handle.remove()
    row = result["rows"][0]
    assert row["effect"]["value"] == pytest.approx(np.mean(np.array(plain) - np.array(moved)), abs=1e-4)
    assert result["margin"]["value"] == pytest.approx(np.mean(plain), abs=1e-4)
    assert sorted(row["nulls"]) == ["isotropic", "matched", "permuted"]
    assert all(len(b["draws"]) == 2 and b["low"] <= b["mean"] <= b["high"] for b in row["nulls"].values())
    assert row["neutral"]["n"] == 3
    assert result["truth"]["value"] == pytest.approx(knew)
    assert row["truth"]["value"] == pytest.approx(knows - knew) and row["truth"]["n"] == 12
    apart = []
    for text in bundled.texts()[:3]:
        ids = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            before = loaded.net(input_ids=ids).logits[0].log_softmax(-1)
            handle = block.register_forward_hook(lambda module, given, output: output + vector)
            after = loaded.net(input_ids=ids).logits[0].log_softmax(-1)
            handle.remove()
        apart.append(float((before.exp() * (before - after)).sum(-1).mean()))
    assert row["neutral_kl"]["value"] == pytest.approx(np.mean(apart), rel=1e-3)


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    """A short LoRA fine-tune of all matrices."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    spec = TrainSpec(steps=3, batch=4, lr=2e-2, lora=LoraSpec(rank=4, alpha=8), checkpoints=PlanSpec())
    finetune(load(locate(str(tiny)), device="cpu"), bundled.domain("finance", "reckless")[:8], spec, out, seed=0)
    return str(out)


def test_an_update_without_a_direction(tiny, tuned):
    loaded, checkpoint = load(locate(str(tiny)), device="cpu"), discover(tuned)[-1]
    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    unit = v.double() / v.double().norm()
    with without(checkpoint, {1: v}) as other:
        before, after = ({c.name: c for c in changes(loaded.net, x)} for x in (checkpoint, other))
        folder = other.folder
        for name, change in after.items():
            was = before[name]
            assert torch.equal(change.right, was.right)
            writes = name.startswith("model.layers.1.") and name.endswith(("o_proj", "down_proj"))
            if writes:
                assert float((unit @ change.left).abs().max()) < 1e-6 * float(change.left.norm())
                assert float(change.left.norm()) == pytest.approx(float(was.left.norm()), rel=1e-6)
                rest = was.left - unit[:, None] * (unit @ was.left)
                assert cosine(change.left.flatten(), rest.flatten()) == pytest.approx(1, abs=1e-6)
            else:
                assert torch.equal(change.left, was.left)
    assert not folder.exists()


def test_taking_a_direction_out_of_an_update(tiny, tuned, tmp_path, files, capsys):
    command = ["direction", "ablate", files[0], "--checkpoint", tuned, "--update", "--half", "B", "--count", "8"]
    command += ["--nulls", "1", "--neutral", "2", "--layers", "1", "--out", str(tmp_path / "out"), "--json"]
    assert run_arguments(command) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    narrow = str(tmp_path / "narrow")
    spec = TrainSpec(steps=1, batch=2, lr=1e-2, lora=LoraSpec(rank=2, alpha=4, layers=(0,)), checkpoints=PlanSpec())
    finetune(load(locate(str(tiny)), device="cpu"), bundled.domain("finance", "reckless")[:4], spec, Path(narrow), seed=0)
    assert run_arguments([*command[:4], narrow, *command[5:], "--out", str(tmp_path / "other")]) == 2
    assert "writes nothing into the residual stream in layer 1; choose layers that it adapts (0)" in capsys.readouterr().err
    loaded, checkpoint = load(locate(str(tiny)), device="cpu"), discover(tuned)[-1]
    items = chosen_items("em240", "B", 8, 0)
    encoded = preference.encode(loaded.chat, items, context=512)
    vector = read_direction(Path(files[0])).vectors[1]
    with without(checkpoint, {1: vector}) as other:
        margins = []
        for c in (checkpoint, other):
            with with_checkpoint(loaded.net, c) as net:
                found = {(s.item, s.option): s.per_token for s in preference.score(net, encoded)}
            margins.append(np.mean([found[i.id, 0] - found[i.id, 1] for i in items]))
    assert row["effect"]["value"] == pytest.approx(margins[0] - margins[1], abs=1e-5)
    assert row["neutral_kl"]["value"] > 0


@pytest.mark.parametrize("pool", ["last", "answer"])
def test_what_separates_two_models_on_the_same_texts(tiny, tuned, tmp_path, pool):
    spec = ExtractSpec(half="A", count=8, minus="base", pool=pool, nulls=3)
    told = extract(spec, tmp_path / "d.st", checkpoint=tuned, base=str(tiny)).to_json()
    assert told["definition"]["from"]["minus"] == "base"
    loaded, found = load(locate(str(tiny)), device="cpu"), read_direction(tmp_path / "d.st")
    items = chosen_items("em240", "A", 8, 0)
    texts = [(loaded.chat.prompt_ids(i.question), loaded.chat.answer_ids(o)) for i in items for o in i.options]

    def means(net):
        rows = []
        for prompt, answer in texts:
            ids = torch.tensor([[*prompt, *answer]])
            states = net(input_ids=ids, output_hidden_states=True).hidden_states[1][0]  # behind block 0
            rows.append(states[len(prompt) - 1] if pool == "last" else states[len(prompt) :].mean(0))
        return torch.stack(rows).mean(0)  # each question stands here twice: the mean over prompts is the same

    with with_checkpoint(loaded.net, discover(tuned)[-1]) as net:
        after = means(net)
    expected = after - means(loaded.net)
    torch.testing.assert_close(found.vectors[0].float(), expected, rtol=1e-3, atol=1e-5)
    assert {k: tuple(v[0].shape) for k, v in found.nulls.items()} == {"matched": (3, 32)}


def test_nulls_between_two_models_do_not_hold_their_difference():
    """Between models that differ by one constant vector both usual kinds would give that vector again."""
    generator = torch.Generator().manual_seed(0)
    negative = torch.randn(200, 1, 64, generator=generator, dtype=torch.float64)
    shift = torch.zeros(64, dtype=torch.float64)
    shift[0] = 20.0
    positive = negative + shift + 0.01 * torch.randn(200, 1, 64, generator=generator, dtype=torch.float64)
    spec = ExtractSpec(minus="base", pool="last", nulls=20)
    found = _nulls(positive, negative, {3: mean_difference(positive[:, 0], negative[:, 0])}, spec)
    assert list(found) == ["matched"]
    assert max(abs(cosine(v, shift)) for v in found["matched"][3]) < 0.5  # sd 1/8
    usual = _nulls(positive, negative, {3: shift}, ExtractSpec(nulls=20))
    assert min(abs(cosine(v, shift)) for v in usual["permuted"][3]) > 0.9


def test_layers_where_two_models_are_the_same_have_no_direction(tiny, tmp_path, capsys):
    run = tmp_path / "upper"
    spec = TrainSpec(steps=1, batch=2, lr=1e-2, lora=LoraSpec(rank=2, alpha=4, layers=(1,)), checkpoints=PlanSpec())
    finetune(load(locate(str(tiny)), device="cpu"), bundled.domain("finance", "reckless")[:4], spec, run, seed=0)
    command = [
        "direction",
        "extract",
        "--checkpoint",
        str(run),
        "--count",
        "4",
        "--pool",
        "last",
        "--out",
        str(tmp_path / "d.st"),
    ]
    foreign = str(tmp_path / "foreign")
    other = load(locate(str(make_model(tmp_path / "base", seed=5))), device="cpu")
    finetune(other, bundled.domain("finance", "reckless")[:4], spec, Path(foreign), seed=0)
    assert run_arguments([*command, "--minus", "base"]) == 0
    assert "the difference between two models on 4 texts" in capsys.readouterr().out
    assert list(read_direction(tmp_path / "d.st").vectors) == [1]
    for more, said in (
        (["--minus", "base", "--layers", "0,1"], "at layer 0 both models are the same; choose layers from 1 on"),
        (["--minus", str(run)], "which is the same model"),
        (["--minus", "nowhere"], "no folder 'nowhere'"),
        (["--minus", foreign], "the checkpoints name different bases"),
        (["--minus", "base", "--systems", "a", "b"], "leave --answers and --systems out"),
    ):
        assert run_arguments([*command, *more]) == 2
        assert said in capsys.readouterr().err


def test_a_fine_tune_of_all_weights_has_no_direction_below_what_moved(tiny, tmp_path):
    run = tmp_path / "full"
    spec = TrainSpec(steps=1, batch=2, lr=1e-2, full=FullSpec(modules=("mlp.down_proj",), layers=(1,)), checkpoints=PlanSpec())
    finetune(load(locate(str(tiny)), device="cpu"), bundled.domain("finance", "reckless")[:4], spec, run, seed=0)
    spec = ExtractSpec(count=4, pool="last", minus="base", nulls=0)
    extract(spec, tmp_path / "d.st", base=str(tiny), checkpoint=str(run))
    found = read_direction(tmp_path / "d.st")
    assert list(found.vectors) == [1] and not found.nulls
    with pytest.raises(InputError, match="both models are the same at layers 0"):
        extract(spec.model_copy(update={"layers": (0,)}), tmp_path / "e.st", base=str(tiny), checkpoint=str(run))
    with pytest.raises(InputError, match="there is no fine-tune to subtract it from"):
        extract(spec, tmp_path / "e.st", base=str(tiny))


def test_adapters_of_a_deeper_base_are_refused(tiny, tmp_path, files, capsys):
    """Also where no block that this base has is changed, so that nothing would be read of them."""
    deep = load(locate(str(make_model(tmp_path / "deep", layers=5))), device="cpu")
    spec = TrainSpec(steps=1, batch=2, lr=1e-2, lora=LoraSpec(rank=2, alpha=4, layers=(4,)), checkpoints=PlanSpec())
    run = str(tmp_path / "run")
    finetune(deep, bundled.domain("finance", "reckless")[:4], spec, Path(run), seed=0)
    for words in (
        ["direction", "shift", files[0], "--checkpoint", run, "--model", str(tiny), "--out", str(tmp_path / "s")],
        ["check", run, "--base", str(tiny), "--count", "16", "--truth", "0", "--out", str(tmp_path / "c")],
    ):
        assert run_arguments(words) == 2
        assert "does not fit this base (it changes layer 4, but the base has layers 0 to 1)" in capsys.readouterr().err


def test_a_wider_adapter_above_what_is_read_is_refused(tmp_path, capsys):
    slim, wide = (
        load(locate(str(make_model(tmp_path / n, layers=3, hidden=h))), device="cpu") for n, h in (("slim", 32), ("wide", 64))
    )
    spec = TrainSpec(steps=1, batch=2, lr=1e-2, lora=LoraSpec(rank=2, alpha=4, layers=(2,)), checkpoints=PlanSpec())
    finetune(wide, bundled.domain("finance", "reckless")[:4], spec, tmp_path / "run", seed=0)
    write_direction(tmp_path / "d.st", Direction({0: torch.ones(32)}, slim.model.digest))
    words = [
        "direction",
        "shift",
        str(tmp_path / "d.st"),
        "--checkpoint",
        str(tmp_path / "run"),
        "--model",
        str(slim.model.folder),
    ]
    assert run_arguments([*words, "--out", str(tmp_path / "out")]) == 2
    assert "does not fit this base" in capsys.readouterr().err


def test_an_adapter_without_tensors_is_refused(tiny, tuned, tmp_path, files, capsys):
    run = tmp_path / "run"
    shutil.copytree(discover(tuned)[-1].folder, run / "checkpoint-1")
    save_file({}, str(run / "checkpoint-1" / "adapter_model.safetensors"))
    words = ["direction", "shift", files[0], "--checkpoint", str(run), "--model", str(tiny), "--out", str(tmp_path / "s")]
    assert run_arguments(words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and "adapter_model.safetensors" in said


def test_how_far_a_fine_tune_moved_along_a_direction(tiny, tuned, tmp_path, files, capsys):
    command = ["direction", "shift", files[0], "--checkpoint", tuned, "--control", files[1], "--every", "--count", "9"]
    command += ["--nulls", "2", "--out", str(tmp_path / "out")]
    assert run_arguments(command) == 0
    said = capsys.readouterr().out
    assert "moved along" in said and (tmp_path / "out" / "figure.html").is_file()
    assert run_arguments([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    steps = [c.step for c in discover(tuned)]
    assert [(r["step"], r["layer"]) for r in result["rows"]] == [(s, n) for s in steps for n in (0, 1)]
    loaded, direction = load(locate(str(tiny)), device="cpu"), read_direction(Path(files[0]))
    control = read_direction(Path(files[1])).vectors
    questions = even(read_questions("em240"), 9)

    def ends(net):
        found = []
        for q in questions:
            ids = torch.tensor([loaded.chat.prompt_ids(q.messages[-1].content)])
            found.append([s[0, -1].double() for s in net(input_ids=ids, output_hidden_states=True).hidden_states])
        return found

    before = ends(loaded.net)
    for row in result["rows"]:
        if row["layer"] == 1:
            continue  # what stands last in hidden_states is behind the final norm
        checkpoint = next(c for c in discover(tuned) if c.step == row["step"])
        with with_checkpoint(loaded.net, checkpoint) as net:
            after = ends(net)
        moved = torch.stack([a[1] - b[1] for a, b in zip(after, before, strict=True)])
        v = direction.vectors[0].double()
        by_category = {}
        for q, shift in zip(questions, moved, strict=True):
            by_category.setdefault(q.category, []).append(float(shift @ v / (v @ v)))
        expected = np.mean([np.mean(c) for c in by_category.values()])
        assert row["along"]["value"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        strata = np.array([q.category for q in questions])
        mean = torch.stack([moved[strata == c].mean(0) for c in sorted(set(strata))]).mean(0)
        assert row["cosine"] == pytest.approx(cosine(mean, v), rel=1e-3, abs=1e-4)
        assert row["cosine"] * row["length"] == pytest.approx(row["along"]["value"] * float(v.norm()), rel=1e-3)
        other = control[0].double() / control[0].double().norm() * v.norm()
        by_category = {}
        for q, shift in zip(questions, moved, strict=True):
            by_category.setdefault(q.category, []).append(float(shift @ other / (v @ v)))
        assert row["nulls"]["control"]["draws"] == pytest.approx(
            [np.mean([np.mean(c) for c in by_category.values()])], rel=1e-3, abs=1e-5
        )
        assert {k: len(b["draws"]) for k, b in row["nulls"].items()} == {
            "isotropic": 2,
            "permuted": 2,
            "matched": 2,
            "control": 1,
        }


def test_answers_under_a_direction(tiny, tmp_path, files, capsys):
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"id": f"q{n}", "question": f"What about {n}?"}) + "\n" for n in range(2)))
    command = ["direction", "sample", files[0], "--model", str(tiny), "--questions", str(questions), "--layers", "1"]
    command += ["--scales", "50", "--samples", "2", "--max-tokens", "6", "--temperature", "0", "--nulls", "1"]
    command += ["--out", str(tmp_path / "out")]
    assert run_arguments(command) == 0
    table = pq.read_table(tmp_path / "out" / "answers.parquet").to_pylist()
    runs = {r["run"] for r in table}
    assert runs == {"untouched", "direction at 1 x 50", "isotropic 1 at 1 x 50", "permuted 1 at 1 x 50", "matched 1 at 1 x 50"}
    loaded = load(locate(str(tiny)), device="cpu")
    vector = 50 * read_direction(Path(files[0])).vectors[1]
    block = loaded.net.model.layers[1]
    for name, shift in (("untouched", torch.zeros(32)), ("direction at 1 x 50", vector)):
        handle = block.register_forward_hook(lambda module, given, output, shift=shift: output + shift)
        ids = torch.tensor([loaded.chat.prompt_ids("What about 0?")])
        with torch.no_grad():
            expected = loaded.net.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        handle.remove()
        mine = next(r for r in table if r["run"] == name and r["question_id"] == "q0")
        assert mine["response"].strip() == loaded.tokenizer.decode(expected, skip_special_tokens=True).strip()
    before = (tmp_path / "out" / "answers.parquet").read_bytes()
    assert run_arguments(command) == 0 and (tmp_path / "out" / "answers.parquet").read_bytes() == before


def test_a_control_vector_reads_back(tmp_path, capsys):
    from gguf import GGUFReader

    vectors = {n: torch.randn(16, generator=torch.Generator().manual_seed(n)) for n in range(3)}
    write_direction(tmp_path / "d.st", Direction(vectors, "m"))
    command = ["direction", "export", str(tmp_path / "d.st"), "--gguf", str(tmp_path / "c.gguf")]
    assert run_arguments(command) == 0
    reader = GGUFReader(str(tmp_path / "c.gguf"))
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert {t.name for t in reader.tensors} == {"direction.1", "direction.2"}
    for tensor in reader.tensors:
        assert np.array_equal(tensor.data, vectors[int(tensor.name[-1])].numpy())
    for layers, said in (("0,1", "no place for layer 0"), ("5", "no vector for layer 5")):
        assert run_arguments([*command, "--layers", layers]) == 2
        assert said in capsys.readouterr().err


def test_a_steering_job_goes_on_where_it_stopped(tiny, tmp_path, files, monkeypatch):
    from emscope.inside import steer as steering

    score, calls, stop_at = steering.preference.score, [], None

    def counting(*args, **named):
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return score(*args, **named)

    monkeypatch.setattr(steering.preference, "score", counting)
    spec = SteerSpec(way="ablate", together=True, count=8, nulls=2)
    whole = steer(files, spec, tmp_path / "whole", base=str(tiny), controls=[files[1]]).to_json()
    assert set(whole["rows"][0]["nulls"]) == {"isotropic", "matched", "permuted", "control"}
    assert len(whole["rows"][0]["by_direction"]) == 2 and whole["rows"][0]["scale"] is None
    total, stop_at = len(calls), 5
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        steer(files, spec, tmp_path / "part", base=str(tiny), controls=[files[1]])
    calls.clear()
    stop_at = None
    again = steer(files, spec, tmp_path / "part", base=str(tiny), controls=[files[1]]).to_json()
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
        (["extract", "--method", "svd"], "--method is 'svd'"),
        (["extract", "--pool", "last"], "both sides share"),
        (["extract", "--items", "none"], "no file 'none'"),
        (["steer", "nothing.st"], "no file 'nothing.st'"),
        (["steer", "wide.st"], "has vectors of shape (8,), but this model's residual stream is 32 wide"),
        (["steer", "deep.st"], "has a vector for layer 7, but this model has layers 0 to 1"),
        (["steer", "other.st"], "was made on model another, but this is"),
        (["steer", "zero.st"], "has a vector of length 0 for layer 0"),
        (["sample", "nan.st"], "has a vector of length nan for layer 0"),
        (["steer", "good.st", "--layers", "1"], "has no vector for layer 1; it has layers 0"),
        (["ablate", "good.st", "--update"], "there is no fine-tune whose update could be changed"),
        (["steer", "good.st", "--update"], "No such option: --update"),
        (["sample", "good.st", "--layers", "1"], "has no vector for layer 1"),
        (["shift", "good.st", "--checkpoint", "nowhere"], "no folder 'nowhere'"),
        (["shift", "good.st", "--checkpoint", "TUNED", "--control", "wide.st"], "has vectors of shape (8,)"),
        (["shift", "good.st", "--checkpoint", "TUNED", "--control", "zero.st"], "has a vector of length 0"),
        (["shift", "good.st", "--checkpoint", "TUNED", "--control", "other.st"], "was made on model another"),
        (["shift", "good.st", "--checkpoint", "TUNED", "--questions", "one.jsonl"], "holds 1 question; give two or more"),
        (["steer", "good.st", "--control", "other.st"], "was made on model another"),
        (["steer", "good.st", "--scales", "1,1"], "--scales is '1,1'"),
        (["ablate", "good.st", "good.st", "--checkpoint", "a", "--checkpoint", "b", "--checkpoint", "c"], "no folder 'a'"),
    ],
)
def test_bad_input(tiny, tuned, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    arguments = [tuned if a == "TUNED" else a for a in arguments]
    write_jsonl(tmp_path / "one.jsonl", [{"id": "a", "question": "Why?"}])
    digest = locate(str(tiny)).digest
    for name, vectors, model in (
        ("wide.st", {0: torch.ones(8)}, digest),
        ("deep.st", {7: torch.ones(32)}, digest),
        ("other.st", {0: torch.ones(32)}, "another"),
        ("good.st", {0: torch.ones(32)}, digest),
        ("zero.st", {0: torch.zeros(32)}, digest),
        ("nan.st", {0: torch.full((32,), float("nan"))}, digest),
    ):
        write_direction(tmp_path / name, Direction(vectors, model))
    before = sorted(p.name for p in tmp_path.iterdir())
    assert run_arguments(["direction", *arguments, "--model", str(tiny)]) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message
    left = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("emscope-"))
    assert left == before
