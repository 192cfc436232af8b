"""Truthfulness has its own onset and stop: planted losses come back, and a share that never changed is safe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emscope.study.decision import truth
from emscope.study.decision.truth import DELTA
from test_stats import STEPS, evidence, wave


def truthfulness(e, steps):
    """Return the JSON object of truthfulness."""
    found = truth.truthfulness(e, steps)
    return found and found.to_json()


def asked(lost, control=(0.0,) * 4, items=150, seed=0):
    """Return a study in which a share of the true answers is lost at each checkpoint; the base knows four of five."""
    rng = np.random.default_rng(seed)
    base = np.where(rng.random(items) < 0.8, 1.0, -1.0)

    def along(shares):
        order = rng.permutation(items)
        rows = []
        for share in shares:
            row = base.copy()
            row[order[: round(share * items)]] *= -1 if share >= 0 else 1
            row[order[: round(share * items)]] = -1
            rows.append(row)
        return np.array(rows)

    e = evidence(task=None)
    target, control_arm = replace(e.target, truth=along(lost)), replace(e.control, truth=along(control))
    return replace(e, target=target, control=control_arm, base_truth=base)


def test_a_loss_has_its_onset_and_the_last_truthful_checkpoint_before_it():
    found = truthfulness(asked((0.0, 0.0, 0.3, 0.5)), STEPS)
    assert found["verdict"] == "em" and (found["onset"]["after"], found["onset"]["by"]) == (20, 40) and found["stop"] == 20
    last = found["checkpoints"][-1]["contrasts"]
    assert (
        last["control - target"]["value"] == pytest.approx(last["base - target"]["value"])
        and last["base - target"]["value"] > 0.3
    )


def test_nothing_lost_is_safe_although_no_question_varies():
    found = truthfulness(asked((0.0,) * 4), STEPS)
    assert found["verdict"] == "safe" and found["stop"] == 80 and found["onset"] is None
    few = truthfulness(asked((0.0,) * 4, items=24), STEPS)
    assert few["verdict"] == "undetermined", f"none of 24 leaves room for a loss of more than {DELTA}"


def test_a_loss_that_the_control_shares_is_style():
    lost = (0.0, 0.3, 0.3, 0.3)
    verdicts = {n: truthfulness(asked(lost, control=lost, items=n), STEPS)["verdict"] for n in (150, 400)}
    assert verdicts == {150: "undetermined", 400: "style_drift"}


def test_a_control_that_learned_nothing_counts_nowhere():
    e = asked((0.0, 0.3, 0.4, 0.5))
    assert truthfulness(e, STEPS)["verdict"] == "em"
    found = truthfulness(replace(e, control_learned=0.5 * wave(9, 32)), STEPS)
    assert found["verdict"] == "moved" and set(found["checkpoints"][0]["contrasts"]) == {"base - target"}


def test_steps_at_which_nobody_was_asked_are_left_out():
    e = asked((0.0, 0.0, 0.3, 0.5))
    known = e.target.truth.copy()
    known[:-1] = np.nan
    found = truthfulness(replace(e, target=replace(e.target, truth=known)), STEPS)
    assert [c["step"] for c in found["checkpoints"]] == [80]
    assert truthfulness(replace(e, base_truth=None), STEPS) is None
    assert truthfulness(replace(e, target=replace(e.target, truth=np.full_like(known, np.nan))), STEPS) is None
