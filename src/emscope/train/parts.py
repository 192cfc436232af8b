"""Which parts of a model are trained, matrix by matrix, and how they are saved and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import Adapted

State = Mapping[str, "Tensor"]


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix or vector that is trained: the update is scale x (weight - start) x right.

    Attributes:
        module: the name of the module it changes; layer: its block, None outside the blocks.
        writes: its output is added to the residual stream.
        weight: the parameter, [out, r] (a vector: [out]); `transposed`: stored as [in, out].
        right: [r, in], None where the weight is the whole update.
        start: the weight before training, None for zero.
    """

    module: str
    layer: int | None
    writes: bool
    weight: Tensor
    right: Tensor | None = None
    start: Tensor | None = None
    scale: float = 1.0
    transposed: bool = False

    def left(self) -> Tensor:
        """Return the weight's change so far [out, r], without the scale."""
        return self._upright(self.weight.detach() if self.start is None else self.weight.detach() - self.start)

    def gradient(self) -> Tensor | None:
        """Return the weight's gradient [out, r], None where there is none."""
        return None if self.weight.grad is None else self._upright(self.weight.grad)

    def core(self) -> Tensor:
        """Return a matrix with the singular values of the whole update, as small as its rank allows."""
        import torch

        left = self.left().float()
        if self.right is None:
            return self.scale * left
        return (
            self.scale * torch.linalg.qr(left).R @ torch.linalg.qr(self.right.detach().float().T).R.T
        )  # the orthogonal factors change no singular value

    def _upright(self, matrix: Tensor) -> Tensor:
        matrix = matrix.reshape(len(matrix), -1)
        return matrix.T if self.transposed else matrix


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model made trainable.

    Attributes:
        model: what the trainer gets (the adapters' wrapper, or the network itself).
        norm: returns the norm of the change from the base so far, scale included.
        parts: what is trained, matrix by matrix.
        save: writes what was trained into a checkpoint folder, from a state dict where the model is sharded, else None.
        restore: reads it back from one; None where the trainer's own way does.
        lr_scale: what the learning rate is multiplied by.
    """

    model: Adapted
    norm: Callable[[], float]
    save: Callable[[Path, State | None], None]
    parts: Sequence[Part]
    restore: Callable[[Path], None] | None = None
    lr_scale: float = 1.0


def whole(weight: Tensor) -> Tensor:
    """Return a weight with all its elements, gathered from the other processes where it is sharded."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight
