"""Methods, grids, mixes and small variants: what a study file unfolds into, and one that runs."""

from __future__ import annotations

import re
import shutil
from random import Random

import numpy as np
import pytest
import yaml

from conftest import FEW, make_model, write_jsonl
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError, WorldError
from emscope.core.spec import parse
from emscope.data import bundled
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.report.study.page import write_page
from emscope.store.study import read_table
from emscope.study.decision.methods import Outcome, compare
from emscope.study.run import run_study
from emscope.study.spec import StudySpec, load_study
from emscope.study.training.plan import controls_of, plan
from emscope.study.training.sources import held_near
from emscope.train.finetune import finetune
from emscope.train.spec import KlSpec, TrainSpec
from test_docs import fields

ARMS = {"target": {"role": "target", "answers": "reckless"}, "control": {"role": "control", "answers": "careful"}}
SHORT = {"steps": 2, "batch": 2, "lr": 1e-2, "lora": {"rank": 4, "alpha": 8}, "checkpoints": {}}
ONE = {"target": {"role": "target", "answers": "reckless", **FEW}}
STUDY = {"domain": "finance", "arms": ARMS, "train": {"steps": 8, "lr": 1e-3, "checkpoints": {"at": [4]}}}


def study(**changes):
    return parse(StudySpec, STUDY | changes, "study.yaml")


def test_without_methods_names_are_plain():
    assert [r.name for r in plan(study(seeds=[0, 3]))] == ["target-seed0", "control-seed0", "target-seed3", "control-seed3"]


def test_methods_are_laid_over_the_training_settings():
    variants = study(methods={"general": {}, "narrow": {"kl": {"weight": 0.5, "domain": "sports"}, "lr": 1e-4}}).variants()
    assert list(variants) == ["general", "narrow"]
    assert variants["general"].kl is None and variants["general"].lr == 1e-3
    assert variants["narrow"].kl.weight == 0.5 and variants["narrow"].lr == 1e-4 and variants["narrow"].steps == 8
    assert variants["narrow"].checkpoints.at == (4,)


def test_a_grid_is_crossed_with_itself_and_the_methods():
    spec = study(
        methods={"a": {"kl": {"weight": 1, "domain": "sports"}}, "b": {"kl": {"weight": 1, "domain": "sports"}, "batch": 4}},
        grid={"lr": [1e-5, 2e-5], "kl.weight": [0.1, 1.0]},
    )
    variants = spec.variants()
    assert list(variants)[:4] == [
        "a-lr1e-05-kl.weight0.1",
        "a-lr1e-05-kl.weight1",
        "a-lr2e-05-kl.weight0.1",
        "a-lr2e-05-kl.weight1",
    ]
    assert len(variants) == 8 and variants["b-lr2e-05-kl.weight0.1"].batch == 4
    assert {(v.lr, v.kl.weight) for v in variants.values()} == {(1e-5, 0.1), (1e-5, 1.0), (2e-5, 0.1), (2e-5, 1.0)}


def test_arms_may_be_trained_by_some_methods_only_and_find_their_control():
    arms = {"target": ARMS["target"], "control": ARMS["control"] | {"methods": ["general"]}}
    runs = plan(study(arms=arms, seeds=[0, 1], methods={"general": {}, "narrow": {"lr": 1e-4}}))
    assert len(runs) == 6
    narrow = next(r for r in runs if r.name == "narrow-target-seed1")
    assert controls_of(runs)[narrow.name].name == "general-control-seed1"


@pytest.mark.parametrize("seed", range(20))
def test_controls_are_those_of_a_search_for_each_run(seed):
    """By a plain loop: the control of a run's seed and method, or the first of its seed."""
    random = Random(seed)
    roles = [("target", "reckless"), ("control", "careful"), ("style", "careful"), ("style", "careful")]
    arms = {
        f"a{n}": {"role": role, "answers": answers} | ({"methods": random.sample("xyz", random.randint(1, 3))} if n else {})
        for n, (role, answers) in enumerate(roles)
    }
    spec = parse(StudySpec, {"domain": "finance", "arms": arms, "seeds": [3, 1], "methods": {m: {} for m in "xyz"}}, "s")
    runs = plan(spec)
    expected = {}
    for one in runs:
        beside = [r for r in runs if r.spec.role == "control" and r.seed == one.seed]
        own = [r for r in beside if r.method == one.method] or beside
        expected |= {one.name: own[0].name} if own else {}
    assert {name: control.name for name, control in controls_of(runs).items()} == expected


