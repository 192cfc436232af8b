"""emscope: measure emergent misalignment along a fine-tune, and say which checkpoint is safe to ship.

import emscope
result = emscope.check("outputs/my-run", control="outputs/my-control")
result.verdict, result.to_frame(), result.figures()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emscope.version import __version__ as __version__

__all__ = [
    *("agreement", "check", "compare", "compare_studies", "data_risk", "diff", "extract", "judge", "loss", "onset", "power"),
    *("probe", "rates", "run_study", "sample", "shifts", "sizes", "steer", "subspaces", "trajectories"),
]

if TYPE_CHECKING:
    from collections.abc import Callable

    from emscope.api import agreement as agreement
    from emscope.api import check as check
    from emscope.api import compare as compare
    from emscope.api import compare_studies as compare_studies
    from emscope.api import data_risk as data_risk
    from emscope.api import diff as diff
    from emscope.api import extract as extract
    from emscope.api import judge as judge
    from emscope.api import loss as loss
    from emscope.api import onset as onset
    from emscope.api import power as power
    from emscope.api import probe as probe
    from emscope.api import rates as rates
    from emscope.api import run_study as run_study
    from emscope.api import sample as sample
    from emscope.api import shifts as shifts
    from emscope.api import sizes as sizes
    from emscope.api import steer as steer
    from emscope.api import subspaces as subspaces
    from emscope.api import trajectories as trajectories


def __getattr__(name: str) -> Callable[..., object]:
    """Return a function of the API, loaded when it is asked for: importing emscope costs nothing."""
    if name in __all__:
        from emscope import api

        return getattr(api, name)
    raise AttributeError(f"module 'emscope' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
