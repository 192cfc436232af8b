"""`emscope doctor`: what this machine has, and how fast it is."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("doctor", help="Show versions, device, cache, and the machine's matrix-multiplication rate.")
    def doctor(json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
        import torch

        from emscope.cli.console import print_json
        from emscope.core.versions import versions
        from emscope.models.fast.matmul_rate import matmul_gflops
        from emscope.models.loading.aliases import ALIASES, cached
        from emscope.models.loading.load import HALVES, is_quick, pick_device
        from emscope.models.loading.source import cache_folder

        found = {
            "versions": versions(),
            "device": pick_device("auto"),
            "threads": torch.get_num_threads(),
            "matmul_gflops": round(matmul_gflops(), 1),
            "quick_16_bit": [d for d in HALVES if is_quick(d, pick_device("auto"))],
            "cache": str(cache_folder()),
            "cached_models": [n for n in ALIASES if cached(n, cache_folder())],
        }
        if json:
            print_json(found)
            return
        for name, value in found.items():
            listed = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
            print(f"{name:14} {', '.join(listed) or 'none' if isinstance(listed, list) else value}")
