"""What a user should know but need not fix: a Python warning, so that no stage prints. The command line shows it as one line."""

from __future__ import annotations

import warnings


class Note(UserWarning):
    """A sentence about what was done differently from what was asked. It names a setting like an error does, by its field in backticks."""


def note_fewer(wanted: int | None, there: int, name: str, what: str) -> None:
    """Note that a setting asks for more than there is, so that everything is used.

    Args:
        name: the setting's field. what: what it counts, such as items.
    """
    if wanted is not None and wanted > there:
        warnings.warn(f"`{name}` is {wanted}, but there are only {there} {what}: all of them are used", Note, stacklevel=3)
