"""What a user should know and need not mend: a warning of Python's own, so that no stage prints. The command line shows it as one line."""

from __future__ import annotations

import warnings


class Note(UserWarning):
    """A sentence about what was done otherwise than asked. It names a setting as an error does, by its field in backticks."""


def note_fewer(wanted: int | None, there: int, name: str, what: str) -> None:
    """Say that a setting asks for more than there is, so that all of it is taken.

    Args:
        name: the setting's field. what: what it counts, such as items.
    """
    if wanted is not None and wanted > there:
        warnings.warn(f"`{name}` is {wanted}, and there are {there} {what}: all of them are used", Note, stacklevel=3)
