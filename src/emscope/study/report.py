"""A finished study's report, as a result that draws and saves itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from emscope.core.errors import InputError
from emscope.core.shown import Shown, flat


@dataclass(frozen=True, slots=True)
class StudyReport(Shown):
    """A finished study's documented report object, as it was returned or as it lies in a study's folder."""

    drawn_by: ClassVar[str] = "emscope.report.study.drawn:figures_of"
    told_by: ClassVar[str] = "emscope.report.study.drawn:sentences_of"

    report: Mapping[str, Any]

    @classmethod
    def in_folder(cls, folder: str | Path) -> StudyReport:
        """Return the report of a finished study.

        Raises:
            InputError: there is none, or it is damaged.
        """
        path = Path(folder) / "report.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"'{folder}' holds no finished study ({error})", "run it first with emscope run") from None
        return cls(found)

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict on each target, by run: by what it says where judges have read it, else by preference."""
        said = {
            one["run"]: one["verdict"]
            for judge in (self.report.get("judged") or {}).get("judges", [])[:1]
            for one in judge["said"]
        }
        return {r["run"]: said.get(r["run"], r["check"]["verdict"]) for r in self.report["runs"] if "check" in r}

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON shape."""
        return dict(self.report)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each compared checkpoint of each target."""
        return [
            {"run": run["run"], "arm": run["arm"], "seed": run["seed"], **flat(checkpoint)}
            for run in self.report["runs"]
            if "check" in run
            for checkpoint in run["check"]["checkpoints"]
        ]
