"""Results of the jobs that look inside a model: frozen, written as documented, and flat rows, frames, figures and pages of them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from emscope.core.estimate import Estimate, undefined
from emscope.inside import direction_results as directions
from emscope.inside import prompt_results as prompts
from emscope.inside import results
from emscope.inside.data_risk import RiskSpec
from emscope.inside.diff import DiffSpec
from emscope.inside.probe import CORRECTION, ProbeSpec
from emscope.inside.shift import ShiftSpec
from emscope.inside.solutions import SolutionsSpec
from emscope.inside.steer import SteerSpec
from emscope.inside.subspaces import SubspaceSpec
from emscope.models.hooks.directions import FORMAT
from emscope.represent import compared

HOSTILE = "<script>alert('x')</script>"
VERSIONS = {"emscope": "0"}


def e(value):
    return Estimate(value, value - 0.5, value + 0.5, 0.95, "mean", 8, 4)


def bounds(name, value):
    """The three columns that an estimate of `e` becomes."""
    return {name: value, f"{name}_low": value - 0.5, f"{name}_high": value + 0.5}


def trajectories():
    points = (results.Point(HOSTILE, 2, 1.5, (1.0, -0.25), {HOSTILE: 1.0, "b": 0.5}), results.Point("b", 4, 2.0, (0.5, 2.0), {HOSTILE: 0.5, "b": 1.0}))  # fmt: skip
    return results.Trajectories(results.Axes("principal", "d1"), (0.75, 0.25), points, VERSIONS)


def diff():
    layers = (results.LayerDivergence(0, e(1.0), e(0.75)), results.LayerDivergence(1, e(2.0), e(0.5)))
    scalars = results.Scalars(0.75, 0.25, 0.5, (1.0,), (results.AdapterScalar(HOSTILE, 1.0, 0.5, 2.0, None),))
    return results.Diff(
        definition=results.DiffDefinition(DiffSpec(count=8), "KL"),
        run=HOSTILE,
        step=6,
        model="d1",
        items=8,
        layers=layers,
        positions=(results.PositionDivergence(0, e(1.0)),),
        tokens=(results.TokenDivergence(HOSTILE, 0.5, 3, 1.0),),
        places=(results.PlaceDivergence("q0/0", 3, HOSTILE, "a", "b", "c", 1.0, -1.0),),
        update=(results.ModuleUpdate("block.0.up", 0, 1.0, 2.0, (1.0, 0.5)),),
        scalars=scalars,
        versions=VERSIONS,
    )


def subspaces():
    at = [
        prompts.SubspaceAtK(k, e(0.5), e(0.75), prompts.RandomOverlap((0.25, 0.75), 0.5), e(0.25), e(3.0), e(1.0), prompts.OverlapCorrelations(e(0.5), e(-0.25)), by)
        for k, by in ((1, None), (2, (0.25, 0.75)))
    ]  # fmt: skip
    changed = prompts.SubspaceRow(HOSTILE, 6, 1, 2.0, 0.5, e(1.0), e(2.0), e(0.25), tuple(at), (0.5, 1.5))
    unchanged = prompts.SubspaceRow("b", 6, 0, 0.0)
    definition = prompts.SubspacesDefinition(SubspaceSpec(ks=(1, 2)), "after - before", "d1")
    angles = (prompts.Angles((HOSTILE, "b"), 1, 2, 1.0, 0.5, 0.25),)
    return prompts.Subspaces(definition, prompts.PromptCounts(8, 2, 2), (unchanged, changed), angles, ("q0", "q1"), VERSIONS)


def probes():
    over = {"text": prompts.Over(e(0.25), 0.5, 0.75)}
    probe = prompts.Probe(HOSTILE, "d1", 1, "pca", 0, "ridge", prompts.Predicted(e(0.5), 0.125, None, None), prompts.Corrected(0.25, None, over))  # fmt: skip
    text = prompts.Baseline("text", prompts.Predicted(e(0.25), 0.5, None, 0.125))
    spec = ProbeSpec(questions="em240", score=None)
    definition = prompts.ProbesDefinition(spec, "aligned", "s.jsonl", "squares", CORRECTION)
    return prompts.Probes(definition, 4, 8, (probe,), (text,), VERSIONS)


def solutions():
    runs = compared.ByRun({HOSTILE: 1.0}, {"n": None})
    both = compared.BothSides(e(1.0), e(2.0))
    gone = undefined("it is missing for some runs", level=0.95, method="Welch")
    return results.Solutions(
        definition=results.SolutionsDefinition(SolutionsSpec(), "per cent", 2.0),
        solutions=(results.SolutionRun("general", HOSTILE, 6, 2.0), results.SolutionRun("narrow", "n", 6, 3.0)),
        base_loss=e(3.0),
        efficiency=(compared.Efficiency(2.0, both, e(1.0), both, runs, e(0.5)),),
        norm_for_half=compared.NormForHalf(2.0, runs, gone),
        stability=(compared.Stability(0.5, e(10.0), e(20.0), runs, gone),),
        significance=(
            compared.Significance(
                2.0, compared.BothSidesAndRandom(e(0.1), e(0.2), e(0.3), e(0.4)), e(-0.1), e(0.5), runs, e(0.25)
            ),
        ),
        versions=VERSIONS,
    )


def band():
    return directions.Band((-1.0, 2.0), -1.0, 2.0, 0.5, 0.25)


def direction():
    made = directions.Made("mean", "answer", directions.SidesSource(items=HOSTILE, half="A", digest="d2"), None, 12, 10)
    layers = (
        directions.DirectionLayer(0, 2.0, 8.0, directions.HalvesCosine(0.5, 0.25, 0.75, 20)),
        directions.DirectionLayer(1, 3.0, 9.0, None),
    )
    return directions.Direction(
        "d.safetensors", "d1", directions.DirectionDefinition(made, HOSTILE, "float32", "left out"), layers
    )


def steering():
    return directions.Steering(
        definition=directions.SteeringDefinition(SteerSpec(count=8), HOSTILE),
        directions=(directions.TriedDirection("d.safetensors", "base", "d2"),),
        margin=e(1.0),
        truth=None,
        doses=(
            directions.Dose((0, 1), -2.0, e(0.25), (0.25,), e(-1.0), e(2.0), None, {"isotropic": band()}),
            directions.Dose((0, 1), 2.0, e(0.5), (0.5,), e(-2.0), e(3.0), None, {"isotropic": band()}),
        ),
        versions=VERSIONS,
    )


def cosines():
    matrix = ((1.0, 0.5, 0.25), (0.5, 1.0, -0.5), (0.25, -0.5, 1.0))
    between = {HOSTILE: directions.BetweenLayers((0, 1), ((1.0, 0.5), (0.5, 1.0)))}
    layers = tuple(directions.LayerCosines(n, (1.0, 2.0, 3.0), matrix) for n in (0, 1))
    return directions.Cosines((HOSTILE, "b", "c"), 16, 0.25, layers, between)


def shift():
    moved = (
        directions.Moved(HOSTILE, 2, 1, e(0.5), 2.0, 0.25, {"matched": band()}),
        directions.Moved(HOSTILE, 4, 1, e(1.5), 0.0, None, {"matched": band()}),
    )
    return directions.Shift(directions.ShiftDefinition(ShiftSpec(), "after - before", "d1"), HOSTILE, 8, moved, VERSIONS)


def data_risk():
    samples = (
        directions.WeighedSample("s1", 2.0, HOSTILE, "b", "c"),
        directions.WeighedSample("s0", -1.0, "a", HOSTILE, None),
    )
    return directions.DataRisk(directions.RiskDefinition(RiskSpec(count=8), "t.jsonl", 1, "d2"), e(0.5), 0.5, samples)


EVERY = {
    f.__name__: f for f in (trajectories, diff, subspaces, probes, solutions, direction, steering, cosines, shift, data_risk)
}
every = pytest.mark.parametrize("made", [pytest.param(f(), id=name) for name, f in EVERY.items()])
NULLS = {"low": -1.0, "high": 2.0, "p": 0.25}
ROWS = {
    "trajectories": [
        {"run": HOSTILE, "step": 2, "norm": 1.5, "axis_1": 1.0, "axis_2": -0.25, f"cosine_with_end_of_{HOSTILE}": 1.0, "cosine_with_end_of_b": 0.5},
        {"run": "b", "step": 4, "norm": 2.0, "axis_1": 0.5, "axis_2": 2.0, f"cosine_with_end_of_{HOSTILE}": 0.5, "cosine_with_end_of_b": 1.0},
    ],
    "diff": [
        {"layer": 0} | bounds("kl", 1.0) | bounds("same_top", 0.75),
        {"layer": 1} | bounds("kl", 2.0) | bounds("same_top", 0.5),
    ],
    "subspaces": [
        {"run": "b", "step": 6, "layer": 0, "shift": 0.0, "shift_share": None, "k": None},
        *(
            {"run": HOSTILE, "step": 6, "layer": 1, "shift": 2.0, "shift_share": 0.5, "k": k}
            | bounds("overlap", 0.5) | bounds("overlap_held", 0.75) | bounds("explained", 0.25) | bounds("mahalanobis", 3.0)
            | bounds("prompt_overlap", 1.0) | {"overlap_random": 0.5, "overlap_random_expected": 0.5}
            | bounds("r_overlap", 0.5) | bounds("r_prompt_overlap", -0.25)
            | bounds("similarity", 1.0) | bounds("similarity_held", 2.0) | bounds("r_cosine", 0.25)
            for k in (1, 2)
        ),
    ],
    "probes": [
        {"baseline": None, "model": HOSTILE, "model_digest": "d1", "layer": 1, "basis": "pca", "seed": 0, "estimator": "ridge"}
        | bounds("r2", 0.5) | {"p_mean": 0.125, "p_permutation": None, "r2_categories_left_out": None}
        | {"p_mean_adjusted": 0.25, "p_permutation_adjusted": None}
        | bounds("r2_over_text", 0.25) | {"p_over_text": 0.5, "p_over_text_adjusted": 0.75},
        {"baseline": "text"} | bounds("r2", 0.25) | {"p_mean": 0.5, "p_permutation": None, "r2_categories_left_out": 0.125},
    ],
    "solutions": [
        {"what": what, "at": at, "side": side} | (bounds("value", value) if value is not None else dict.fromkeys(bounds("value", 0.0)))
        for what, at, side, value in [
            ("loss", 2.0, "general", 1.0), ("loss", 2.0, "narrow", 2.0), ("loss", 2.0, "narrow - general", 1.0),
            ("loss", 2.0, "narrow - general, over runs", 0.5),
            ("rise of the loss", 0.5, "general", 10.0), ("rise of the loss", 0.5, "narrow", 20.0),
            ("rise of the loss", 0.5, "narrow - general, over runs", None),
            ("divergence", 2.0, "general", 0.1), ("divergence", 2.0, "narrow", 0.2), ("divergence", 2.0, "random general", 0.3),
            ("divergence", 2.0, "random narrow", 0.4), ("divergence", 2.0, "general - narrow", -0.1),
            ("divergence", 2.0, "general / narrow", 0.5), ("divergence", 2.0, "general - narrow, over runs", 0.25),
        ]
    ],
    "direction": [
        {"layer": 0, "norm": 2.0, "residual_norm": 8.0, "halves": 0.5, "halves_low": 0.25, "halves_high": 0.75},
        {"layer": 1, "norm": 3.0, "residual_norm": 9.0, "halves": None, "halves_low": None, "halves_high": None},
    ],
    "steering": [
        {"layers": "0,1", "scale": scale} | bounds("effect", effect) | bounds("neutral", neutral) | bounds("neutral_kl", kl)
        | {"truth": None} | {f"isotropic_{k}": v for k, v in NULLS.items()}
        for scale, effect, neutral, kl in ((-2.0, 0.25, -1.0, 2.0), (2.0, 0.5, -2.0, 3.0))
    ],
    "cosines": [
        {"layer": layer, "first": a, "second": b, "cosine": cosine}
        for layer in (0, 1)
        for a, b, cosine in ((HOSTILE, "b", 0.5), (HOSTILE, "c", 0.25), ("b", "c", -0.5))
    ],
    "shift": [
        {"run": HOSTILE, "step": step, "layer": 1} | bounds("along", along) | {"length": length, "cosine": cosine}
        | {f"matched_{k}": v for k, v in NULLS.items()}
        for step, along, length, cosine in ((2, 0.5, 2.0, 0.25), (4, 1.5, 0.0, None))
    ],
    "data_risk": [
        {"id": "s1", "projection": 2.0, "question": HOSTILE, "answer": "b", "own": "c"},
        {"id": "s0", "projection": -1.0, "question": "a", "answer": HOSTILE, "own": None},
    ],
}  # fmt: skip


def parts(value):
    """Yield every dataclass in a result."""
    if dataclasses.is_dataclass(value):
        yield value
        for f in dataclasses.fields(value):
            yield from parts(getattr(value, f.name))
    elif isinstance(value, tuple):
        for one in value:
            yield from parts(one)
    elif isinstance(value, dict):
        yield from parts(tuple(value.values()))


@every
def test_every_part_is_frozen_and_has_slots(made):
    for part in parts(made):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)
        assert not hasattr(part, "__dict__")


@pytest.mark.parametrize("name", EVERY)
def test_rows_are_flat_and_as_by_hand(name):
    rows = EVERY[name]().rows()
    assert rows == ROWS[name]
    assert [sorted(row) for row in rows] == [sorted(row) for row in ROWS[name]]


@every
def test_frames(made):
    frame = made.to_frame()
    assert len(frame) == len(made.rows())
    assert set(frame.columns) == {name for row in made.rows() for name in row}
    for n, row in enumerate(made.rows()):
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        assert {k: frame[k][n] for k in numbers} == numbers


@every
def test_a_notebook_shows_no_stranger_s_markup(made):
    shown = made._repr_html_()
    assert "<script" not in shown and shown.count("<tr>") == len(made.rows()) + 1
    if HOSTILE in str(made.rows()) + str(made.sentences()):
        assert "&lt;script&gt;" in shown


@every
def test_sentences_and_figures(made):
    figures = made.figures()
    assert bool(figures) == bool(made.drawn_by) and made.sentences()
    assert all(type(f).__name__ == "Figure" and f.data for f in figures.values())
    assert json.loads(json.dumps(made.to_json(), allow_nan=False)) == made.to_json()


def test_files(tmp_path):
    folder = steering().save(tmp_path / "out")
    assert {p.name for p in folder.iterdir()} == {"result.json", "layer-0-1.html"}
    assert json.loads((folder / "result.json").read_text()) == steering().to_json()


def test_names_of_figures():
    found = {name: list(f().figures()) for name, f in EVERY.items()}
    assert found == {
        "trajectories": ["ways", "turns"],
        "diff": ["layers", "positions", "tokens", "update"],
        "subspaces": ["ks", "prompts"],
        "probes": ["probes"],
        "solutions": ["efficiency", "stability", "significance"],
        "direction": [],
        "steering": ["layer-0-1"],
        "cosines": ["cosines", "between-layers-1"],
        "shift": ["steps-layer-1"],
        "data_risk": [],
    }


def test_json_of_a_direction():
    assert list(direction().to_json().items()) == [
        ("schema", FORMAT),
        ("direction", "d.safetensors"),
        ("model", "d1"),
        (
            "definition",
            {
                "method": "mean",
                "pool": "answer",
                "from": {"items": HOSTILE, "half": "A", "digest": "d2"},
                "checkpoint": None,
                "with": 12,
                "without": 10,
                "system": HOSTILE,
                "dtype": "float32",
                "token_0": "left out",
            },
        ),
        (
            "layers",
            [
                {
                    "layer": 0,
                    "norm": 2.0,
                    "residual_norm": 8.0,
                    "halves": {"mean": 0.5, "low": 0.25, "high": 0.75, "splits": 20},
                },
                {"layer": 1, "norm": 3.0, "residual_norm": 9.0, "halves": None},
            ],
        ),
    ]


def test_definitions_are_the_settings_and_what_was_found():
    spec = RiskSpec(count=8)
    found = data_risk().to_json()["definition"]
    assert found == spec.model_dump(mode="json") | {"layer": 1, "data": "t.jsonl", "direction": "d2"}
    assert list(found) == [*spec.model_dump(), "data", "direction"]
    assert data_risk().definition.settings.layer is None and data_risk().definition.layer == 1
    assert probes().to_json()["definition"]["score"] == "aligned"


def test_a_probe_is_one_flat_object():
    found = probes().to_json()
    over = {"text": {"r2_difference": e(0.25).to_json(), "p": 0.5, "p_adjusted": 0.75}}
    assert list(found["rows"][0].items()) == [
        ("model", HOSTILE),
        ("model_digest", "d1"),
        ("layer", 1),
        ("basis", "pca"),
        ("seed", 0),
        ("estimator", "ridge"),
        ("r2", e(0.5).to_json()),
        ("p_mean", 0.125),
        ("p_permutation", None),
        ("r2_categories_left_out", None),
        ("p_mean_adjusted", 0.25),
        ("p_permutation_adjusted", None),
        ("over", over),
    ]
    assert list(found["baselines"][0]) == ["name", "r2", "p_mean", "p_permutation", "r2_categories_left_out"]
    assert list(found) == ["schema", "definition", "questions", "prompts", "rows", "baselines", "versions"]


def test_json_of_solutions_has_the_names_of_the_differences():
    found = solutions().to_json()
    assert list(found["efficiency"][0]) == [
        "norm", "loss", "narrow - general", "gain_per_squared_norm", "by_run", "narrow - general, over runs"
    ]  # fmt: skip
    assert list(found["stability"][0]) == ["amount", "general", "narrow", "by_run", "narrow - general, over runs"]
    assert list(found["significance"][0]) == [
        "norm", "kl", "general - narrow", "general / narrow", "by_run", "general - narrow, over runs"
    ]  # fmt: skip
    assert list(found["significance"][0]["kl"]) == ["general", "narrow", "random general", "random narrow"]


def test_an_unchanged_layer_says_only_that():
    unchanged, changed = subspaces().to_json()["rows"]
    assert unchanged == {"run": "b", "step": 6, "layer": 0, "shift": 0.0, "ks": []}
    assert list(changed)[3:] == ["shift", "shift_share", "similarity", "similarity_held", "r_cosine", "ks", "by_question"]
    assert [at["by_question"] for at in changed["ks"]] == [None, [0.25, 0.75]]


def test_trajectories_load_little_until_they_are_asked_for():
    code = "import sys, emscope.inside.trajectories as t; print(sum(m.startswith('emscope') for m in sys.modules), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(found[0]) < 25 and found[1] == "False"
