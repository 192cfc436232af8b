"""The request for a check, from the command line or from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emscope.core.digest import short
from emscope.core.plain import Json, JsonObject
from emscope.models.loading.source import Model
from emscope.models.remote.host_spec import Prices
from emscope.study.check_spec import CheckSpec
from emscope.study.judged_spec import JudgedSpec
from emscope.study.measure_spec import DecideSpec, MeasureSpec
from emscope.study.opening import Loading
from emscope.study.selected import Selection


def own_folder(checkpoints: str, frozen: JsonObject) -> Path:
    """Return the default folder of a check, by name and question."""
    name = f"{Path(checkpoints).name or 'check'}-{short(frozen)[:8]}"
    return Path("emscope-check") / name.replace(":", "-").replace("@", "-")


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """The request to `emscope check`; with `system=auto` it uses the system prompt that the checkpoints were most likely trained under.

    Attributes:
        share: other processes with the same request read into the same folder.
        host_prices, max_cost, requests: of checkpoints at a host.
    """

    checkpoints: str
    base: str | Model | None = None
    control: str | None = None
    make_control: str | None = None
    heldout: str | None = None
    control_heldout: str | None = None
    log: str | None = None
    atlas: str | None = None
    amplify: tuple[float, ...] = (1.0,)
    system: str = "none"
    chat_kwargs: Mapping[str, Json] = field(default_factory=dict)
    dtype: str = "auto"
    device: str = "auto"
    control_batch: int | None = None
    selection: Selection = field(default_factory=Selection)
    share: bool = False
    host_prices: Prices | None = None
    max_cost: float | None = None
    requests: int = 32
    measure: MeasureSpec = field(default_factory=MeasureSpec)
    decide: DecideSpec = field(default_factory=DecideSpec)
    judged: JudgedSpec | None = None

    @classmethod
    def of(cls, checkpoints: str, base: str | Model | None, spec: CheckSpec) -> CheckRequest:
        """Return what to check by the settings that the command line and Python share."""
        return cls(
            checkpoints,
            base=base,
            control=spec.control,
            make_control=spec.make_control,
            heldout=spec.heldout,
            control_heldout=spec.control_heldout,
            log=spec.log,
            atlas=spec.atlas,
            amplify=spec.amplify,
            system=spec.system,
            chat_kwargs=spec.chat_kwargs or {},
            dtype=spec.dtype,
            device=spec.device,
            control_batch=spec.control_batch,
            selection=Selection(spec.steps, spec.every, spec.search),
            share=spec.share,
            host_prices=spec.host_prices,
            max_cost=spec.max_cost,
            requests=spec.requests,
            measure=spec.reading(),
            decide=spec.threshold(),
            judged=spec.judged(),
        )

    def needing_weights(self) -> dict[str, bool]:
        """Return which settings need weights on this machine."""
        return {
            "control": bool(self.control),
            "make_control": bool(self.make_control),
            "amplify": self.amplify != (1.0,),
            "share": self.share,
        }

    def loading(self) -> Loading:
        """Return how the base is loaded here, or asked at a host."""
        return Loading(self.system, self.chat_kwargs, self.dtype, self.device, self.host_prices, self.max_cost, self.requests)
