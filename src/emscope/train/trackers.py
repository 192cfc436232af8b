"""Trackers that are sent the readings of each step, through transformers' own callbacks. By default there are none."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from emscope.core.errors import MissingDependency

if TYPE_CHECKING:
    from transformers import TrainerCallback

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX")}  # where the package's name is not the tracker's


def check_trackers(names: Sequence[str]) -> None:
    """Reject trackers whose package is not installed.

    Raises:
        MissingDependency: naming the first.
    """
    for name in names:
        if not any(find_spec(package) for package in PACKAGES.get(name, (name,))):
            raise MissingDependency(
                f"train.report_to names {name}, which is not installed",
                f"pip install {name.replace('_', '-')}, or leave it out",
            )


def trackers(names: Sequence[str]) -> list[TrainerCallback]:
    """Return a callback for each tracker."""
    from transformers.integrations import get_reporting_integration_callbacks

    return [make() for make in get_reporting_integration_callbacks(list(names))]
