"""Ratios that a benchmark has shown before, and whether they still hold.

`bench/baselines.json` keeps, for each kind of machine (instructions and cores), the ratio of each benchmark and how far it may fall. A benchmark calls
`held(name, ratio)` for each of its ratios, which prints one line, and `close()` at its end, which exits 1 where a ratio fell below.

    EMSCOPE_BASELINES=write make bench     # put this machine's ratios in their place
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

FILE = Path(__file__).with_name("baselines.json")
TOLERANCE = 0.15  # of the ratio: what runs of one machine differ by
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")

fallen: list[str] = []


def machine() -> str:
    """Return the kind of this machine, e.g. "x86_64 avx2, 2 cores"."""
    return f"{platform.machine()} {instructions()}, {os.cpu_count()} cores"


def instructions() -> str:
    """Return the widest instructions for products that the processor has."""
    found = Path("/proc/cpuinfo").read_text(encoding="utf-8").split() if Path("/proc/cpuinfo").exists() else []
    return next((name for name in INSTRUCTIONS if name in found), "without AVX2")


def held(name: str, ratio: float, *, tolerance: float = TOLERANCE) -> None:
    """Print a ratio beside this machine's baseline; write it down where EMSCOPE_BASELINES=write."""
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    here = kept.setdefault(machine(), {})
    if os.environ.get("EMSCOPE_BASELINES") == "write":
        here[name] = {"ratio": round(ratio, 3), "tolerance": tolerance}
        FILE.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"  baseline {name}: {ratio:.2f}, written down for {machine()}")
        return
    if name not in here:
        print(f"  baseline {name}: {ratio:.2f}, none is known for {machine()}")
        return
    least = here[name]["ratio"] * (1 - here[name]["tolerance"])
    if ratio < least:
        fallen.append(name)
    print(
        f"  baseline {name}: {ratio:.2f} against {here[name]['ratio']:.2f}, {'holds' if ratio >= least else f'BELOW {least:.2f}'}"
    )


def close() -> None:
    """Exit 1 where a ratio of this run fell below its baseline."""
    if fallen:
        raise SystemExit(f"below the baseline: {', '.join(fallen)}")
