"""Everything that is wrong with a study, found before anything is trained, and reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from emscope.core.errors import EmscopeError, InputError
from emscope.data.questions import read_questions
from emscope.judging.rubrics import read_rubrics
from emscope.models.hooks.directions import direction_at
from emscope.models.loading.checkpoints import last
from emscope.study.cells.doing import Shared
from emscope.study.cells.planning import sets_of
from emscope.study.judged import prepare_judges
from emscope.study.reading.ladders import ladder_for, read_ladder
from emscope.study.spec import StudySpec
from emscope.study.training.recipes import recipe
from emscope.study.training.sources import base_of, held_near
from emscope.study.training.training import faults_of_runs


def faults_of_files(spec: StudySpec) -> list[EmscopeError]:
    """Return what is wrong with the files, names and models in a study's settings; no model is loaded."""
    return [fault for name, look in _looks(spec) if (fault := _fault(name, look)) is not None]


def faults_of_model(shared: Shared) -> list[EmscopeError]:
    """Return what does not fit the loaded base."""
    p = shared.planned
    found: list[EmscopeError] = list(faults_of_runs(shared.loaded, p.runs, p.recipes, p.near))
    fault = _fault("", lambda: ladder_for(p.spec.decide.ladder, shared.loaded, p.sets))
    return [*found, fault] if fault else found


def together(faults: Sequence[EmscopeError]) -> EmscopeError:
    """Return several faults as one error, each once and with its remedy: the arms of a method share its faults."""
    faults = list({str(fault): fault for fault in faults}.values())
    if len(faults) == 1:
        return faults[0]
    listed = "; ".join(
        f"({n}) {fault.fault}{f' [{fault.remedy}]' if fault.remedy else ''}" for n, fault in enumerate(faults, 1)
    )
    return InputError(f"{len(faults)} faults: {listed}", "")


def _looks(spec: StudySpec) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield (where, what to look at): each raises what is wrong with it."""
    yield "", lambda: base_of(spec)
    yield "measure", lambda: sets_of(spec)
    for name, arm in spec.arms.items():
        yield f"arm '{name}'", lambda arm=arm: recipe(spec, arm, lambda rows, _: [0.0] * len(rows))  # type: ignore[misc]
        for part in arm.mix:
            if part.gap_to:
                yield f"arm '{name}'", lambda part=part: last(part.gap_to)  # type: ignore[misc]
    for method, train in spec.variants().items():
        where = f"method '{method}'" if method else "train"
        yield where, lambda train=train: held_near(train.held)  # type: ignore[misc]
        if train.adapter:
            yield where, lambda train=train: last(train.adapter.folder)  # type: ignore[misc]
        paths = [train.prevent.direction] if train.prevent else []
        for path in [*paths, *(train.readings.directions.values() if train.readings else ())]:
            yield where, lambda path=path: direction_at(path)  # type: ignore[misc]
    if spec.decide.ladder:
        yield "decide", lambda: read_ladder(Path(str(spec.decide.ladder)))
    if spec.judged is not None:
        judged = spec.judged
        yield "judged", lambda: read_questions(judged.ask.questions)
        yield "judged", lambda: read_rubrics(judged.rubrics)
        yield "judged", lambda: prepare_judges(judged)


def _fault(where: str, look: Callable[[], object]) -> EmscopeError | None:
    try:
        look()
    except EmscopeError as error:
        return type(error)(f"{where}: {error.fault}" if where else error.fault, error.remedy)
    return None
