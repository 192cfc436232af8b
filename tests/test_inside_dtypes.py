"""Looks inside a model in bfloat16: near float32's numbers, said in the result, and never mixed up with them on disk."""

from __future__ import annotations

import pytest

from emscope.core.errors import InputError
from emscope.data import bundled
from emscope.inside.diff import diff
from emscope.inside.extract import extract
from emscope.inside.shift import read_shift
from emscope.inside.specs import DiffSpec, ExtractSpec, ShiftSpec, SteerSpec
from emscope.inside.steer import steer
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.train.finetune import finetune
from emscope.train.spec import LoraSpec, PlanSpec, TrainSpec

BF16 = {"dtype": "bfloat16"}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    spec = TrainSpec(steps=3, batch=4, lr=2e-2, checkpoints=PlanSpec(), lora=LoraSpec(rank=4, alpha=8))
    finetune(load(locate(str(tiny)), device="cpu"), bundled.domain("finance", "reckless")[:8], spec, out, seed=0)
    return str(out)


def test_auto_is_what_the_weights_are_stored_in_and_the_result_says_it(tiny, run, tmp_path):
    found = diff(run, DiffSpec(count=2), tmp_path, base=str(tiny)).to_json()
    assert found["definition"]["dtype"] == "float32"


def test_a_diff_in_bfloat16_is_near_float32_s_and_keeps_states_of_its_own(tiny, run, tmp_path):
    """The update itself is read from the adapter, so that its spectrum does not know of the dtype."""
    exact, rough = (diff(run, DiffSpec(count=4, **d), tmp_path, base=str(tiny)).to_json() for d in ({"dtype": "float32"}, BF16))
    assert (exact["definition"]["dtype"], rough["definition"]["dtype"]) == ("float32", "bfloat16")
    for one, other in zip(exact["layers"], rough["layers"], strict=True):
        assert other["kl"]["value"] == pytest.approx(one["kl"]["value"], rel=0.1) and other["kl"] != one["kl"]
    assert rough["update"] == exact["update"]
    assert len(list((tmp_path / "arrays").iterdir())) == 2
    again = diff(run, DiffSpec(count=4, dtype="float32"), tmp_path, base=str(tiny)).to_json()
    assert again["layers"] == exact["layers"]


def test_a_direction_and_what_moves_along_it(tiny, run, tmp_path):
    made, moved = [], []
    for name, dtype in (("exact", {"dtype": "float32"}), ("rough", BF16)):
        path = tmp_path / f"{name}.safetensors"
        extract(ExtractSpec(half="A", count=16, nulls=2, layers=(1,), **dtype), path, base=str(tiny))
        made.append(path)
        shift = read_shift(str(path), [run], ShiftSpec(count=12, nulls=2, **dtype), tmp_path / "shift", base=str(tiny))
        moved.append(shift.to_json()["rows"][0]["along"]["value"])
    from emscope.models.hooks.directions import read_direction

    one, other = (read_direction(p).vectors[1].double() for p in made)
    assert float(one @ other / one.norm() / other.norm()) > 0.99
    assert moved[0] != moved[1] and moved[1] == pytest.approx(moved[0], rel=0.1, abs=0.02)


def test_steering_in_another_dtype_is_a_study_of_its_own(tiny, tmp_path):
    path = tmp_path / "d.safetensors"
    extract(ExtractSpec(half="A", count=8, nulls=2, layers=(1,)), path, base=str(tiny))
    spec = SteerSpec(scales=(30.0,), half="B", count=4, nulls=2)
    exact = steer([str(path)], spec, tmp_path / "s", base=str(tiny)).to_json()
    with pytest.raises(InputError, match="dtype"):
        steer([str(path)], spec.model_copy(update=BF16), tmp_path / "s", base=str(tiny))
    rough = steer([str(path)], spec.model_copy(update=BF16), tmp_path / "b", base=str(tiny)).to_json()
    assert rough["definition"]["dtype"] == "bfloat16"
    one, other = (f["rows"][0]["effect"]["value"] for f in (exact, rough))
    assert one != other and other == pytest.approx(one, rel=0.1, abs=0.02)
