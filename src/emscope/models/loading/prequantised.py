"""Quantised bases: which package reads them, and the likely name of the model they were made from."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

from emscope.core.errors import InputError, MissingDependency
from emscope.core.plain import JsonObject

# By quant_method in config.json, as transformers asks for them: modules, and what pip installs.
READERS = {
    "bitsandbytes": (("bitsandbytes",), "'emscope[qlora]'"),
    "gptq": (("optimum", "gptqmodel"), "optimum gptqmodel"),
    "awq": (("gptqmodel",), "gptqmodel"),
    "compressed-tensors": (("compressed_tensors",), "compressed-tensors"),
    "torchao": (("torchao",), "torchao"),
    "auto-round": (("auto_round",), "auto-round"),
    "aqlm": (("aqlm",), "'aqlm[gpu,cpu]'"),
    "hqq": (("hqq",), "hqq"),
    "quanto": (("optimum", "optimum.quanto"), "optimum-quanto"),
    "quark": (("quark",), "amd-quark"),
    "vptq": (("vptq",), "vptq"),
}
IN_NAMES = {"bnb": "bitsandbytes", "gptq": "gptq", "awq": "awq"}  # words of a name that identify the method
STORED = r"bnb|[2348]bit|gptq|awq|hqq|aqlm|int[48]|fp8|nvfp4|mxfp[48]|w\d+a\d+(?:kv8)?|quantized"
BESIDE = r"unsloth|dynamic|block|static|torchao|marlin|sym|g(?:32|64|128)|(?:32|64|128)g"
TAIL = re.compile(rf"(?:[-_.](?:{STORED}|{BESIDE}))+$", re.IGNORECASE)
# They publish quantised copies of others' models, and not the models themselves.
REPACKERS = {
    "thebloke",
    "redhatai",
    "neuralmagic",
    "mlx-community",
    "hugging-quants",
    "modelcloud",
    "nm-testing",
    "casperhansen",
}


def unquantised(name: str) -> str | None:
    """Return the likely name of the model behind a quantised one; None where the name does not show it.

    Args:
        name: a hub id (perhaps with @revision) or a folder; where the owner only repacks models, and for a folder, the model's name alone comes back.
    """
    plain = name.removeprefix("hf:").partition("@")[0].replace("\\", "/").rstrip("/")
    tail = TAIL.search(plain)
    if not tail or not re.search(rf"[-_.](?:{STORED})(?![a-z0-9])", tail.group(), re.IGNORECASE):
        return None
    owner, _, model = plain[: tail.start()].rpartition("/")
    return f"{owner}/{model}" if owner and "/" not in owner and owner.lower() not in REPACKERS else model or None


def hub_name(path: str) -> str | None:
    """Return the `org/repo@revision` that a folder of the hub's cache holds, on whichever machine; None for other paths."""
    found = re.search(r"models--([^/\\]+?)--([^/\\]+)(?:[/\\]snapshots[/\\]([0-9a-f]{40}))?", path)
    return f"{found[1]}/{found[2]}{f'@{found[3]}' if found[3] else ''}" if found else None


def instead(name: str) -> str:
    """Return the remedy for a quantised base that cannot be read."""
    likely = unquantised(hub_name(name) or name)
    return f"give the unquantised base with `base`{f', likely {likely}' if likely else ''}"


def method_of(folder: Path) -> str | None:
    """Return how the weights in a model's folder are quantised, by transformers' name for it; None where they are not."""
    settings = _config(folder)
    text = settings.get("text_config")
    about = settings.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not isinstance(about, dict):
        return None
    if about.get("load_in_4bit") or about.get("load_in_8bit"):
        return "bitsandbytes"
    return str(about.get("quant_method") or "unknown")


def refuse_unreadable(folder: Path) -> None:
    """Reject a quantised model that no package here reads.

    Raises:
        MissingDependency: naming the package, how to install it, and what to give instead.
    """
    method = method_of(folder)
    if method:
        _refuse(method, f"'{folder}' is", str(folder))


def refuse_unreadable_name(name: str) -> None:
    """Reject a hub id whose name says that no package here reads it, before gigabytes are fetched.

    Raises:
        MissingDependency: as `refuse_unreadable`.
    """
    tail = TAIL.search(name.partition("@")[0])
    words = re.split(r"[-_.]", tail.group().lower()) if tail else []
    for word in words:
        if word in IN_NAMES:
            _refuse(IN_NAMES[word], f"'{name}' is, as its name says,", name)


def _refuse(method: str, what: str, name: str) -> None:
    modules, line = READERS.get(method, ((), ""))
    missing = next((module for module in modules if not _is_installed(module)), None)
    if missing:
        raise MissingDependency(
            f"{what} quantised with {method}, but {missing}, which reads that, is not installed",
            f"pip install {line}, or {instead(name)}",
        )


def unloadable(folder: Path, reason: str) -> InputError:
    """Return the error for a quantised model that its package does not load on this machine."""
    return InputError(
        f"'{folder}' is quantised with {method_of(folder)} and cannot be loaded here ({reason})", instead(str(folder))
    )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a part of a package that is not there
        return False


def _config(folder: Path) -> JsonObject:
    try:
        read = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