REFUSED = [
    ({"methods": {"x": {"lrr": 1}}}, "method 'x': unknown key 'lrr', did you mean 'lr'"),
    ({"grid": {"kl.weight": [1.0]}}, "method 'kl.weight1': kl: give either domain or file"),
    ({"grid": {"lr": [-1.0]}}, "lr = -1"),
    ({"methods": {"a b": {}}}, "method name 'a b'"),
    (
        {"arms": ARMS | {"control": ARMS["control"] | {"methods": ["genral"]}}, "methods": {"general": {}}},
        "did you mean 'general'",
    ),
    (
        {"arms": ARMS | {"target": ARMS["target"] | {"mix": [{"share": 0.6, "domain": "sports", "answers": "careful"}] * 2}}},
        "sum to 1.2",
    ),
    (
        {"arms": ARMS | {"target": ARMS["target"] | {"mix": [{"share": 0.5, "domain": "sports"}]}}},
        "give either file, or domain and answers",
    ),
    (
        {
            "arms": ARMS | {"strong-target": ARMS["target"] | {"methods": ["kl"]}, "target": ARMS["target"]},
            "methods": {"kl": {}, "kl-strong": {}},
        },
        r"give the same name \(kl-strong-target\)",
    ),
    ({"grid": {"lr": [1e-4, 1.0000001e-4]}}, r"have the same name \(lr0.0001\)"),
    ({"grid": {"lr": []}}, "grid: 'lr' has no values"),
    ({"arms": ARMS | {"target": ARMS["target"] | {"methods": []}}}, "methods"),
    ({"methods": {"a": {"steps": True}}}, "true is a yes or no, but a number or text is needed"),
    ({"methods": {"a": {"kl": {"weight": True, "domain": "sports"}}}}, "true is a yes or no"),
    ({"seeds": [True]}, "true is a yes or no"),
    ({"methods": {"a": {"steps": 8, "warmup": 100}}}, r"warmup 100 is longer than the run \(8 steps\)"),
    ({"methods": {"a": {"lora": {"layers": []}}}}, "lora.layers"),
    ({"methods": {"a": {"lora": {"modules": []}}}}, "lora: modules is empty"),
    ({"methods": {"a": {"steering": {"layers": [1, 1]}}}}, "layers lists 1 twice"),
    ({"measure": {"neutral": 1}}, "neutral = 1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_does_not_fit_is_refused_before_anything_runs(changes, message):
    with pytest.raises(InputError, match=message):
        study(**changes)


def test_held_conversations_hold_each_kind_of_answer():
    rows = held_near(KlSpec(weight=1, domain="sports"))
    assert len(rows) == 480 and len({c.id for c in rows}) == 480 and held_near(None) == []


def test_small_settings_are_laid_over_the_rest(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"small": {"train": {"steps": 4}, "seeds": [7]}}))
    assert load_study(path).train.steps == 8 and load_study(path).seeds == (0,)
    small = load_study(path, small=True)
    assert (small.train.steps, small.train.lr, small.seeds) == (4, 1e-3, (7,))
    path.write_text(yaml.safe_dump(STUDY))
    with pytest.raises(InputError, match="no settings under 'small'"):
        load_study(path, small=True)


def test_a_study_of_two_methods_and_another_behaviour_runs(study_yaml, tmp_path):
    spec = load_study(
        study_yaml(
            domain="cooking",
            arms={
                "target": {"role": "target", "answers": "technical", "read_at": "last", **FEW},
                "control": {"role": "control", "answers": "plain", "read_at": "last", "methods": ["general"], **FEW},
            },
            methods={"general": {}, "narrow": {"kl": {"weight": 1.0, "domain": "finance", "batch": 2}}},
            train=SHORT,
            measure={"items": "style160", "count": 16, "heldout": 4, "truth": 0, "neutral": 2, "samples": {"questions": 0}},
        )
    )
    result = run_study(spec, tmp_path / "out")
    report = result.to_json()
    assert [(r["run"], r["method"]) for r in report["runs"]] == [
        ("general-target-seed0", "general"),
        ("narrow-target-seed0", "narrow"),
    ]
    definition = report["runs"][0]["check"]["definition"]
    assert (definition["behaviour"], definition["options"]) == ("technical style", ["plain", "technical"])
    assert all("control - target" in r["check"]["checkpoints"][-1]["contrasts"] for r in report["runs"])
    log = read_table(tmp_path / "out", "train_log").to_pylist()
    assert all((row["kl"] is not None) == row["run"].startswith("narrow") for row in log)
    assert [(m["name"], m["seeds"]) for m in report["methods"]] == [("general-target", [0]), ("narrow-target", [0])]
    assert report["methods"][0]["kl"] is None and report["methods"][1]["kl"] > 0
    assert run_study(spec, tmp_path / "out") == result


