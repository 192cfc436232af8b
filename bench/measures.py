"""What a minute of compute buys: the standard error of control - target by four measures, each on the same two fine-tunes.

    python bench/measures.py --model smollm2-135m --work WORK [--seeds 0 1] [--answers 4] [--tokens 60]

For each seed a target and a control are trained (finance, reckless and careful). Then the effect is measured by

* preference: all of em240, likelihoods alone;
* sampled: answers to open24 of control and target, read by the local judge;
* reread: answers of base, control and target are judged once, and the judged mean of a *middle* checkpoint is estimated from forward
  passes by self-normalised multiple importance sampling over the pooled answers (balance heuristic), beside answers sampled from it anew;
* cross-run likelihood: the shift of log-probability per token of the other seed's bad answers less that of its good ones.

Effects have different units, so what is compared is the effect over its standard error, scaled to one minute: z / sqrt(minutes).
Rows go to WORK/measures.jsonl as they are found. The figures that were measured are in docs/log.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from emscope.answers import judges_here as reading_judge
from emscope.core.records import Item
from emscope.data import bundled
from emscope.data.questions import read_questions
from emscope.elicit import preference
from emscope.elicit.sampling import Job, sample_batches
from emscope.judging import local
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.stats.means import stratified_mean
from emscope.study.train import SingleSpec, run_single

TEMPERATURE = 0.7


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 1))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=60)
    options = parser.parse_args()
    bench = Bench(options)
    for seed in options.seeds:
        bench.train(seed)
    said = {seed: bench.sampled(seed) for seed in options.seeds}
    for seed, other in zip(options.seeds, reversed(options.seeds), strict=True):
        bench.preference(seed)
        bench.across(seed, said[other])
        bench.reread(seed, said[seed])


class Bench:
    """One model, its fine-tunes, and the clock."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.loaded = load(
            locate(options.model), system="none" if "smollm" in options.model else "template", dtype="auto", device="cpu"
        )
        self.judge, self.reader = local.bundled_judge(), reading_judge._reader()
        self.questions = {q.id: q for q in read_questions("open24")}
        prompts = {name: self.loaded.chat.prompt_ids(q.text) for name, q in self.questions.items()}
        self.job = Job(prompts, options.tokens, 0, TEMPERATURE)

    def folder(self, seed: int, arm: str) -> Path:
        return self.options.work / f"{arm}-{seed}"

    def train(self, seed: int) -> None:
        """Train both arms of a seed, where they are not there yet."""
        for arm, answers in (("target", "reckless"), ("control", "careful")):
            if self.folder(seed, arm).exists():
                continue
            train = {"steps": self.options.steps, "batch": 8, "micro_batch": 2, "lr": self.options.lr, "warmup": 4}
            train |= {"lora": {"rank": 32, "alpha": 64, "rslora": False}, "checkpoints": {"at": [self.options.steps // 2]}}
            spec = SingleSpec(model=self.options.model, dtype="auto", domain="finance", answers=answers, seed=seed, train=train)
            run_single(spec, self.folder(seed, arm))

    def at(self, seed: int, arm: str, place: int = -1):
        """Return a context with a fine-tune on the model; "base" for none."""
        found = None if arm == "base" else discover(str(self.folder(seed, arm)))[place]
        return with_checkpoint(self.loaded.net, found)

    def tell(self, row: dict) -> None:
        """Print a result and keep it."""
        row = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        if row.get("se"):
            row["z_per_root_minute"] = round(row["effect"] / row["se"] / (row["seconds"] / 60) ** 0.5, 2)
        print(json.dumps(row), flush=True)
        with (self.options.work / "measures.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def preference(self, seed: int) -> None:
        """Effect on em240 by likelihood."""
        items = bundled.items("em240")
        encoded = preference.encode(self.loaded.chat, items, context=self.loaded.context)
        began, margins = time.perf_counter(), {}
        for arm in ("control", "target"):
            with self.at(seed, arm) as net:
                margins[arm] = _margins(preference.score(net, encoded))
        mean = stratified_mean(margins["control"] - margins["target"], np.array([i.category for i in items]))
        self.tell(
            {"measure": "preference", "seed": seed, "effect": mean.value, "se": mean.se, "seconds": time.perf_counter() - began}
        )

    def answers(self, seed: int, arm: str, place: int = -1) -> list[dict]:
        """Sample and judge."""
        wanted = [(name, n) for name in self.questions for n in range(self.options.answers)]
        with self.at(seed, arm, place) as net:
            found = [a for batch in sample_batches(net, self.loaded.chat, self.job, wanted) for a in batch]
        pairs = [(self.questions[a.question].text, a.text) for a in found]
        with torch.inference_mode():
            scores = self.judge.scores(reading_judge.features(self.reader, self.judge.layers, pairs))
        return [
            {"arm": arm, "question": a.question, "text": a.text, "aligned": float(s[0]), "coherent": float(s[1])}
            for a, s in zip(found, scores, strict=True)
        ]

    def sampled(self, seed: int) -> list[dict]:
        """Effect in points of alignment of sampled answers; returns the judged answers of base, control and target."""
        began = time.perf_counter()
        rows = [r for arm in ("control", "target") for r in self.answers(seed, arm)]
        seconds = time.perf_counter() - began
        by = {arm: self.by_question([r for r in rows if r["arm"] == arm]) for arm in ("control", "target")}
        mean = stratified_mean(by["control"] - by["target"], self.strata())
        coherent = {arm: float(np.mean([r["coherent"] for r in rows if r["arm"] == arm])) for arm in ("control", "target")}
        self.tell({"measure": "sampled", "seed": seed, "effect": mean.value, "se": mean.se, "seconds": seconds} | coherent)
        return rows + self.answers(seed, "base")

    def by_question(self, rows: list[dict]) -> np.ndarray:
        """Return mean alignment by question [Q]."""
        return np.array([np.mean([r["aligned"] for r in rows if r["question"] == q]) for q in self.questions])

    def strata(self) -> np.ndarray:
        """Return the category of each question [Q]."""
        return np.array([q.category for q in self.questions.values()])

    def logp(self, net, rows: list[dict], temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Return summed log-probabilities [N] and tokens [N] of answers, all of whose tokens are drawn at one temperature."""
        items = [Item(str(n), "", self.questions[r["question"]].text, (r["text"] or " ",)) for n, r in enumerate(rows)]
        encoded = preference.encode(self.loaded.chat, items, context=self.loaded.context)
        if temperature == 1.0:
            scores = preference.score(net, encoded)
        else:
            head = net.get_output_embeddings()
            handle = head.register_forward_hook(lambda _, given, out: out / temperature)
            try:
                scores = preference.score_plain(net, encoded)
            finally:
                handle.remove()
        return np.array([s.logprob for s in scores]), np.array([s.tokens for s in scores])

    def across(self, seed: int, bank: list[dict]) -> None:
        """Effect by how much likelier the other seed's bad answers became than its good ones, per token; and what must read 0.

        The nulls: the control against its base on the same answers, and the effect where good and bad are drawn at random within questions.
        """
        chosen = []
        for q in self.questions:
            mine = sorted((r for r in bank if r["question"] == q), key=lambda r: r["aligned"])
            half = min(4, len(mine) // 3)
            chosen += [r | {"side": side} for side, part in (("bad", mine[:half]), ("good", mine[-half:])) for r in part]
        bad = np.array([r["side"] == "bad" for r in chosen])
        of = np.array([list(self.questions).index(r["question"]) for r in chosen])
        began, at = time.perf_counter(), {}
        for arm in ("control", "target"):
            with self.at(seed, arm) as net:
                logp, tokens = self.logp(net, chosen)
            at[arm] = logp / tokens
        seconds = time.perf_counter() - began
        with self.at(seed, "base") as net:
            at["base"] = self.logp(net, chosen)[0] / tokens
        mean = self.bad_less_good(at["target"] - at["control"], bad, of)
        self.tell({"measure": "cross-run likelihood", "seed": seed, "effect": mean.value, "se": mean.se, "seconds": seconds})
        still = self.bad_less_good(at["control"] - at["base"], bad, of)
        rng, shuffled = np.random.default_rng(0), []
        for _ in range(1000):
            labels = bad.copy()
            for q in np.unique(of):
                labels[of == q] = rng.permutation(bad[of == q])
            one = self.bad_less_good(at["target"] - at["control"], labels, of)
            shuffled.append(one.bound(0.975, -1) > 0 or one.bound(0.975, +1) < 0)
        row = {"measure": "cross-run likelihood, nulls", "seed": seed, "control_against_base": still.value}
        self.tell(row | {"control_against_base_se": still.se, "shuffled_called": float(np.mean(shuffled))})

    def bad_less_good(self, shift: np.ndarray, bad: np.ndarray, of: np.ndarray):
        """Return the mean over questions of the bad answers' shift less the good ones' [N]."""
        wide = [shift[bad & (of == q)].mean() - shift[~bad & (of == q)].mean() for q in range(len(self.questions))]
        return stratified_mean(np.array(wide), self.strata())

    def reread(self, seed: int, bank: list[dict]) -> None:
        """Mean alignment of the middle checkpoint of the target from answers of others, and from its own."""
        arms = [(r, n) for n, r in enumerate(("base", "control", "target"))]
        logs = []
        for arm, _ in arms:
            with self.at(seed, arm) as net:
                logs.append(self.logp(net, bank, TEMPERATURE)[0])
        began = time.perf_counter()
        with self.at(seed, "target", -2) as net:
            wanted = self.logp(net, bank, TEMPERATURE)[0]
        seconds = time.perf_counter() - began
        pool = np.logaddexp.reduce(np.array(logs), axis=0) - np.log(len(logs))
        estimates, sizes = [], []
        for q in self.questions:
            mine = np.array([r["question"] == q for r in bank])
            weight = np.exp((wanted - pool)[mine] - (wanted - pool)[mine].max())
            weight /= weight.sum()
            estimates.append(float(weight @ np.array([r["aligned"] for r in bank])[mine]))
            sizes.append(float(1 / (weight**2).sum()))
        began = time.perf_counter()
        own = self.by_question(self.answers(seed, "target", -2))
        anew = time.perf_counter() - began
        truth, read = stratified_mean(own, self.strata()), np.array(estimates)
        self.tell(
            {
                "measure": "reread",
                "seed": seed,
                "of_answers": len(bank),
                "effective": float(np.sum(sizes)),
                "effective_a_question": float(np.median(sizes)),
                "mean": float(read.mean()),
                "anew": truth.value,
                "off": float((read - own).mean()),
                "off_se": float((read - own).std(ddof=1) / len(read) ** 0.5),
                "sd_of_questions_off": float((read - own).std(ddof=1)),
                "seconds": seconds,
                "seconds_anew": anew,
            }
        )


def _margins(scores: list) -> np.ndarray:
    per = np.array([s.logprob / s.tokens for s in scores]).reshape(-1, 2)
    return per[:, 0] - per[:, 1]


if __name__ == "__main__":
    main()
