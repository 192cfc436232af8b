"""How a model and its fine-tunes are asked: by the chat template that checkpoints carry beside their weights, else by the model's own."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.limits import strangers
from emscope.core.plain import Json, JsonObject
from emscope.models.loading.chat import NONE, ChatFormat
from emscope.models.loading.checkpoints import Checkpoint
from emscope.models.loading.source import Model

if TYPE_CHECKING:
    from emscope.models.types import Tokenizer

OWN = "the checkpoint's own template"
TEMPLATE_FILE, TOKENIZER_FILE = "chat_template.jinja", "tokenizer_config.json"
UNUSUAL = "a B9\n\té \u6f22\u5b57 \U0001f642 \u200d \x07"  # a tokenizer that has no token for some of it must have one for the unknown
LONGEST_PIECE = 10_000  # characters; the longest pattern in use has a few hundred
NAMED_TOKENS = ("bos_token", "eos_token")


@dataclass(frozen=True, slots=True)
class Carried:
    """A chat template in a folder: its text, or texts by name, and what that folder's tokenizer calls its first and last token."""

    folder: Path
    template: str | dict[str, str]
    tokens: tuple[tuple[str, str], ...] = ()

    def known_to(self, tokenizer: Tokenizer) -> bool:
        """Tell whether a tokenizer has the tokens that this one names."""
        return all(token in tokenizer.get_vocab() for _, token in self.tokens)

    def put_on(self, tokenizer: Tokenizer) -> Tokenizer:
        """Give a tokenizer this template and these tokens, and return it."""
        tokenizer.chat_template = self.template
        for name, token in self.tokens:
            setattr(tokenizer, name, token)
        return tokenizer


def chat_of(
    model: Model, system: str = NONE, chat_kwargs: Mapping[str, Json] | None = None, checkpoints: Sequence[Checkpoint] = ()
) -> ChatFormat:
    """Return how `model` and its fine-tunes are asked.

    Args:
        system: as `ChatFormat` has it. chat_kwargs: given to the chat template.

    Raises:
        InputError: no usable tokenizer or template, or checkpoints whose templates show a question in different ways.
    """
    found = carried(model.folder, checkpoints)
    tokenizer = _padded(copy.deepcopy(model.held[1])) if model.held else tokenizer_in(model.folder)
    if not found:
        return ChatFormat.of(tokenizer, system, chat_kwargs)
    own = _digest(tokenizer, system, chat_kwargs)
    if not found[0].known_to(tokenizer):  # it has tokens of its own
        tokenizer = tokenizer_in(found[0].folder)
    digests = [_digest(one.put_on(tokenizer), system, chat_kwargs) for one in found]
    other = next((one for one, digest in zip(found, digests, strict=True) if digest != digests[0]), None)
    if other:
        raise InputError(
            f"'{found[0].folder}' and '{other.folder}' carry chat templates that ask in different ways",
            "read them in two calls, or put the right template into both",
        )
    return ChatFormat.of(found[0].put_on(tokenizer), system, chat_kwargs, OWN if digests[0] != own else "")


def tokenizer_in(folder: Path) -> Tokenizer:
    """Return the tokenizer in a folder, with a padding token set.

    Raises:
        InputError: where the folder has none.
    """
    from transformers import AutoTokenizer

    with strangers(f"'{folder}' has no usable tokenizer", "put the base model's tokenizer files into it"):
        tokenizer = _padded(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True))
        _refuse_swelling(getattr(tokenizer, "backend_tokenizer", None))
        if not tokenizer(UNUSUAL, add_special_tokens=False)["input_ids"]:
            raise ValueError("it makes no tokens of plain text")
    return tokenizer


def _refuse_swelling(core: object) -> None:
    """Reject a tokenizer that puts long texts into every text.

    Raises:
        ValueError: naming the part.
    """
    for name in ("normalizer", "pre_tokenizer", "post_processor"):
        part = getattr(core, name, None)
        state = json.loads(part.__getstate__()) if part is not None else None
        if state is not None and _longest(state) > LONGEST_PIECE:
            raise ValueError(f"its {name} holds a text of {_longest(state)} characters")


def _longest(value: object) -> int:
    """Return the length of the longest text inside plain values, tables of characters aside."""
    if isinstance(value, dict):
        return max((_longest(one) for key, one in value.items() if key != "precompiled_charsmap"), default=0)
    if isinstance(value, list):
        return max(map(_longest, value), default=0)
    return len(value) if isinstance(value, str) else 0


def _padded(tokenizer: Tokenizer) -> Tokenizer:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def carried(base: Path, checkpoints: Sequence[Checkpoint]) -> list[Carried]:
    """Return the templates that checkpoints carry and that differ from their base's, each once, in the checkpoints' order.

    A checkpoint without one, as adapters often are, says nothing about it.
    """
    own = read_carried(base)
    found: list[Carried] = []
    for checkpoint in checkpoints:
        one = read_carried(checkpoint.folder) or read_carried(checkpoint.place)
        if one is None and re.fullmatch(r"\w*?[-_]?\d+", checkpoint.place.name):  # some tools write it beside the checkpoints
            one = read_carried(checkpoint.place.parent)
        if one and not any(_same(one, other) for other in (own, *found)):
            found.append(one)
    return found


def read_carried(folder: Path) -> Carried | None:
    """Return the chat template in a folder, None where it has none."""
    settings = _json(folder / TOKENIZER_FILE)
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {
            one["name"]: one["template"] for one in template if isinstance(one, dict) and {"name", "template"} <= one.keys()
        }
    if (folder / TEMPLATE_FILE).is_file():
        template = (folder / TEMPLATE_FILE).read_text(encoding="utf-8", errors="replace")
    if isinstance(template, dict):
        template = {str(name): text for name, text in template.items() if isinstance(text, str)}
    if not template or not isinstance(template, str | dict):
        return None
    tokens = ((name, _token(settings.get(name))) for name in NAMED_TOKENS)
    return Carried(folder, template, tuple((name, token) for name, token in tokens if token))


def _digest(tokenizer: Tokenizer, system: str, chat_kwargs: Mapping[str, Json] | None) -> str:
    """Return the digest of a format, or what is wrong with it."""
    try:
        return ChatFormat.of(tokenizer, system, chat_kwargs).digest
    except InputError as error:
        return error.fault


def _same(one: Carried, other: Carried | None) -> bool:
    return other is not None and _text(one.template) == _text(other.template)


def _text(template: str | dict[str, str]) -> str:
    text = template if isinstance(template, str) else template.get("default", json.dumps(template))
    return text.strip()


def _token(value: Json) -> str:
    return str(value.get("content", "") if isinstance(value, dict) else value or "")


def _json(path: Path) -> JsonObject:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
