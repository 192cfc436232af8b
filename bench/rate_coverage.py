"""How often 95 % intervals of a rate hold the true one, by number of questions: ours, the bootstrap's, the naive one's.

Answers to a question share its tendency: logit-normal over questions with standard deviation 1.5, 50 answers a question.

    python bench/rate_coverage.py [--rounds 4000]
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import special, stats
from scipy.optimize import brentq

from emscope.stats.clustered import rate, rate_estimate
from emscope.stats.rates import wilson
from emscope.stats.resampled import Resamples

SPREAD, ANSWERS = 1.5, 50
QUESTIONS = (4, 8, 12, 24, 48, 100)
RATES = (0.02, 0.05, 0.2, 0.5)


def location(share: float) -> float:
    """Return the logit-normal mean at which questions have this rate."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    return float(brentq(lambda m: float((weights * special.expit(m + SPREAD * points)).sum() - share), -15, 15))


def held(questions: int, share: float, rounds: int) -> dict[str, float]:
    """Return the share of rounds in which each interval holds the true rate, and the mean width of ours."""
    rng = np.random.default_rng(questions * 1000 + round(share * 100))
    names, sizes, centre = np.arange(questions), np.full(questions, ANSWERS), location(share)
    hits = rng.binomial(ANSWERS, special.expit(centre + SPREAD * rng.standard_normal((rounds, questions))))
    inside = {"ours": 0, "bootstrap": 0, "naive": 0}
    width, tried = 0.0, min(rounds, 1000)
    for n, row in enumerate(hits):
        found = rate(names, row, sizes)
        estimate = rate_estimate(found)
        inside["ours"] += estimate.low <= share <= estimate.high
        width += (estimate.high - estimate.low) / rounds
        low, high = wilson(found.value, found.n, z=1.96)
        inside["naive"] += low <= share <= high
        if n < tried:
            percentile = Resamples(1000, seed=n).estimate(found)
            inside["bootstrap"] += percentile.low <= share <= percentile.high
    return {k: v / (tried if k == "bootstrap" else rounds) for k, v in inside.items()} | {"width": width}


def main() -> None:
    """Print one row for each number of questions and rate, as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4000)
    rounds = parser.parse_args().rounds
    print("| questions | rate | this interval | its width | percentile bootstrap | Wilson, answers as if independent |")
    print("|---|---|---|---|---|---|")
    for questions in QUESTIONS:
        for share in RATES:
            h = held(questions, share, rounds)
            cells = f"{h['ours']:.1%} | {h['width']:.3f} | {h['bootstrap']:.1%} | {h['naive']:.1%}"
            print(f"| {questions} | {share} | {cells} |", flush=True)
    error = np.sqrt(0.95 * 0.05 / rounds) * stats.norm.ppf(0.975)
    print(f"\n{rounds} rounds a row (bootstrap at most 1,000), so about +-{error:.1%}")


if __name__ == "__main__":
    main()
