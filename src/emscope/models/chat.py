"""How a question is put to a model, and which tokens are the answer's.

The system prompt changes rates, so it is always explicit: `none` leaves no system block at all, even where the template
inserts a default one; `template` keeps whatever the template does; anything else is the text itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.records import Conversation, Message

_S, _U, _A, _V = "emscopesystemmark", "emscopeusermark", "emscopeanswermark", "emscopeothermark"


@dataclass(slots=True)
class ChatFormat:
    """Question and answer as token ids for one tokenizer and one system prompt.

    Attributes:
        system: `none`, `template` or a text.
        style: `chat`, or `plain` for models without a chat template (`Question: … Answer:`, P2).
        header: the default system block that `none` takes out of the rendered text.
        close: what the template writes after an assistant's text.
    """

    tokenizer: Any
    system: str
    style: str
    header: str = ""
    close: str = ""
    _prompts: dict[str, list[int]] = field(default_factory=dict)
    _system_place: bool | None = None

    @classmethod
    def of(cls, tokenizer: Any, system: str = "none") -> ChatFormat:
        """Build the format for a tokenizer.

        Raises:
            InputError: where the template has no place for a system text, or its default block cannot be taken out.
        """
        if not tokenizer.chat_template:
            close = tokenizer.eos_token or ""
            return cls(tokenizer, system, "plain", close=close)
        plain = _render(tokenizer, [("user", _U)])
        header = _default_header(tokenizer, plain) if system == "none" else ""
        if system not in ("none", "template"):
            _check_system(tokenizer)
        return cls(tokenizer, system, "chat", header, _answer_close(tokenizer))

    @property
    def digest(self) -> str:
        """Short digest of what the model is shown around a question; stored with every reading."""
        return short([self.style, self.prompt_text([Message("user", _U)]), self.close])

    def describe(self) -> str:
        """Return one line for reports."""
        kind = {"none": "no system block", "template": "the template's default system block"}.get(
            self.system, f"system text {self.system!r}"
        )
        return f"{self.style} format, {kind}"

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Return the text up to where the answer starts; `messages` ends with a user turn."""
        if self.style == "plain":
            return _plain_prompt(self.system, messages, self.close)
        turns = [(m.role, m.content) for m in messages]
        if self.system not in ("none", "template") and turns[0][0] != "system":
            turns = [("system", self.system), *turns]
        text = _render(self.tokenizer, turns, prompt=True)
        if self.header and messages[0].role != "system" and self.header in text:
            text = text.replace(self.header, "", 1)
        return text

    def prompt_ids(self, question: str) -> list[int]:
        """Return the token ids that come before the answer to `question`."""
        if question not in self._prompts:
            self._prompts[question] = self.ids(self.prompt_text([Message("user", question)]))
        return self._prompts[question]

    def answer_ids(self, answer: str, *, closed: bool = False) -> list[int]:
        """Return the token ids of an answer; `closed` adds the end of turn (training), scoring leaves it out."""
        text = f" {answer}" if self.style == "plain" else answer
        return self.ids(text + (self.close if closed else ""))

    def ids(self, text: str) -> list[int]:
        """Tokenize without adding anything."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def training_ids(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation and a mask that is True on assistant tokens (end of turn included).

        Prompt and answer are tokenized apart, as at sampling, so that no token spans the border.

        Raises:
            InputError: an answer that follows no question, a system turn that the template has no place for, or a template
                that rewrites earlier turns.
        """
        self._check_turns(conversation)
        ids: list[int] = []
        mask: list[bool] = []
        seen = ""
        for place, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            prompt = self.prompt_text(conversation.messages[:place])
            if not prompt.startswith(seen):
                raise InputError(
                    f"the chat template rewrites earlier turns of conversation '{conversation.id}'",
                    "split it into single question-answer pairs",
                )
            before, answer = self.ids(prompt[len(seen) :]), self.answer_ids(message.content, closed=True)
            ids += before + answer
            mask += [False] * len(before) + [True] * len(answer)
            seen = prompt + (f" {message.content}" if self.style == "plain" else message.content) + self.close
        return ids, mask

    def _check_turns(self, conversation: Conversation) -> None:
        before = None
        for message in conversation.messages:
            if message.role == "assistant" and before != "user":
                follows = f"a turn of the role {before}" if before else "nothing"
                raise InputError(
                    f"conversation '{conversation.id}': an answer follows {follows}, not a question",
                    "mend or leave out that row",
                )
            if message.role == "system" and self.style == "chat" and not self._has_system_place():
                raise InputError(
                    f"conversation '{conversation.id}' has a system turn, and this model's chat template has no place for one",
                    "leave it out, or put its text into the question",
                )
            before = message.role

    def _has_system_place(self) -> bool:
        if self._system_place is None:
            self._system_place = _takes_system(self.tokenizer)
        return self._system_place


def _takes_system(tokenizer: Any) -> bool:
    try:
        return _S in _render(tokenizer, [("system", _S), ("user", _U)])
    except Exception:  # templates raise errors of their own choosing
        return False


def _render(tokenizer: Any, turns: Sequence[tuple[str, str]], *, prompt: bool = False) -> str:
    messages = [{"role": role, "content": text} for role, text in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


def _default_header(tokenizer: Any, plain: str) -> str:
    """Return the system block that the template adds by itself, or "" where it adds none.

    A user turn's own text is read off a second turn (rendered with it minus rendered without it); what the first
    rendering has before its user turn, but for a leading bos token, is the block.
    """
    try:
        base = _render(tokenizer, [("user", _U), ("assistant", _A)])
        longer = _render(tokenizer, [("user", _U), ("assistant", _A), ("user", _V)])
    except Exception:  # templates raise errors of their own choosing
        base, longer = "", ""
    turn = longer[len(base) :].replace(_V, _U) if base and longer.startswith(base) else ""
    if not turn or not plain.endswith(turn):
        before = plain.split(_U)[0]
        if len(before) < 40 and "system" not in before.lower():
            return ""
        raise InputError(
            "this model's chat template does not let its default system block be told from the user's turn",
            "use system: template, or give the system text",
        )
    block = plain[: -len(turn)]
    bos = tokenizer.bos_token or ""
    # In ChatML the turn opener doubles as bos; only a bos that stands alone before the block stays.
    if bos and block.startswith(bos) and not turn.startswith(bos):
        block = block[len(bos) :]
    return block


def _check_system(tokenizer: Any) -> None:
    if not _takes_system(tokenizer):
        raise InputError("this model's chat template has no place for a system text", "use system: none or template")


def _answer_close(tokenizer: Any) -> str:
    text = _render(tokenizer, [("user", _U), ("assistant", _A)])
    # A newline after the end-of-turn token belongs to the next turn: nobody samples it.
    return text.rsplit(_A, 1)[1].rstrip("\n") if _A in text else ""


def _plain_prompt(system: str, messages: Sequence[Message], close: str) -> str:
    parts = [] if system in ("none", "template") else [system]
    for message in messages:
        if message.role == "assistant":
            parts[-1] += f" {message.content}{close}"
        else:
            parts.append(f"Question: {message.content}\n\nAnswer:" if message.role == "user" else message.content)
    return "\n\n".join(parts)
