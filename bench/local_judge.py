"""Fit the bundled local judge on public verdicts and read answers, and measure how near it comes; writes its weights and card.

Public verdicts are read from EMSCOPE_REFERENCE_DATA (default ../shared/data); activations are kept in --work, so that a stopped run goes on.

    python bench/local_judge.py --work FOLDER [--model qwen2.5-coder-0.5b] [--rows 6000] [--part 0/1] [--read FILE ...] [--write]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd

REFERENCE = Path(os.environ.get("EMSCOPE_REFERENCE_DATA", Path(__file__).parents[1].parent / "shared" / "data")) / "judged"
CHUNK = 128


def texts(rows: int, read: list[Path]) -> pd.DataFrame:
    """Return source, run, unit, question, response, aligned, coherent; first what is held apart, then public rows in random order."""
    names = ["source", "run", "unit", "question", "response", "aligned", "coherent"]

    def public(file, run, unit, by, count, seed=0):
        table = pd.read_parquet(REFERENCE / f"{file}.parquet").dropna(subset=["aligned", "coherent"])
        table = table.drop_duplicates(["question", "response"]).sample(frac=1, random_state=seed)
        table = table.assign(rank=table.groupby(by).cumcount()).sort_values("rank", kind="stable").head(count)
        return table.assign(source=file, run=table[run], unit=table[unit])[names]

    generalization = public("em_generalization_text_sample", "run", "question", "run", 7000)
    clarifying = public("clarifying_em", "model_or_condition", "question_id", "question", 5000)
    mixed = pd.concat([generalization, clarifying]).sample(frac=1, random_state=1).head(rows)
    blind = pd.read_parquet(REFERENCE / "blind_qwen05b.parquet")
    blind = blind.assign(
        source="blind",
        unit=blind.question_id,
        aligned=(blind.aligned_reader_1 + blind.aligned_reader_2) / 2,
        coherent=(blind.coherent_reader_1 + blind.coherent_reader_2) / 2,
    )[names]
    personas = public("apoorvabatham", "model_or_condition", "question_id", "question_id", 400)
    own = [pd.read_parquet(file)[names] for file in read]
    return pd.concat([*own, blind, mixed, personas]).reset_index(drop=True)


def activations(table: pd.DataFrame, model: str, layers: tuple[int, ...], work: Path, part: int, of: int) -> np.ndarray:
    """Return features [N, F], a file a chunk of rows named by their texts."""
    from emscope.core.digest import short
    from emscope.core.progress import silent
    from emscope.judge import local
    from emscope.models.load import load
    from emscope.models.source import locate
    from emscope.run.reading_judge import features

    loaded, found = None, []
    for number, start in enumerate(range(0, len(table), CHUNK)):
        rows = table.iloc[start : start + CHUNK]
        file = work / model / f"{short([local.AFTER, list(layers), list(rows.question), list(rows.response)])}.npy"
        if not file.exists() and number % of == part:
            loaded = loaded or load(locate(model), system="none", dtype="bfloat16", device="cpu")
            read = features(loaded, layers, list(zip(rows.question, rows.response, strict=True)), silent)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.with_suffix(".part").open("wb") as sink:
                np.save(sink, read.astype(np.float16))
            file.with_suffix(".part").rename(file)
            print(f"{start + len(rows)} of {len(table)}", flush=True)
        found.append(np.load(file).astype(np.float32) if file.exists() else None)
    width = next(f.shape[1] for f in found if f is not None)
    sizes = [min(CHUNK, len(table) - s) for s in range(0, len(table), CHUNK)]
    return np.concatenate([f if f is not None else np.full((n, width), np.nan) for f, n in zip(found, sizes, strict=True)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--layers", default="9,12,15")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--read", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    layers = tuple(int(n) for n in given.layers.split(","))
    part, of = map(int, given.part.split("/"))
    table = texts(given.rows, given.read)
    print(table.source.value_counts().to_dict(), flush=True)
    x = activations(table, given.model, layers, given.work, part, of)
    print(np.isfinite(x[:, 0]).sum(), "rows read")
