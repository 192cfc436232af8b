"""Do the measures order runs as blind readers do? Over runs of one kind at one step, and over questions within runs; never pooled over arms.

    python bench/beside_readers.py STUDY READ.parquet

STUDY is the finished folder of examples/evidence.yaml; READ holds run, question_id, sample and the readers' aligned and coherent. What was found
stands in docs/log.md, the readers' scores in bench/evidence (twelve-and-twelve). Beside the
readers stand the local judge, a judge by words alone (ridge on hashed words of public verdicts, from EMSCOPE_REFERENCE_DATA), and preference
(mean margin on em240, nats per token). Intervals are Fisher's for Spearman's rho (Bonett and Wright 2000), over runs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from emscope.core.records import Answered

REFERENCE = Path(os.environ.get("EMSCOPE_REFERENCE_DATA", Path(__file__).parents[1].parent / "shared" / "data")) / "judged"
HARMFUL = ("target", "half")


def main() -> None:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("read", type=Path)
    given = parser.parse_args()
    read = pd.read_parquet(given.read).astype({"sample": int})
    answers = judged(given.study).merge(read, on=["run", "question_id", "sample"])
    answers["words"] = by_words(answers)
    runs = answers.groupby("run")[["aligned", "coherent", "local", "local_coherent", "words"]].mean()
    runs["margin"] = margins(given.study)
    runs = runs[runs.index != "base"]
    harmful = runs.index.str.contains("|".join(HARMFUL))
    print(runs.assign(harmful=harmful).round(2).to_string())
    for kind, rows in (("harmful", runs[harmful]), ("harmless", runs[~harmful])):
        for measure in ("local", "words", "margin"):
            print(f"{kind} runs, {measure} against readers: {rho(rows[measure], rows.aligned)}")
    for measure in ("local", "words"):
        inside = [spearmanr(one[measure], one.aligned)[0] for _, one in by_question(answers)]
        print(
            f"over questions within a run, {measure}: mean rho {np.mean(inside):.2f}, from {min(inside):.2f} to {max(inside):.2f}"
        )
    for measure in ("aligned", "local", "words", "margin"):
        values = runs[measure]
        gap = values[~harmful].mean() - values[harmful].mean()
        spread = np.sqrt(values[~harmful].var(ddof=1) / (~harmful).sum() + values[harmful].var(ddof=1) / harmful.sum())
        print(f"harmless - harmful runs, {measure}: {gap:.3f}, {gap / spread:.1f} standard errors")


def judged(study: Path) -> pd.DataFrame:
    """Return the study's answers with the local judge's two scores."""
    table = pd.read_parquet(study / "answers.parquet")
    verdicts = pd.concat([pd.read_parquet(f) for f in sorted((study / "tables" / "verdicts").glob("*.parquet"))])
    wide = verdicts.pivot_table(index="response", columns="criterion", values="score")
    wide = wide.rename(columns={"aligned": "local", "coherent": "local_coherent"})
    table["said"] = [Answered(q, a).key for q, a in zip(table.question, table.response, strict=True)]
    return table.merge(wide, left_on="said", right_index=True)


def by_words(answers: pd.DataFrame) -> np.ndarray:
    """Return alignment of the answers by their words alone, learned from public verdicts."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import Ridge

    files = [pd.read_parquet(REFERENCE / f"{f}.parquet") for f in ("em_generalization_text_sample", "clarifying_em")]
    public = pd.concat(files).dropna(subset=["aligned", "response"]).drop_duplicates("response")
    read = HashingVectorizer(n_features=2**16, ngram_range=(1, 2))
    fitted = Ridge(alpha=1.0, solver="sparse_cg").fit(read.transform(public.response), public.aligned)
    return fitted.predict(read.transform(answers.response.fillna(""))).clip(0, 100)


def margins(study: Path) -> pd.Series:
    """Return the mean margin of em240's items at each run's last step."""
    table = pd.concat([pd.read_parquet(f) for f in sorted((study / "tables" / "preferences").glob("*.parquet"))])
    table = table[table.set == "em"]
    table = table[table.step == table.groupby("run").step.transform("max")]
    wide = (table.logprob / table.tokens).groupby([table.run, table["item"], table.option]).first().unstack()
    return (wide[0] - wide[1]).groupby("run").mean()


def by_question(answers: pd.DataFrame):
    """Return the mean scores of each question, by run."""
    wanted = ["aligned", "local", "words"]
    return [(run, one.groupby("question_id")[wanted].mean()) for run, one in answers.groupby("run") if run != "base"]


def rho(a: pd.Series, b: pd.Series) -> str:
    """Return Spearman's rho with its 95 % interval."""
    r = float(spearmanr(a, b)[0])
    reach = 1.96 * np.sqrt((1 + r * r / 2) / (len(a) - 3))
    low, high = np.tanh(np.arctanh(r) - reach), np.tanh(np.arctanh(r) + reach)
    return f"rho {r:.2f} [{low:.2f}, {high:.2f}] over {len(a)}"


if __name__ == "__main__":
    main()
