"""What the update looks like during training: its size, rank and turns, and how far it points along given directions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.models.adapters.updates import effective_rank
from emscope.models.hooks.directions import check_direction, direction_at
from emscope.models.loading.load import Loaded
from emscope.train.log import GeometryReading
from emscope.train.parts import Part
from emscope.train.spec import ReadingsSpec

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import Vector

HISTORY = "rotation.safetensors"


@dataclass(frozen=True, slots=True)
class Given:
    """A direction to compare with: unit vectors [D] by block."""

    name: str
    vectors: dict[int, Vector]


class Geometry:
    """Reads the parts of an update, step by step; what it must remember is saved with the checkpoints and read back."""

    def __init__(self, loaded: Loaded, spec: ReadingsSpec, parts: Sequence[Part]) -> None:
        self.spec, self.parts = spec, parts
        self.given = [_given(loaded, name, path) for name, path in spec.directions.items()]
        self.history: deque[tuple[int, Tensor]] = deque(maxlen=2 * max(spec.rotation, default=0) + 1)
        self.gradients: list[GeometryReading] = []

    def read_gradients(self, step: int) -> None:
        """Read the gradient's share along each direction; call it between the backward pass and the optimiser's step."""
        self.gradients = []
        if step % self.spec.every == 0:
            for part in self.parts:
                gradient = part.gradient()
                if gradient is not None:
                    self.gradients += self._along(step, part, "gradient", gradient, None)

    def read(self, step: int) -> list[GeometryReading]:
        """Return rows {step, module, what, value} about the update after `step`.

        `norm`: Frobenius norm, scale included. `sv<k>`: singular values, largest first. `effective_rank`: exp of the entropy
        of the singular values' shares (Roy and Vetterli 2007). `update along NAME`, `gradient along NAME`: `along`.
        `rotation<k>`: see `rotation`; it is about step - k, since it needs the k steps after it.
        """
        rows = self.gradients + self._rotations(step)
        self.gradients = []
        if step % self.spec.every:
            return rows
        for part in self.parts:
            matrix = part.core()

            def row(what: str, value: float, module: str = part.module) -> GeometryReading:
                return {"step": step, "module": module, "what": what, "value": value}

            rows.append(row("norm", float(matrix.norm())))
            if self.spec.singular_values:
                values = _singular_values(matrix)
                rows += [row(f"sv{k}", v) for k, v in enumerate(values[: self.spec.singular_values], 1)]
                rows.append(row("effective_rank", effective_rank(values)))
            rows += self._along(step, part, "update", part.left(), None if part.right is None else part.right.detach())
        return rows

    def save(self, folder: Path) -> None:
        """Write what later steps need into a checkpoint folder."""
        from safetensors.torch import save_file

        if self.history:
            save_file({str(step): v for step, v in self.history}, str(folder / HISTORY))

    def restore(self, folder: Path) -> None:
        """Read it back."""
        from safetensors.torch import load_file

        if (folder / HISTORY).is_file():
            found = load_file(str(folder / HISTORY))
            self.history.extend((step, found[str(step)]) for step in sorted(map(int, found)))

    def _rotations(self, step: int) -> list[GeometryReading]:
        if not self.spec.rotation:
            return []
        import torch

        self.history.append((step, torch.cat([p.left().float().flatten().cpu() for p in self.parts])))
        known = dict(self.history)
        rows: list[GeometryReading] = []
        for lag in self.spec.rotation:
            if step - 2 * lag in known:
                turn, shorter = rotation(known[step - 2 * lag], known[step - lag], known[step])
                for what, value in ((f"rotation{lag}", turn), (f"rotation{lag}_step_norm", shorter)):
                    rows.append({"step": step - lag, "module": "", "what": what, "value": value})
        return rows

    def _along(self, step: int, part: Part, what: str, left: Tensor, right: Tensor | None) -> list[GeometryReading]:
        if not part.writes or part.layer is None:
            return []
        return [
            {
                "step": step,
                "module": part.module,
                "what": f"{what} along {g.name}",
                "value": along(g.vectors[part.layer], left, right),
            }
            for g in self.given
            if part.layer in g.vectors
        ]


def rotation(before: Tensor, here: Tensor, after: Tensor) -> tuple[float, float]:
    """Return (cos(before - here, after - here), the shorter of the two steps' norms) of a parameter vector at three times.

    -1: straight on; 0 and above: a sharp turn. (local rotation, model organisms, Turner et al. 2025 section 4)
    """
    import torch

    back, forth = before - here, after - here
    norms = sorted((float(back.norm()), float(forth.norm())))
    if norms[0] == 0:
        return -1.0, 0.0
    return float(torch.dot(back, forth)) / (norms[0] * norms[1]), norms[0]


def along(unit: Tensor, left: Tensor, right: Tensor | None) -> float:
    """Return ||v^T U||_F / ||U||_F of an update U = left right (right None: left alone) that writes into the residual stream.

    For a single vector or rank 1 it is |cos|; a random update of a stream D wide has about 1/sqrt(D). (model organisms, Turner et al. 2025; ranks above 1: ours)

    Args:
        unit: v [D]; left [D, r]; right [r, in].
    """
    u = left.float().reshape(len(left), -1)
    row = unit.to(u.device) @ u
    if right is None:
        whole, part = u.norm(), row.norm()
    else:
        gram = right.float() @ right.float().T
        whole, part = ((u.T @ u) * gram).sum().clamp(min=0).sqrt(), (row @ gram @ row).clamp(min=0).sqrt()
    return float(part / whole) if float(whole) > 0 else 0.0


def _singular_values(matrix: Tensor) -> list[float]:
    """Return the singular values, largest first; through the smaller Gram matrix, since matrices may be 50 000 rows long."""
    import torch

    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    small = small.cpu() if small.device.type == "mps" else small  # MPS has no float64
    squares = torch.linalg.eigvalsh(small.double() @ small.double().T)
    return [float(v) for v in squares.clamp(min=0).sqrt().flip(0)]


def _given(loaded: Loaded, name: str, path: str) -> Given:
    direction = direction_at(path)
    check_direction(loaded.net, direction, path)
    nothing = [n for n, v in direction.vectors.items() if float(v.norm()) == 0]
    if nothing:
        raise InputError(f"readings.directions: '{path}' is zero at layer {nothing[0]}", "give a direction that is not zero")
    return Given(name, {n: v / v.norm() for n, v in direction.vectors.items()})
