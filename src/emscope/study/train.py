"""One fine-tune outside a study."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.plain import JsonObject, Result, plain
from emscope.core.progress import Progress, silent
from emscope.core.records import StepReading
from emscope.data import bundled
from emscope.models.loading.load import Loaded, load, pick_dtype
from emscope.models.loading.source import locate
from emscope.models.made_with import made_with
from emscope.store.study import Study
from emscope.study.spec import SingleSpec
from emscope.study.training.hosted import HostedTrained, run_hosted
from emscope.study.training.jobs import JobTrained, run_job
from emscope.study.training.sources import conversations, digests, frozen, held_near
from emscope.study.training.training import answer_loss
from emscope.train import processes
from emscope.train.finetune import finetune

if TYPE_CHECKING:
    from emscope.models.types import CausalLM

SCHEMA = "emscope.train/1"


@dataclass(frozen=True, slots=True)
class Trained(Result):
    """A finished fine-tune: its settings, and what was read at each step."""

    spec: SingleSpec
    readings: tuple[StepReading, ...]

    def to_json(self) -> JsonObject:
        """Return the documented JSON shape."""
        return {"schema": SCHEMA, "spec": plain(self.spec), "readings": [asdict(r) for r in self.readings]}


def run_single(spec: SingleSpec, out: Path, progress: Progress = silent) -> Trained | HostedTrained | JobTrained:
    """Train into `out`, or at a host; return the readings, one a step. Of several processes the first keeps the folder."""

    if spec.host is not None and spec.host.name == "openai":
        return run_job(spec, spec.host, out, progress)
    if spec.host is not None:
        return run_hosted(spec, spec.host, out, progress)
    data, near = conversations(spec.file, spec.domain, spec.answers), held_near(spec.train.held)
    base = processes.from_first(lambda: locate(spec.model))
    spec = spec.model_copy(update={"dtype": pick_dtype(spec.dtype, base)})
    named = digests(base, {"trained on": data, "held by": near}, [spec.train])
    with Study(out, frozen(spec, named), made_with()) if processes.is_first() else nullcontext():
        loaded = load(base, system=spec.system, dtype=spec.dtype, chat_kwargs=spec.chat_kwargs)
        log = finetune(
            loaded,
            data,
            spec.train,
            out,
            seed=spec.seed,
            held_near=near,
            heldout=_heldout_loss(loaded, spec) if spec.train.heldout_every else None,
            progress=progress,
        )
    return Trained(spec, tuple(log))


def _heldout_loss(loaded: Loaded, spec: SingleSpec) -> Callable[[CausalLM], float]:
    assert spec.domain and spec.answers
    option = bundled.SETS[spec.domain].answers.index(spec.answers)
    return answer_loss(loaded, bundled.heldout(spec.domain), option)
