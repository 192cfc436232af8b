"""A sample of `bench/attack.py`: hostile inputs of every kind, each answered or refused in one sentence. All of them: the script."""

from __future__ import annotations

import pytest

from attack import cases, files, studies, weights  # noqa: F401  (they register what makes cases)
from attack.material import Material
from attack.runner import Worker, attacked

pytestmark = pytest.mark.models
SEED = 1
QUICK = ("conversations", "items", "judged_answers", "series", "ratings", "bridged", "atlases", "settings_files", "paths")
EVERY = [(group, name) for group, found in cases.MAKERS.items() for name in found]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    found = Worker(tmp_path_factory.mktemp("cache"))
    yield found
    found.stop()


def check(group, name, numbers, material, worker, tmp_path):
    for number in numbers:
        folder = tmp_path / str(number)
        case = cases.made(group, name, number, SEED, folder, material)
        said, wrong = attacked(case, folder, worker)
        assert not wrong, (case.about, case.words, wrong, said)


@pytest.mark.parametrize("name", QUICK)
def test_a_few_hostile_files(name, material, worker, tmp_path):
    check("files", name, range(3), material, worker, tmp_path)


@pytest.mark.parametrize("name", ["base_config", "base_template", "adapter_config", "gguf_file"])
def test_a_few_hostile_models(name, material, worker, tmp_path):
    check("weights", name, range(1), material, worker, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), EVERY)
def test_more_of_every_kind(group, name, material, worker, tmp_path):
    check(group, name, range(10, 25), material, worker, tmp_path)


def test_the_same_seed_makes_the_same_input(material, tmp_path):
    one, two = (cases.made("files", "conversations", 3, SEED, tmp_path / n / "x", material) for n in "ab")
    assert one.about == two.about and (tmp_path / "a" / "x").exists()
    first, second = (sorted(p.read_bytes() for p in (tmp_path / n / "x").iterdir()) for n in "ab")
    assert first == second


HELD_TO_ALL_NAMES = ("adapter {'task_type'", "adapter {'target_modules'")


@pytest.mark.slow
def test_patterns_and_kinds_of_plain_adapters(material, worker, tmp_path):
    """The two that met the plain reader, which holds patterns to names by itself."""
    seen = 0
    for number in range(200):
        folder = tmp_path / str(number)
        case = cases.made("weights", "adapter_config", number, SEED, folder, material)
        if case.about.startswith(HELD_TO_ALL_NAMES) and seen < 6:
            seen += 1
            said, wrong = attacked(case, folder, worker)
            assert not wrong, (case.about, case.words, wrong, said)
    assert seen == 6
