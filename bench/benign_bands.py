"""Make the benign-drift band of a base: how far harmless fine-tunes of it move on em240 by themselves.

    python bench/benign_bands.py [--model smollm2-135m] [--seeds 0] [--out FOLDER]

Trains the careful and the brash arm of both bundled domains with the quickstart's settings, reads base and last checkpoint
on all of em240, and writes the range of (base - arm) into src/emscope/run/files/benign_bands.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from emscope.cli.console import progress_bar
from emscope.data import bundled
from emscope.elicit.preference import encode, score
from emscope.models.applied import applied
from emscope.models.checkpoints import discover
from emscope.models.load import load as load_model
from emscope.models.source import locate
from emscope.run.spec import load_study
from emscope.stats.means import stratified_mean
from emscope.train.finetune import finetune

FILES = Path(__file__).parents[1] / "src" / "emscope" / "run" / "files"


def main() -> None:
    """Train, read, write the band."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("benign-runs"))
    arguments = parser.parse_args()
    spec = load_study(FILES / "quickstart.yaml", small=True)
    loaded = load_model(locate(arguments.model), system=spec.system)
    items = bundled.items("em240")
    categories = np.array([i.category for i in items])
    encoded = encode(loaded.chat, items, context=loaded.context)

    def margins(net: object) -> np.ndarray:
        sums = [s.per_token for s in score(net, encoded)]
        return np.array(sums[::2]) - np.array(sums[1::2])

    base = margins(loaded.net)
    drifts = {}
    with progress_bar() as progress:
        for domain in ("finance", "sports"):
            for answer in ("careful", "brash"):
                for seed in arguments.seeds:
                    folder = arguments.out / f"{domain}-{answer}-seed{seed}"
                    finetune(
                        loaded,
                        bundled.domain(domain, answer),
                        spec.train,
                        folder,
                        seed=seed,
                        progress=progress,
                        label=f"training {folder.name}",
                    )
                    with applied(loaded.net, discover(str(folder))[-1]) as net:
                        drift = stratified_mean(base - margins(net), categories)
                    drifts[folder.name] = drift.value
                    print(f"{folder.name}: base - arm {drift.value:+.4f}, standard error {drift.se:.4f}", flush=True)
    band = {
        "base": arguments.model,
        "base_digest": loaded.model.digest,
        "chat_digest": loaded.chat.digest,
        "items": "em240",
        "runs": len(drifts),
        "low": round(min(drifts.values()), 4),
        "high": round(max(drifts.values()), 4),
        "about": f"careful and brash arms of finance and sports, {spec.train.steps} steps, base - arm on em240 in nats per token, lowest to highest run",
    }
    others = [b for b in json.loads((FILES / "benign_bands.json").read_text()) if b["base_digest"] != band["base_digest"]]
    (FILES / "benign_bands.json").write_text(json.dumps([*others, band], indent=1) + "\n")


if __name__ == "__main__":
    main()