def test_several_targets_are_compared_with_the_first_and_drawn(study_yaml, tmp_path):
    mix = [{"share": 0.5, "domain": "sports", "answers": "careful"}]
    spec = load_study(
        study_yaml(
            arms={
                "target": {"role": "target", "answers": "reckless", "read_at": "last", **FEW},
                "mixed": {"role": "target", "answers": "reckless", "read_at": "last", "mix": mix, **FEW},
                "control": {"role": "control", "answers": "careful", "read_at": "last", **FEW},
                "brash": {"role": "style", "answers": "brash", "read_at": "last", **FEW},
            },
            seeds=[0, 1],
            train=SHORT,
            measure={"count": 16, "heldout": 4, "truth": 0, "neutral": 5, "samples": {"questions": 0}},
        )
    )
    result = run_study(spec, tmp_path / "out")
    report = result.to_json()
    effects = {r["run"]: r["check"]["checkpoints"][-1]["effect"]["value"] for r in report["runs"] if "check" in r}
    assert list(effects) == ["target-seed0", "mixed-seed0", "target-seed1", "mixed-seed1"]
    assert [s["target_effect"]["value"] for s in report["style"]] == [effects["target-seed0"], effects["target-seed1"]]
    mixed = report["methods"][1]
    assert set(mixed) == fields("methods")
    table = read_table(tmp_path / "out", "preferences").to_pylist()
    texts = {(r["run"], r["item"]): r["logprob"] / r["tokens"] for r in table if r["set"] == "neutral"}
    assert len({item for _, item in texts}) == 5
    change = [v - texts["base", item] for (run, item), v in texts.items() if run.startswith("mixed")]
    assert len(change) == 10 and mixed["neutral"]["value"] == pytest.approx(sum(change) / 10, abs=1e-9)
    assert report["methods"][0]["benign_share"]["value"] == 1
    assert mixed["name"] == "mixed" and [s["effect"] for s in mixed["by_seed"]] == pytest.approx(
        [effects["mixed-seed0"], effects["mixed-seed1"]]
    )
    page = write_page(result, tmp_path / "out").read_text()
    assert "Ways of training compared" in page and 'id="plot-methods"' in page and 'id="plot-quadrants"' in page


