"""Damaged studies: ledgers, reports, tables, optimiser states and files that are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

from attack.cases import Case, makes
from attack.material import Material
from attack.mutations import broken_bytes, broken_json
from attack.weights import copied, evil_pickle


def _damaged(random: Random, path: Path) -> str:
    """Damage one file and say how."""
    if random.random() < 0.2:
        path.unlink()
        return f"{path.name} is missing"
    if path.suffix == ".json" and random.random() < 0.8:
        try:
            path.write_bytes(broken_json(json.loads(path.read_text()), random))
            return f"{path.name} holds other values"
        except ValueError:
            pass
    path.write_bytes(broken_bytes(path.read_bytes(), random))
    return f"{path.name} is damaged"


def _files(folder: Path, *patterns: str) -> list[Path]:
    return sorted(p for pattern in patterns for p in folder.rglob(pattern) if p.is_file() and p.name != ".lock")


@makes("studies")
def reports(random: Random, folder: Path, m: Material) -> Case:
    """`report.json` of another shape, drawn again."""
    study = copied(random.choice((m.checked, m.study)), folder / "study")
    about = _damaged(random, study / "report.json")
    return Case(("report", str(study), *(["--json"] if random.random() < 0.2 else [])), about, study)


@makes("studies")
def ledgers(random: Random, folder: Path, m: Material) -> Case:
    """A ledger of another shape, gone on with."""
    study = copied(m.checked, folder / "study")
    about = _damaged(random, study / "ledger.json")
    return Case(tuple(m.check_words(study)), about, study, (m.run,))


@makes("studies")
def tables(random: Random, folder: Path, m: Material) -> Case:
    """Damaged tables and files of a finished check or study, gone on with."""
    whole = random.random() < 0.3
    study = copied(m.study if whole else m.checked, folder / "study")
    (study / "report.json").unlink()
    about = _damaged(random, random.choice(_files(study, "*.parquet", "*.json")))
    words = ["run", str(m.study_yaml), "--out", str(study)] if whole else m.check_words(study)
    return Case(tuple(words), about, study, (m.run,))


@makes("studies")
def trainings(random: Random, folder: Path, m: Material) -> Case:
    """A half-done fine-tune whose checkpoints, optimiser or random states are damaged, missing or evil, gone on with."""
    run = copied(m.begun, folder / "run")
    newest = max(run.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
    path = random.choice(_files(newest, "*"))
    if path.suffix in (".pt", ".pth", ".bin") and random.random() < 0.3:
        evil_pickle(path, folder)
        about = f"{path.name} is another pickle"
    else:
        about = _damaged(random, path)
    if random.random() < 0.2:
        shutil.copytree(newest, run / random.choice(("checkpoint-best", "checkpoint-9", "mine")))
    return Case(("train", str(m.root / "train.yaml"), "--out", str(run)), about, None)
