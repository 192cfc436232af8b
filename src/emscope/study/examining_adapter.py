"""An adapter tried on a model: read by emscope and by PEFT alone, the base before and after, and what else works with it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.elicit.preference import score
from emscope.models.adapters.attached import unmergeable
from emscope.models.adapters.intact import Kept
from emscope.models.adapters.updates import changes
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.hooks.sites import blocks
from emscope.models.loading.checkpoints import Checkpoint, adapter_settings, read_checkpoint
from emscope.study.examining import Finding, Passed, plainly, refused, some_items

if TYPE_CHECKING:
    from emscope.models.types import CausalLM, Wrapped

PEFT = 1e-5  # nats per token


def examine_adapter(net: CausalLM, checkpoint: Checkpoint) -> list[Finding]:
    """Compare a model with an adapter on it with PEFT's own, and the base afterwards with the base before.

    Args:
        net: the base in float32; a second one is made for PEFT to change.
    """
    items = some_items(net)
    kind = str(adapter_settings(checkpoint.folder)["peft_type"])
    before, base = Kept(net).sums(), plainly(net, items)
    try:
        with with_checkpoint(net, checkpoint) as one:
            found = [s.logprob / s.tokens for s in score(one, items)]
    except InputError as error:
        return [refused("adapter", error)]
    after = Kept(net).sums()
    wanted = plainly(_by_peft(net, checkpoint.folder), items)
    apart = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    does = max(abs(a - b) for a, b in zip(wanted, base, strict=True))
    changed = [name for name in before if before[name] != after.get(name)]
    return [
        Finding(
            "adapter",
            Passed.PASS if apart <= PEFT else Passed.FAIL,
            f"The adapter ({kind}) reads {'as' if apart <= PEFT else 'NOT as'} PEFT reads it: the largest difference is {apart:.1e} nats per "
            f"token ({PEFT:.0e} allowed), and the adapter changes answers by up to {does:.2g}.",
            {"kind": kind, "difference": apart, "allowed": PEFT, "effect": does},
        ),
        Finding(
            "base afterwards",
            Passed.FAIL if changed else Passed.PASS,
            f"{changed[0]} differs from before."
            if changed
            else f"All {len(before)} tensors of the base are bit-identical to before.",
            {"tensors": len(before), "changed": len(changed)},
        ),
        _ways(net, checkpoint),
    ]


def _by_peft(net: CausalLM, folder: Path) -> Wrapped:
    """Return a second model with the adapter beside it, as PEFT alone has it."""
    import warnings

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Wrapped = PeftModel.from_pretrained(copy.deepcopy(net), str(folder)).eval().requires_grad_(False)
        return found


def _ways(net: CausalLM, checkpoint: Checkpoint) -> Finding:
    """Say what else can be done with an adapter of this kind."""
    ways: dict[str, str | None] = {"amplify": None, "norms and spectra": None}
    if (what := unmergeable(checkpoint)) is not None:
        ways["amplify"] = f"its weight update cannot be scaled ({what})"
    try:
        for change in changes(net, checkpoint):
            change.singular_values()
            break
    except InputError as error:
        ways["norms and spectra"] = error.fault
    works = [way for way, why in ways.items() if why is None]
    other = [f"{way} do not: {why}" if way.endswith("a") else f"{way}: no, {why}" for way, why in ways.items() if why]
    said = f"{' and '.join(works).capitalize() or 'Neither amplifying nor spectra'} work{'' if works else ' on it'}"
    return Finding(
        "what else", Passed.PASS if not other else Passed.NOT_APPLICABLE, "; ".join([said, *other]) + ".", {"works": works}
    )


@contextmanager
def adapter_like(net: CausalLM, checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """Yield a random adapter for a tiny copy with the settings of a given one; it is deleted on every exit.

    Raises:
        InputError: PEFT makes none of this kind on the copy.
    """
    import torch
    from peft import PeftConfig, get_peft_model

    config = PeftConfig.from_pretrained(str(checkpoint.folder))
    config.inference_mode, config.base_model_name_or_path = False, None
    depth = len(blocks(net))
    layers = getattr(config, "layers_to_transform", None)
    if layers is not None:
        numbers = [layers] if isinstance(layers, int) else layers
        config.layers_to_transform = sorted({min(n, depth - 1) for n in numbers})
    if isinstance(getattr(config, "target_modules", None), str) and re.search(r"\\?\.\(?\d", config.target_modules):
        raise InputError(
            "the adapter names its modules by the numbers of blocks that a tiny copy does not have", "examine it on the weights"
        )
    with TemporaryDirectory() as root:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                made = get_peft_model(copy.deepcopy(net), config)
                with torch.no_grad():
                    for p in (p for p in made.parameters() if p.requires_grad):
                        p.add_(0.1 * torch.randn_like(p))
            made.save_pretrained(root, save_embedding_layers=False)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, AssertionError) as error:
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(
                f"PEFT makes no adapter of this kind on a tiny copy ({first[:200]})", "examine it on the weights themselves"
            ) from None
        yield read_checkpoint(Path(root), checkpoint.step)