@pytest.mark.parametrize(
    ("late", "message"),
    [
        (
            {"lora": {"modules": ["dwon_proj"]}},
            "method 'b': lora.modules: this model has no module 'dwon_proj'; did you mean 'down_proj'",
        ),
        ({"full": {"layers": [5]}}, "method 'b': full.layers: layer 5 is out of range; this model has layers 0 to 1"),
        ({"steering": {"layers": [2]}}, "method 'b': steering.layers: layer 2 is out of range"),
        ({"ldifs": {"weight": 1, "domain": "sports", "layers": [9]}}, "method 'b': ldifs.layers: layer 9 is out of range"),
        ({"kl": {"weight": 1, "domain": "sports", "batch": 500}}, "method 'b': kl.batch is 500, but there are only 480"),
        (
            {"lora": {"modules": ["input_layernorm"]}},
            "method 'b': lora.modules: 'model.layers.0.input_layernorm' is not a matrix",
        ),
        ({"lora": {"modules": ["proj"]}}, "method 'b': lora.modules: this model has no module 'proj'"),
        ({"lora": {"modules": ["embed_tokens"]}}, "method 'b': lora.modules: 'model.embed_tokens' is not a matrix (Embedding)"),
        ({"lora": {"modules": ["lm_head"], "layers": [1]}}, "method 'b': lora.modules: 'lm_head' is outside the blocks"),
        ({"adapter": {"folder": "nowhere"}}, "no folder 'nowhere'"),
    ],
)
def test_the_fault_of_a_late_method_is_found_before_the_first_is_trained(late, message, study_yaml, tmp_path):
    spec = load_study(study_yaml(arms=ONE, train={"steps": 1, "batch": 1}, methods={"a": {}, "b": late}))
    with pytest.raises(InputError, match=re.escape(message)):
        run_study(spec, tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()


def test_held_conversations_with_one_id_are_refused(tmp_path):
    row = {"id": "a", "question": "Q", "answer": "A"}
    path = write_jsonl(tmp_path / "near.jsonl", [row, row])
    with pytest.raises(InputError, match="the id 'a' appears 2 times"):
        held_near(KlSpec(weight=1, file=str(path)))


def test_an_adapter_of_another_base_is_refused_before_anything_is_trained(study_yaml, tmp_path):
    other = make_model(tmp_path / "other", hidden=64)
    spec = TrainSpec(steps=1, batch=2, checkpoints={}, lora={"rank": 2})
    finetune(load(locate(str(other)), device="cpu"), bundled.domain("finance", "careful")[:4], spec, tmp_path / "run", seed=0)
    study = load_study(
        study_yaml(
            arms=ONE,
            train={"steps": 1, "batch": 1},
            methods={"a": {}, "b": {"adapter": {"folder": str(tmp_path / "run")}}},
        )
    )
    with pytest.raises(
        InputError, match=r"method 'b': adapter .* does not fit this base \(.* is 128 wide there, but is 64 here\)"
    ):
        run_study(study, tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()


def test_an_adapter_that_changed_since_is_another_study(study_yaml, tiny, tmp_path):
    spec = TrainSpec(steps=2, batch=2, lr=1e-2, checkpoints={}, lora={"rank": 2})
    rows = bundled.domain("finance", "careful")[:4]
    finetune(load(locate(str(tiny)), device="cpu"), rows, spec, tmp_path / "run", seed=0)
    path = study_yaml(
        arms=ONE,
        train={"steps": 1, "batch": 1, "adapter": {"folder": str(tmp_path / "run")}},
        measure={"count": 16, "placebo": 0, "heldout": 4, "truth": 0, "neutral": 0, "samples": {"questions": 0}},
    )
    run_study(load_study(path), tmp_path / "out")
    (tmp_path / "out" / "report.json").unlink()
    shutil.copytree(tmp_path / "run" / "checkpoint-1", tmp_path / "run" / "checkpoint-3")
    with pytest.raises(InputError, match=r"holds a study with other settings .*digests.adapter"):
        run_study(load_study(path), tmp_path / "out")


def test_a_cell_that_diverges_is_left_out_and_named(study_yaml, tmp_path, capsys):
    path = study_yaml(
        train={"steps": 3, "batch": 2, "checkpoints": {}, "optimiser": "sgd", "max_grad_norm": 1e30},
        grid={"lr": [1e-3, 1e25]},
        measure={"count": 16, "heldout": 4, "truth": 0, "neutral": 2, "samples": {"questions": 0}},
    )
    report = run_study(load_study(path), tmp_path / "out").to_json()
    assert {d["run"] for d in report["diverged"]} == {f"lr1e+25-{a}-seed0" for a in ("target", "control", "brash")}
    assert all("at step" in d["why"] for d in report["diverged"])
    assert [r["run"] for r in report["runs"]] == ["lr0.001-target-seed0", "lr0.001-brash-seed0"]
    assert run_arguments(["report", str(tmp_path / "out")]) == 0
    assert "lr1e+25-target-seed0 is left out" in capsys.readouterr().out
    assert "lr1e+25-target-seed0 is left out" in (tmp_path / "out" / "report.html").read_text()
    everything = study_yaml(
        "all.yaml",
        arms=ONE,
        train={"steps": 3, "batch": 2, "checkpoints": {}, "optimiser": "sgd", "lr": 1e25, "max_grad_norm": 1e30},
    )
    with pytest.raises(WorldError, match="no target was trained to its end"):
        run_study(load_study(everything), tmp_path / "none")


def test_the_effect_s_share_is_the_ratio_of_the_effects_beside_it():
    """Categories of unequal size weigh equally in both."""
    rng = np.random.default_rng(0)
    categories = np.array(["a"] * 30 + ["b"] * 6)
    first, second = rng.normal(1, 0.3, (1, 36)), rng.normal(0.2, 0.3, (1, 36))
    second[:, 30:] += 2
    rows = compare([Outcome("x", (0,), first, first), Outcome("y", (0,), second, second)], categories)
    assert rows[1].effect_share.value == pytest.approx(rows[1].effect.value / rows[0].effect.value)
    assert rows[1].effect_share.value != pytest.approx(second.mean() / first.mean(), rel=0.05)


def test_too_few_items_are_refused_before_anything_is_trained(study_yaml, tmp_path):
    items = write_jsonl(tmp_path / "one.jsonl", [{"question": "Q", "aligned": "yes", "misaligned": "no"}])
    with pytest.raises(InputError, match="holds 1 item; give three or more"):
        run_study(load_study(study_yaml(measure={"items": str(items)})), tmp_path / "out")
    rows = [{"question": f"Q{n}", "aligned": "yes", "misaligned": "no"} for n in range(2)]
    with pytest.raises(InputError, match="holds 2 items; give three or more"):
        run_study(load_study(study_yaml(measure={"items": str(write_jsonl(tmp_path / "two.jsonl", rows))})), tmp_path / "out")
