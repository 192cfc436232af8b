"""The paths of several fine-tunes of one base: do they end in one place, and do they turn?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emscope.core.errors import InputError
from emscope.core.versions import versions
from emscope.inside.results import Axes, Point, Trajectories
from emscope.store.files import write_json


def trajectories(runs: Sequence[str], out: Path, *, base: str | None = None, device: str = "auto") -> Trajectories:
    """Return every checkpoint of the runs as a point on the main axes of their updates, and the cosine of each with each run's end.

    Raises:
        InputError: fewer than two checkpoints, or updates that cannot be compared.
    """
    from emscope.models.adapters.updates import gram
    from emscope.models.loading.checkpoints import discover, named_base
    from emscope.models.loading.load import load
    from emscope.models.loading.source import locate
    from emscope.represent.trajectory import trajectory

    found = [(run, c) for run in dict.fromkeys(runs) for c in discover(run)]
    if len(found) < 2:
        raise InputError(f"{len(found)} checkpoint is given", "give runs with two or more checkpoints in all")
    checkpoints = [c for _, c in found]
    loaded = load(locate(base or named_base(checkpoints)), device=device)
    made = trajectory(gram(loaded.net, checkpoints).numpy())
    ends = {run: n for n, (run, _) in enumerate(found)}
    points = [
        Point(
            run=run,
            step=c.step,
            norm=float(made.norms[n]),
            point=tuple(made.points[n].tolist()),
            cosine_with_end={end: float(made.cosines[n, m]) for end, m in ends.items()},
        )
        for n, (run, c) in enumerate(found)
    ]
    axes = Axes("principal, about the base", loaded.model.digest)
    result = Trajectories(axes, tuple(made.shares.tolist()), tuple(points), versions())
    write_json(out / "trajectories.json", result.to_json())
    return result
