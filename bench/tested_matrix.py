"""Write the list of what emscope is tested on, from the tests' own lists: every case in it is run here first.

    python bench/tested_matrix.py [--check]

Each architecture of tests/test_architectures.py is read packed or plainly, written greedily, edited at each site and read with a LoRA
adapter; each kind of adapter of tests/adapters.py is read on a tiny model. All are held against plain transformers and PEFT. What
does not agree is not listed, and said.
`--check` writes nothing and fails where the shipped file is not what this makes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402

from adapters import EXPERTS, configs, make_tiny, with_peft, write_adapter  # noqa: E402
from emscope.core.plain import JsonObject  # noqa: E402
from emscope.elicit.preference import score  # noqa: E402
from emscope.models.adapters.with_checkpoint import with_checkpoint  # noqa: E402
from emscope.models.hooks.sites import SITES  # noqa: E402
from emscope.models.loading.checkpoints import read_checkpoint  # noqa: E402
from emscope.models.loading.load import load_net  # noqa: E402
from emscope.models.loading.quiet import quiet  # noqa: E402
from emscope.models.sizing.simulated import whole_model  # noqa: E402
from emscope.study.doctor import MATRIX, VERSIONS  # noqa: E402
from emscope.study.examining import Passed, cached_writing, causal_edit, packed_reading  # noqa: E402
from test_architectures import ITEMS, KINDS, plainly  # noqa: E402

if TYPE_CHECKING:
    from emscope.models.types import CausalLM

FILE = ROOT / "src" / "emscope" / "study" / "files" / MATRIX
NEAR = 1e-5  # nats a token
COMMON = ("llama", "qwen2", "gemma3_text")  # that the tests of adapters use, beside those of the architectures


def main() -> None:
    """Run every case and write the list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    quiet()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        found = {
            "versions": {name: version(name).partition("+")[0] for name in VERSIONS},
            "architectures": architectures(Path(root)),
            "adapters": adapters(Path(root)),
        }
    text = json.dumps(found, indent=1) + "\n"
    print(
        f"{len(found['architectures'])} of {len(KINDS) + len(COMMON)} architectures and {len(found['adapters'])} of {len(configs())} kinds of adapters",
        end=" ",
    )
    print(f"in {time.monotonic() - began:.0f} s")
    if args.check:
        sys.exit(0 if FILE.is_file() and FILE.read_text(encoding="utf-8") == text else f"{FILE} is not what this makes")
    FILE.write_text(text, encoding="utf-8")


def architectures(root: Path) -> list[JsonObject]:
    """Return a row for each architecture that reads, writes and takes an adapter as transformers and PEFT do."""
    rows = []
    for name, kind in KINDS.items():
        torch.manual_seed(0)
        net = whole_model(kind.config())
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(3.0) if p.ndim >= 2 else p.add_(0.2 * torch.randn_like(p))
        folder = root / name.replace(" ", "-").replace(",", "")
        net.save_pretrained(folder)
        rows += architecture(name, folder, kind.targets)
    for name in COMMON:
        rows += architecture(name, make_tiny(name, root / f"common-{name}"), ("q_proj", "v_proj"))
    return rows


def architecture(name: str, folder: Path, targets: Sequence[str]) -> list[JsonObject]:
    """Return one row, none where a reading is not what transformers or PEFT gives."""
    import peft

    net = load_net(folder).eval().requires_grad_(False)
    reading, writing = packed_reading(net), cached_writing(net)
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM")
    adapter = write_adapter(folder, folder / "adapter", settings)
    apart = difference(net, with_peft(folder, adapter), adapter)
    if not reading.outcome == writing.outcome == Passed.PASS or apart > NEAR:
        print(f"NOT as transformers has it: {name} ({reading.sentence} {writing.sentence} adapter {apart:.1e})")
        return []
    kind = str(net.config.get_text_config().model_type)
    sites = [site for site in SITES if causal_edit(net, site).outcome == Passed.PASS]
    if len(sites) < len(SITES):
        print(f"{name}: no site {', '.join(s for s in SITES if s not in sites)}")
    way = {"packed": reading.figures["packed"], "writing": writing.figures["way"]}
    return [{"name": name, "model_type": kind, **way, "sites": sites, "adapter": "LORA"}]


def adapters(root: Path) -> list[JsonObject]:
    """Return a row for each kind of adapter that reads as PEFT reads it."""
    bases = {"llama": make_tiny("llama", root / "llama"), "qwen3_moe": make_tiny("qwen3_moe", root / "moe")}
    nets = {kind: load_net(folder).eval().requires_grad_(False) for kind, folder in bases.items()}
    rows = []
    for name, config in configs().items():
        kind = "qwen3_moe" if name in EXPERTS else "llama"
        folder = write_adapter(bases[kind], root / f"adapter-{name.replace(' ', '-')}", config)
        apart = difference(nets[kind], with_peft(bases[kind], folder), folder)
        if apart <= NEAR:
            rows.append({"name": name, "peft_type": config.peft_type.value, "on": kind})
        else:
            print(f"NOT as PEFT has it: {name} ({apart:.1e} nats a token)")
    return rows


def difference(net: CausalLM, other: CausalLM, adapter: Path) -> float:
    """Return how far a model with an adapter on it is from PEFT's own, in nats a token."""
    wanted = plainly(other)
    with with_checkpoint(net, read_checkpoint(adapter, 1)) as changed:
        found = score(changed, ITEMS)
    return max(abs(s.logprob - w) / s.tokens for s, w in zip(found, wanted, strict=True))


if __name__ == "__main__":
    main()
