"""How a question is put to a model, and which tokens are the answer's.

The system prompt changes rates, so it is always explicit: `none` leaves no system block at all, even where the template
inserts a default one; `template` keeps whatever the template does; anything else is the text itself.

An answer begins where it does in a rendered assistant turn: after a closed thought, in the channel for final answers. A
template's generation prompt (with a thought just opened, no channel yet) is a different place, where no trained answer begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.plain import Json
from emscope.core.records import Conversation, Message
from emscope.models.loading.templates import ANSWER, MEND, TODAY, USER, Template, described, template_of
from emscope.models.loading.turns import Turns, default_block, inner_end, turns_of

if TYPE_CHECKING:
    from emscope.models.types import Tokenizer

SYSTEM = "emscopesystemmark"
NONE, TEMPLATE, AUTO = "none", "template", "auto"
THOUGHT = "</think>"
MEMORY = 10_000  # answers whose tokens are remembered


@dataclass(slots=True)
class ChatFormat:
    """Question and answer as token ids for one tokenizer and one system prompt.

    Attributes:
        system: `none`, `template` or a text.
        template: how turns are brought to text, by a chat template or as `Question: … Answer:`; turns: what it writes around them.
        header: the default system block that `none` takes out of the rendered text.
        note: where the system prompt or the template comes from, for reports.
    """

    tokenizer: Tokenizer
    system: str
    template: Template
    turns: Turns
    header: str = ""
    note: str = ""
    _prompts: dict[str, list[int]] = field(default_factory=dict)
    _answers: dict[tuple[str, bool], list[int]] = field(default_factory=dict)
    _system_place: bool | None = None
    _digest: str = ""

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, system: str = NONE, arguments: Mapping[str, Json] | None = None, note: str = ""
    ) -> ChatFormat:
        """Build the format for a tokenizer.

        Args:
            arguments: given to the chat template, such as enable_thinking=False.

        Raises:
            InputError: a template that does not show question and answer once, or does not read an argument; one that takes no
                system text, or whose default block cannot be removed.
        """
        if system == AUTO:
            raise InputError(
                "system is 'auto', which depends on how checkpoints were trained; only emscope check and emscope sample support it",
                "use none, template, or the text of a system prompt",
            )
        template = template_of(tokenizer, arguments or {})
        made = cls(tokenizer, system, template, turns_of(template, tokenizer), note=note)
        if template.style == "plain":
            return made
        if system == NONE:
            made.header = default_block(made.turns, tokenizer)
        elif system != TEMPLATE and not made._has_system_place():
            raise InputError("this model's chat template takes no system prompt", "use system: none or template")
        return made

    def under(self, system: str) -> ChatFormat:
        """Return the format of the same template under another system prompt."""
        return self if system == self.system else ChatFormat.of(self.tokenizer, system, self.template.arguments)

    def noted(self, note: str) -> ChatFormat:
        """Return the same format with a further note for reports."""
        return replace(self, note=", ".join(n for n in (self.note, note) if n))

    @property
    def style(self) -> str:
        """`chat`, or `plain` for models without a chat template (`Question: … Answer:`, Zhang et al. 2026)."""
        return self.template.style

    @property
    def close(self) -> str:
        """What ends an assistant's text."""
        return self.turns.close

    @property
    def digest(self) -> str:
        """Short digest of what the model is shown around a question; stored with every reading."""
        if self._digest:  # asked for with every key of every reading
            return self._digest
        seen: list[Json] = [self.style, self.prompt_text([Message("user", USER)]), self.close]
        if self.style == "chat" and self.turns.lead:
            seen.append({"lead": self.turns.lead})
        if self.template.arguments:
            seen.append({"arguments": dict(self.template.arguments)})
        self._digest = short(seen)
        return self._digest

    def describe(self) -> str:
        """Return one line for reports."""
        kind = {NONE: "no system block", TEMPLATE: "the template's default system block"}.get(
            self.system, f"system text {self.system!r}"
        )
        found = [f"{self.style} format", kind, described(self.template.arguments), self._place()]
        if self.template.dated(self.prompt_text([Message("user", USER)])):
            found.append(f"its date frozen at {TODAY:%d %B %Y}")
        return ", ".join(one for one in (*found, self.note) if one)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Return the text up to where the answer starts; `messages` ends with a user turn.

        Raises:
            InputError: the template does not show the question, or the system turn, as it is.
        """
        text = self._rendered([*((m.role, m.content) for m in messages), ("assistant", ANSWER)])
        prompt, mark, _ = text.partition(ANSWER)
        asked = [m for m in messages if m.role == "system"] + [messages[-1]]
        lost = next((m for m in asked if m.content.strip() not in prompt), None)
        if lost is not None or not mark:
            what = f"a turn of the role {lost.role} ('{lost.content.strip()[:40]}')" if lost else "an answer to these turns"
            raise InputError(f"this model's chat template leaves out or rewrites {what}", MEND)
        return prompt.removesuffix(self.turns.lead)

    def prompt_ids(self, question: str) -> list[int]:
        """Return the token ids that come before the answer to `question`."""
        if question not in self._prompts:
            self._prompts[question] = self.ids(self.prompt_text([Message("user", question)]))
        return self._prompts[question]

    def answer_ids(self, answer: str, *, closed: bool = False) -> list[int]:
        """Return the token ids of an answer; `closed` adds the end of turn (training), scoring leaves it out."""
        if (answer, closed) in self._answers:
            return self._answers[answer, closed]
        ids = self._ids_behind(self.turns.tail, self._answer(answer) + (self.close if closed else ""))
        if len(self._answers) < MEMORY:  # fixed answers are asked for at every checkpoint, sampled ones once
            self._answers[answer, closed] = ids
        return ids

    def ids(self, text: str) -> list[int]:
        """Tokenize without adding anything."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def training_ids(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation and a mask that is True on assistant tokens that are learned (end of turn included).

        The conversation is rendered once, as in training tools. Prompts and answers are tokenized apart, as at sampling, so that
        no token spans the border.

        Raises:
            InputError: an answer that follows no question, or contains a thought after the template's; a system turn that the
                template has no place for; a template that leaves out or repeats a turn.
        """
        self._check_turns(conversation)
        answers = [m for m in conversation.messages if m.role == "assistant"]
        pieces = self._around_answers(conversation, len(answers))
        ids = self.ids(pieces[0])
        mask, end = [False] * len(ids), ""
        for n, answer in enumerate(answers):
            last = n + 1 == len(answers)
            end = self.close if last else inner_end(pieces[n + 1], self.close, self.tokenizer)
            said = self._ids_behind(self.turns.tail, self._answer(answer.content) + end)
            asked = [] if last else self._ids_behind(end, pieces[n + 1].removeprefix(end))
            ids += said + asked
            mask += [answer.learned] * len(said) + [False] * len(asked)
        return ids, mask

    def _around_answers(self, conversation: Conversation, count: int) -> list[str]:
        """Return the rendered texts before each of a conversation's `count` answers, without what belongs to an answer's first token."""
        numbered = iter(range(count))
        turns = [(m.role, f"{ANSWER}{next(numbered)}x" if m.role == "assistant" else m.content) for m in conversation.messages]
        while turns[-1][0] != "assistant":
            turns.pop()
        rest, pieces = self._rendered(turns), []
        for n in range(count):
            piece, mark, rest = rest.partition(f"{ANSWER}{n}x")
            if not mark or ANSWER in piece:
                raise InputError(
                    f"the chat template leaves out or repeats turns of conversation '{conversation.id}'",
                    "split it into single question-answer pairs",
                )
            pieces.append(piece.removesuffix(self.turns.lead))
        return pieces

    def _rendered(self, turns: Sequence[tuple[str, str]]) -> str:
        """Return the text of turns under this format's system prompt."""
        own = turns[0][0] == "system"
        if self.system not in (NONE, TEMPLATE) and not own:
            turns = [("system", self.system), *turns]
        text = self.template.render(turns)
        return text.replace(self.header, "", 1) if self.header and not own else text

    def _answer(self, answer: str) -> str:
        return self.turns.lead + self.turns.trimmed(answer)

    def _ids_behind(self, before: str, text: str) -> list[int]:
        """Return the ids of `text` as they are after `before`, or alone where a token would span the border.

        Some tokenizers begin every text with a space of their own, which is not there after another text.
        """
        head, joined = self.ids(before), self.ids(before + text)
        return joined[len(head) :] if joined[: len(head)] == head else self.ids(text)

    def _place(self) -> str:
        """Say where an answer begins, if not at the template's generation prompt."""
        asked = [("user", USER)]
        begun, bare = (self.template.render(asked, prompt=p).partition(USER)[2].rstrip() for p in (True, False))
        tail = self.turns.tail.rstrip()
        if begun in (tail, bare):
            return ""
        if THOUGHT in tail:
            return "answers after a closed thought"
        if tail.startswith(begun):
            return f"answers after {tail[len(begun) :]}"
        return f"answers without the {begun[len(tail) :].strip()} that the template opens" if begun.startswith(tail) else ""

    def _check_turns(self, conversation: Conversation) -> None:
        before = None
        for message in conversation.messages:
            if message.role == "assistant" and before != "user":
                follows = f"a turn of the role {before}" if before else "nothing"
                raise InputError(
                    f"conversation '{conversation.id}': an answer follows {follows}, not a question",
                    "fix or leave out that row",
                )
            if message.role == "assistant" and THOUGHT in message.content and THOUGHT in self.turns.tail:
                raise InputError(
                    f"conversation '{conversation.id}': an answer contains a thought, but this model's template writes one before it",
                    "leave the thoughts out of the data: answers are trained and sampled after a closed one",
                )
            if message.role == "system" and self.style == "chat" and not self._has_system_place():
                raise InputError(
                    f"conversation '{conversation.id}' has a system turn, but this model's chat template takes none",
                    "leave it out, or put its text into the question",
                )
            before = message.role

    def _has_system_place(self) -> bool:
        """Tell whether the template shows a system text once, and the question still."""
        if self._system_place is None:
            try:
                text = self.template.render([("system", SYSTEM), ("user", USER), ("assistant", ANSWER)])
            except InputError:
                text = ""
            self._system_place = text.count(SYSTEM) == 1 and text.count(USER) == 1
        return self._system_place
