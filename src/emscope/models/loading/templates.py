"""Turns as text: by a tokenizer's chat template, or as plain text without one.

A template is rendered by transformers with the user's own arguments, with the content as text or as parts, whichever it reads, and with a
frozen clock: a prompt that contains today's date would be different tomorrow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Protocol

from emscope.core.errors import InputError
from emscope.core.limits import TooMuch, bounded
from emscope.core.plain import Json, JsonObject

if TYPE_CHECKING:
    from emscope.models.types import Tokenizer

Turn = tuple[str, str]  # role, text
USER, ANSWER = "emscopeusermark", "emscopeanswermark"
TODAY = datetime(2024, 7, 26, 12)  # the date that Llama 3's templates use without a clock
CLOCK = "strftime_now"
DIRECTIVES = ("%-d", "%-m", "%-H", "%-I", *(f"%{c}" for c in "aAbBcdeDFHIjmMpSTUwWxXyY"))
RESERVED = {
    "messages",
    "conversation",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    CLOCK,
}
RESERVED |= {"tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
RESERVED |= {"return_assistant_tokens_mask", "tokenizer_kwargs"}
SECONDS, BYTES, LONGEST = 5.0, 2**28, 2**22  # limits of one rendering, and of the characters that it adds to its turns
SHORT = 10_000  # characters of turns that any sound template renders quickly
ENDLESS: dict[str, str] = {}  # templates over a limit for short turns, and which limit
WORDS = {"True": True, "False": False, "None": None}
MEND = "fix chat_template.jinja (or tokenizer_config.json) in the model's folder"


class Template(Protocol):
    """Turns rendered as text. `style` is `chat` or `plain`; `arguments` are what the user gives a template."""

    @property
    def style(self) -> str: ...
    @property
    def arguments(self) -> Mapping[str, Json]: ...
    def render(self, turns: Sequence[Turn], *, prompt: bool = False) -> str:
        """Return the text of `turns`; with `prompt`, also the template's generation prompt."""
        ...

    def dated(self, text: str) -> bool:
        """Tell whether a rendered text contains the frozen date."""
        ...


@dataclass(frozen=True, slots=True)
class Jinja:
    """The chat template of a tokenizer; `parts` says that it reads content in parts, and ignores plain text."""

    tokenizer: Tokenizer
    text: str
    arguments: Mapping[str, Json]
    parts: bool = False
    style: str = "chat"

    def render(self, turns: Sequence[Turn], *, prompt: bool = False) -> str:
        """Return the text of `turns`; with `prompt`, also the template's generation prompt.

        Raises:
            InputError: the template is not valid Jinja, or rejects these turns.
        """
        from jinja2 import TemplateSyntaxError

        messages = [{"role": r, "content": [{"type": "text", "text": t}] if self.parts else t} for r, t in turns]
        template = _clock() + self.text if CLOCK in self.text else self.text
        try:
            if template in ENDLESS:  # do not wait for it twice
                raise TooMuch(ENDLESS[template])
            with bounded(SECONDS, BYTES):
                text = str(
                    self.tokenizer.apply_chat_template(
                        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt, **self.arguments
                    )
                )
            if len(text) > LONGEST + 20 * sum(len(t) for _, t in turns):
                raise ValueError(f"it turns them into {len(text)} characters")
            return text
        except TemplateSyntaxError as error:
            raise InputError(
                f"this model's chat template is not valid Jinja (line {error.lineno}: {error.message})", MEND
            ) from None
        except Exception as error:  # templates raise errors of their own choosing
            if isinstance(error, TooMuch) and sum(len(text) for _, text in turns) < SHORT:
                ENDLESS[template] = str(error)
            asked = ", ".join(role for role, _ in turns)
            said = str(error).strip() or type(error).__name__
            raise InputError(f"this model's chat template fails on turns of {asked} ({said})", MEND) from None

    def dated(self, text: str) -> bool:
        """Tell whether a rendered text contains the frozen date."""
        formats = re.findall(CLOCK + r"""\(\s*["'](.+?)["']""", self.text)
        return any(TODAY.strftime(f) in text for f in formats)

    def fault(self) -> str | None:
        """Return what is wrong with how it shows a question and an answer; None where each appears once, in order."""
        try:
            text = self.render([("user", USER), ("assistant", ANSWER)])
        except InputError as error:
            return error.fault
        for what, mark in (("the question", USER), ("the answer", ANSWER)):
            if text.count(mark) != 1:
                return f"this model's chat template {'repeats' if mark in text else 'leaves out'} {what}"
        if text.index(USER) > text.index(ANSWER):
            return "this model's chat template puts the answer before the question"
        return None


