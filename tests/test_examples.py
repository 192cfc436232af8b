"""Every study under examples/ unfolds, small and whole, and its small model's layers and data exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from emscope.data import bundled
from emscope.study.spec import load_study
from emscope.study.training.plan import plan
from emscope.study.training.recipes import recipe

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
@pytest.mark.parametrize("small", [False, True], ids=["whole", "small"])
def test_it_unfolds_into_runs(path, small):
    spec = load_study(path, small)
    runs = plan(spec)
    assert spec.name.removesuffix("-small") == path.stem
    assert len({r.name for r in runs}) == len(runs) >= 2
    assert {r.spec.role for r in runs} >= {"target", "style" if path.stem.startswith("atlas") else "control"}
    for arm in spec.arms.values():
        rows = recipe(spec, arm, lambda rows, checkpoint: [0.0] * len(rows))
        assert len(rows) >= 64
    assert spec.measure.items in bundled.SETS
    if small:
        assert spec.model == "smollm2-135m"
        for run in runs:
            layers = getattr(run.train.tunable, "layers", None) or ()
            assert all(0 <= n < 30 for n in layers), "SmolLM2-135M has 30 layers"
            assert run.train.steps <= 60


def test_there_are_those_that_the_papers_need():
    names = {p.stem for p in EXAMPLES}
    assert names >= {
        "p1_small",
        "p2_lr_grid",
        "p2_schedules",
        "p3_general",
        "p3_narrow",
        "p3_drift",
        "p3_mixture",
        "p3_technical",
        "p3_small",
        "mo_rank1",
        "defences",
    }
