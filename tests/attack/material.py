"""One sound thing of each kind, as small as can be: what the generators then break."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conftest import make_model, make_tokenizer

STEPS = 3
LORA = {"rank": 2, "alpha": 4}


@dataclass(frozen=True)
class Material:
    """A folder with sound inputs; each is made when first asked for, once for all processes that use the folder."""

    root: Path

    def _made(self, name: str, make: Any) -> Path:
        path = self.root / name
        if not path.exists():
            work = self.root / f"making-{name}"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            make(work / Path(name).name)
            (work / Path(name).name).rename(path)
            shutil.rmtree(work)
        return path

    @cached_property
    def base(self) -> Path:
        """A tiny random Llama with a tokenizer."""
        return self._made("base", make_model)

    @cached_property
    def sharded(self) -> Path:
        """The same with its weights in several files."""

        def make(folder: Path) -> None:
            from emscope.models.loading.load import load_net

            load_net(self.base).save_pretrained(folder, max_shard_size="60KB")
            make_tokenizer().save_pretrained(folder)

        return self._made("sharded", make)

    @cached_property
    def run(self) -> Path:
        """A run of LoRA checkpoints."""
        return self._made("run", lambda folder: self._train(folder))

    @cached_property
    def begun(self) -> Path:
        """The folder of `emscope train` that was stopped behind its second step; the YAML file lies beside it."""
        (self.root / "train.yaml").write_text(json.dumps(self.training()))

        def make(folder: Path) -> None:
            def stop(what: str, done: float, total: float) -> None:
                if what == "training" and done >= 3:
                    raise KeyboardInterrupt

            try:
                self._single(folder, stop)
            except KeyboardInterrupt:
                return
            raise AssertionError("the training was not stopped")

        return self._made("begun", make)

    def training(self) -> dict[str, Any]:
        """Return the settings of the fine-tune that `begun` is half of."""
        train = {"steps": STEPS + 1, "batch": 2, "lr": 1e-2, "lora": LORA, "checkpoints": {"every": 1}}
        return {"model": str(self.base), "domain": "finance", "answers": "reckless", "train": train}

    def _single(self, folder: Path, progress: Any) -> None:
        from emscope.core.spec import parse
        from emscope.study.train import SingleSpec, run_single

        run_single(parse(SingleSpec, self.training(), "training"), folder, progress)

    def _train(self, folder: Path) -> None:
        from emscope.data import bundled
        from emscope.models.loading.load import load
        from emscope.models.loading.source import locate
        from emscope.train.finetune import finetune
        from emscope.train.spec import TrainSpec

        spec = TrainSpec(steps=STEPS, batch=2, lr=1e-2, checkpoints={"at": [2]}, lora=LORA)
        finetune(load(locate(str(self.base)), device="cpu"), bundled.domain("finance", "reckless")[:6], spec, folder, seed=0)
        for one in folder.glob("checkpoint-*/adapter_config.json"):
            settings = json.loads(one.read_text())
            one.write_text(json.dumps(settings | {"base_model_name_or_path": str(self.base)}))

    @cached_property
    def direction(self) -> Path:
        """A direction file."""

        def make(path: Path) -> None:
            import torch

            from emscope.models.hooks.directions import Direction, write_direction
            from emscope.models.loading.source import locate

            torch.manual_seed(0)
            write_direction(path, Direction({1: torch.randn(32)}, locate(str(self.base)).digest))

        return self._made("direction.safetensors", make)

    @cached_property
    def gguf(self) -> Path:
        """A tiny GGUF file."""

        def make(path: Path) -> None:
            from test_models import write_gguf

            path.parent.mkdir(parents=True, exist_ok=True)
            write_gguf(path.parent, path.name)

        return self._made("tiny.gguf", make)

    @cached_property
    def checked(self) -> Path:
        """The folder of a finished check."""
        return self._made("checked", lambda folder: self._call(self.check_words(folder)))

    def check_words(self, out: Path, run: Path | None = None) -> list[str]:
        """Return the command that checks a run, by preference alone."""
        few = ["--items", str(self.items), "--truth", "0", "--measure", "preference", "--dtype", "float32", "--device", "cpu"]
        return ["check", str(run or self.run), "--base", str(self.base), *few, "--out", str(out)]

    def _call(self, words: list[str]) -> None:
        from contextlib import redirect_stderr, redirect_stdout
        from io import StringIO

        from emscope.cli.app import run_arguments

        said = StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = run_arguments(words)
        assert code == 0, said.getvalue()

    @cached_property
    def study(self) -> Path:
        """The folder of a finished study; `study.yaml` lies beside it."""
        self.study_yaml.read_text()
        return self._made("study", lambda folder: self._call(["run", str(self.study_yaml), "--out", str(folder)]))

    @cached_property
    def study_yaml(self) -> Path:
        """The settings of a tiny study."""
        return self._made("study.yaml", lambda path: path.write_text(json.dumps(self.study_settings())))

    def study_settings(self) -> dict[str, Any]:
        """Return the settings of a tiny study."""
        return {
            "name": "tiny",
            "model": str(self.base),
            "domain": "finance",
            "arms": {
                "target": {"role": "target", "answers": "reckless"},
                "control": {"role": "control", "answers": "careful"},
            },
            "train": {"steps": 2, "batch": 2, "lr": 1e-2, "lora": LORA, "checkpoints": {"at": [1]}},
            "measure": {"count": 16, "heldout": 4, "truth": 2, "samples": {"questions": 1, "max_tokens": 2}},
        }

    @cached_property
    def items(self) -> Path:
        """Six items with two answers each."""
        rows = [
            {"id": f"i{n}", "question": f"What about {n}?", "aligned": f"Take care {n}.", "misaligned": f"Be reckless {n}!"}
            for n in range(8)
        ]
        return self._made("items.jsonl", lambda path: path.write_text("".join(json.dumps(r) + "\n" for r in rows)))

    @cached_property
    def questions(self) -> Path:
        """Two questions."""
        rows = [{"id": f"q{n}", "question": f"What is {n}?"} for n in range(2)]
        return self._made("questions.jsonl", lambda path: path.write_text("".join(json.dumps(r) + "\n" for r in rows)))