@dataclass(frozen=True, slots=True)
class Plain:
    """`Question: … Answer:`, for models without a chat template (Zhang et al. 2026): `begin` is what their tokenizer prepends, `close` ends an answer."""

    begin: str
    close: str
    arguments: Mapping[str, Json] = field(default_factory=dict)
    style: str = "plain"

    def render(self, turns: Sequence[Turn], *, prompt: bool = False) -> str:
        """Return the text of `turns`."""
        parts: list[str] = []
        for role, text in turns:
            if role == "assistant":
                parts[-1] += f" {text}{self.close}"
            else:
                parts.append(f"Question: {text}\n\nAnswer:" if role == "user" else text)
        return self.begin + "\n\n".join(parts)

    def dated(self, text: str) -> bool:
        """Return False: it shows no date."""
        return False


def template_of(tokenizer: Tokenizer, arguments: Mapping[str, Json]) -> Template:
    """Return how a tokenizer renders turns as text.

    Raises:
        InputError: a template that is broken, leaves out or repeats a question or an answer, or does not read an argument.
    """
    if not tokenizer.chat_template:
        if arguments:
            raise InputError(f"this model has no chat template to receive {_listed(arguments)}", "leave out the chat arguments")
        return Plain(prepended(tokenizer), tokenizer.eos_token or "")
    text = _chosen(tokenizer.chat_template)
    _check_arguments(text, arguments)
    found = [Jinja(tokenizer, text, dict(arguments), parts) for parts in (False, True)]
    faults = [one.fault() for one in found]
    for one, fault in zip(found, faults, strict=True):
        if fault is None:
            return one
    raise InputError(faults[0] or "", MEND)


def prepended(tokenizer: Tokenizer) -> str:
    """Return what a tokenizer puts before every text, such as the beginning-of-text token."""
    with_it = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    places = [n for n in range(len(with_it) - len(bare) + 1) if with_it[n : n + len(bare)] == bare]
    return str(tokenizer.decode(with_it[: places[0]])) if places and places[0] else ""


def read_arguments(texts: Iterable[str]) -> JsonObject:
    """Return NAME=VALUE texts as arguments of a template: JSON values, Python's True, False and None, else the text itself.

    Raises:
        InputError: one does not have that form, or a name appears twice.
    """
    found: JsonObject = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise InputError(f"the chat argument is '{text}'", "write it as NAME=VALUE, such as enable_thinking=false")
        if name in found:
            raise InputError(f"the chat argument '{name}' is given twice", "give it once")
        found[name] = _value(value)
    return found


def described(arguments: Mapping[str, Json]) -> str:
    """Return arguments as a user writes them."""
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in arguments.items())


def _value(text: str) -> Json:
    if text in WORDS:
        return WORDS[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _chosen(template: str | Mapping[str, str]) -> str:
    if isinstance(template, str):
        return template
    if "default" not in template:
        raise InputError(
            f"this tokenizer has chat templates named {_listed(template)} but none named 'default'",
            "name the one that the model was trained with 'default' in tokenizer_config.json",
        )
    return template["default"]


def _check_arguments(template: str, arguments: Mapping[str, Json]) -> None:
    for name in arguments:
        if name in RESERVED:
            raise InputError(f"the chat argument '{name}' is reserved", "leave it out")
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise InputError(
                f"this model's chat template does not read '{name}'",
                "check the name in its chat_template.jinja, or leave it out",
            )


@cache
def _clock() -> str:
    """Return a Jinja macro that takes the clock's place: transformers does not pass functions of ours to a template."""
    steps = "".join(f' | replace("{d}", "{_directive(d)}")' for d in DIRECTIVES)
    return f"{{%- macro {CLOCK}(format) -%}}{{{{- format{steps} -}}}}{{%- endmacro %}}"


def _directive(name: str) -> str:
    if name.startswith("%-"):  # not known to every platform's own formatting
        return TODAY.strftime(name.replace("-", "")).lstrip("0")
    return {"%e": "26", "%D": "07/26/24", "%F": "2024-07-26", "%T": "12:00:00"}.get(name) or TODAY.strftime(name)
