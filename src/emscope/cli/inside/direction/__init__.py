"""`emscope direction`: vectors inside a model that point to a behaviour."""

from __future__ import annotations

from emscope.cli.inside.direction.act import ablate, steer
from emscope.cli.inside.direction.compare import compare
from emscope.cli.inside.direction.export import export
from emscope.cli.inside.direction.extract import extract
from emscope.cli.inside.direction.sample import sample
from emscope.cli.inside.direction.shift import shift

COMMANDS = {
    "extract": extract,
    "compare": compare,
    "shift": shift,
    "steer": steer,
    "ablate": ablate,
    "sample": sample,
    "export": export,
}
