"""Readings in bfloat16 beside float32: the difference against plain transformers and PEFT, its cost, and when it is spoken of."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import configs, with_peft, write_adapter
from emscope.cli.app import run_arguments
from emscope.core.errors import WorldError
from emscope.core.estimate import Estimate
from emscope.core.progress import silent
from emscope.core.versions import versions
from emscope.models.loading.checkpoints import read_checkpoint
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.models.sizing import memory
from emscope.store.study import Study
from emscope.study.measure_spec import MeasureSpec, SampleSpec
from emscope.study.reading import precision
from emscope.study.reading.evidence import Scores
from emscope.study.reading.measuring import Questions, Reading, measure
from emscope.study.reading.precision import Apart, Precision, read_again, read_ends
from emscope.study.reading.sets import EM, PLACEBO, study_sets
from emscope.study.report import read_report

FEW = 8
ASKED = Questions(study_sets(MeasureSpec(count=16, placebo=16, truth=0, neutral=0), None), SampleSpec(questions=0), 0, None)
STEPS = range(1, 12)


@pytest.fixture(scope="module")
def read(tiny, tmp_path_factory):
    """A study in bfloat16 of the base and eleven checkpoints, of which the base and the last are read."""
    root = tmp_path_factory.mktemp("precision")
    checkpoint = read_checkpoint(write_adapter(tiny, root / "adapter", configs()["lora"]), 11)
    loaded = load(locate(str(tiny)), dtype="bfloat16", device="cpu")
    wanted = {EM: None, PLACEBO: None}
    readings = [Reading("base", 0, None, wanted), *(Reading("target", step, checkpoint, wanted) for step in STEPS)]
    with Study(root / "study", {"of": "a test"}, versions()) as study:
        measure(study, loaded, [replace(r, wanted={EM: None}) for r in (readings[0], readings[-1])], ASKED, silent)
    return loaded, readings, root


@pytest.fixture
def job(read, tmp_path):
    """The same with a store of its own."""
    loaded, readings, root = read
    shutil.copytree(root / "study", tmp_path / "study")
    with Study(tmp_path / "study", {"of": "a test"}, versions()) as study:
        yield study, loaded, readings, root / "adapter"


def again(job):
    study, loaded, readings, _ = job
    return read_again(study, loaded, readings, (readings[0], readings[-1]), ASKED, silent)


@torch.inference_mode()
def plain_margins(net, chat, items):
    """Return the margin of each item in nats a token, each answer by a pass of its own."""
    found = []
    for item in items:
        prompt, means = chat.prompt_ids(item.question), []
        for text in item.options:
            answer = chat.answer_ids(text)
            logp = torch.log_softmax(net(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double(), -1)
            means.append(float(np.mean([logp[len(prompt) - 1 + n, token] for n, token in enumerate(answer)])))
        found.append(means[0] - means[1])
    return np.array(found)


def test_differences_are_from_plain_float32_readings(job, tiny, monkeypatch):
    study, loaded, _, adapter = job
    monkeypatch.setattr(precision, "MOST", FEW)
    found = again(job)
    assert (found.dtype, found.items, found.why, found.near) == ("bfloat16", FEW, None, None)
    scores = Scores(study.root, loaded.chat.digest)
    items = [i for i in ASKED.sets.em if scores.has("base in float32", 0, 1.0, EM, [i])]
    assert len(items) == FEW
    from transformers import AutoModelForCausalLM

    wide = {"base": AutoModelForCausalLM.from_pretrained(tiny), "target": with_peft(tiny, adapter)}
    apart = {
        name: scores.margin(name, step, 1.0, EM, items) - plain_margins(wide[name], loaded.chat, items)
        for name, step in (("base", 0), ("target", 11))
    }
    apart["effect"] = apart["base"] - apart["target"]
    strata = np.array([i.category for i in items])
    for one, values in zip(found.apart, apart.values(), strict=True):
        groups = [values[strata == name] for name in sorted(set(strata))]
        assert one.value == pytest.approx(np.mean([g.mean() for g in groups]), abs=1e-5)
        assert one.se > 0 and (len(groups) < FEW or one.se == pytest.approx(values.std(ddof=1) / FEW**0.5, rel=1e-2))
    assert [one.what for one in found.apart] == ["margin of base", "margin of target at step 11", "effect"]
    assert found.apart[0].value != 0


def test_it_costs_no_more_than_its_share_of_the_tokens(job):
    study, loaded, readings, _ = job
    found = again(job)

    def tokens(items):
        return sum(
            len(loaded.chat.prompt_ids(i.question)) + sum(len(loaded.chat.answer_ids(o)) - 1 for o in i.options) for i in items
        )

    scores = Scores(study.root, loaded.chat.digest)
    items = [i for i in ASKED.sets.em if scores.has("target in float32", 11, 1.0, EM, [i])]
    total = len(readings) * (tokens(ASKED.sets.em) + tokens(ASKED.sets.placebo))
    assert found.share == pytest.approx(2 * tokens(items) / total) and 0.03 < found.share <= 0.05
    assert len(items) == found.items


def test_what_was_read_is_not_read_again(job, monkeypatch):
    first = again(job)
    monkeypatch.setattr(precision, "load_net", None)
    assert again(job) == first and first.items > 0


def test_where_it_is_not_done_the_reason_is_given(job, monkeypatch):
    study, loaded, readings, _ = job
    wide = replace(loaded, net=loaded.net.float())
    assert read_again(study, wide, readings, (readings[0], readings[-1]), ASKED, silent) is None
    loaded.net.bfloat16()
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_memory", lambda device="cpu": 1000)
        assert again(job).why.startswith("float32 weights need ") and again(job).items == 0
    with monkeypatch.context() as patch:
        patch.setattr(precision, "SHARE", 0.001)
        assert "fewer than 8 items" in again(job).why

    def broken(*given, **named):
        raise WorldError("no room", "")

    monkeypatch.setattr(precision, "load_net", broken)
    assert again(job).why == "reading in float32 failed: no room"


def test_a_float32_that_says_something_else_is_spoken_of(job, monkeypatch):
    assert not Apart("x", 2.5e-3, 1e-3).large and Apart("x", -4.5e-3, 1e-3).large
    assert not again(job).large
    monkeypatch.setattr(precision, "LEAST", -1.0)
    assert again(job).large


def test_a_bound_within_reach_of_the_threshold_is_near():
    found = Precision("bfloat16", 20, 0.04, None, (Apart("margin of base", 9.0, 9.0), Apart("effect", -0.001, 0.0005)))
    effect = Estimate(0.05, 0.03, 0.07, 0.9, "", 20, 20)
    for delta, near in ((0.0281, True), (0.0279, False), (0.0719, True), (0.0721, False), (0.05, False)):
        assert found.beside(effect, delta).near is near
    assert Precision("bfloat16", 0, 0.0, "why").beside(effect, 0.03).near is None


def test_the_readings_compared_are_those_of_the_last_effect(read):
    _, readings, _ = read
    base, last = readings[0], readings[-1]
    assert read_ends(readings, "target", None) == (base, last)
    control = [replace(r, run="control") for r in readings[1:5]]
    assert read_ends([*readings, *control], "target", "control") == (control[-1], readings[4])
    doubled = [replace(r, scale=2.0) for r in readings[1:]]
    assert read_ends([*readings, *doubled], "target", None, 2.0) == (base, doubled[-1])


def test_a_check_in_bfloat16_says_how_far_it_is_from_float32(read, tiny, tmp_path, capsys, monkeypatch):
    _, _, root = read
    monkeypatch.setattr(precision, "SHARE", 1.0)
    monkeypatch.setattr(precision, "MOST", FEW)
    asked = ["check", str(root / "adapter"), "--base", str(tiny), "--measure", "preference", "--count", "16", "--truth", "0"]
    asked += ["--dtype", "bfloat16", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert run_arguments(asked) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Read in bfloat16. Its difference from float32 on {FEW} items" in said
    found = read_report(tmp_path / "out").precision
    assert found.items == FEW and found.near is not None and f"effect {found.apart[-1].value:+.2g}" in said
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"difference from float32 on {FEW} items" in page
    monkeypatch.setattr(precision, "load_net", None)  # the same folder, and nothing is read
    assert run_arguments([*asked, "--skip-float32"]) == 0
    assert "from float32" not in " ".join(capsys.readouterr().out.split())
