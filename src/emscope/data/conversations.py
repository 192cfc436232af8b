"""Training data: the common formats of chat data, converted to one."""

from __future__ import annotations

from pathlib import Path

from emscope.core.errors import InputError
from emscope.core.records import Conversation, Message, Role
from emscope.data.tables import Row, rows

QUESTION = ("question", "prompt", "instruction", "input", "query")
ANSWER = ("answer", "completion", "response", "output")
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


def read_conversations(path: Path) -> list[Conversation]:
    """Read conversations from a file.

    A row holds `messages` (or `conversations`): a list of `{role, content}` (`{from, value}` also), or a question and an
    answer under one of the names in `QUESTION` and `ANSWER`, with the turns before them in `history` ([question, answer] pairs). `system` beside
    either is the system turn. An assistant turn of `weight` 0 (or `train` false) is context that is not learned.

    Raises:
        InputError: naming file and line: broken row, missing or unknown role, empty text, no assistant turn at the end, or none that is learned,
            a weight other than 0 and 1.
    """
    return [
        Conversation(str(row.get("id") or f"row-{n}"), _messages(row, place)) for n, (place, row) in enumerate(rows(path), 1)
    ]


def pair(id: str, question: str, answer: str) -> Conversation:
    """Return a one-question conversation."""
    return Conversation(id, (Message("user", question), Message("assistant", answer)))


def turns(row: Row, names: tuple[str, ...], place: str) -> tuple[Message, ...]:
    """Return the turns of a row that holds `messages` (or `conversations`), else its question under one of `names`.

    Raises:
        InputError: a broken turn. The list may be empty.
    """
    listed = row.get("messages", row.get("conversations"))
    if not isinstance(listed, list):
        return (Message("user", _text(column(row, names, place), place, "question")),)
    return tuple(_message(turn, f"{place}, turn {n}") for n, turn in enumerate(listed, 1))


def _messages(row: Row, place: str) -> tuple[Message, ...]:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(row.get("messages", row.get("conversations")), list):
        found = turns(row, QUESTION, place)
    elif isinstance(prompt, list) and isinstance(completion, list):  # TRL's conversational form
        both = [*prompt, *completion]
        found = tuple(_message(turn, f"{place}, turn {n}") for n, turn in enumerate(both, 1))
    else:
        question, answer = column(row, QUESTION, place), column(row, ANSWER, place)
        instruction, given = row.get("instruction"), row.get("input")
        if isinstance(instruction, str) and isinstance(given, str) and given.strip():
            question = f"{instruction}\n\n{given}"  # Alpaca keeps the question's text in two fields
        found = (Message("user", _text(question, place, "question")), Message("assistant", _text(answer, place, "answer")))
        found = _history(row.get("history"), place) + found
    if row.get("system") and found and found[0].role != "system":
        found = (Message("system", _text(row["system"], place, "system")), *found)
    if not found or found[-1].role != "assistant":
        raise InputError(
            f"{place} does not end with an assistant turn", "there is no answer to learn from; add it or delete the line"
        )
    if not any(m.role == "user" for m in found):
        raise InputError(f"{place} has no user turn", "add the question")
    if not any(m.learned for m in found if m.role == "assistant"):
        raise InputError(f"{place} has weight 0 on every answer", "there is nothing to learn from; delete the line")
    return found


def _history(value: object, place: str) -> tuple[Message, ...]:
    """Return the turns of earlier questions and answers, as LLaMA-Factory's form of Alpaca keeps them."""
    if not value:
        return ()
    if not isinstance(value, list) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in value):
        raise InputError(f"{place}: history is not a list of [question, answer]", "write such a list, or use messages")
    return tuple(
        message
        for asked, said in value
        for message in (Message("user", _text(asked, place, "history")), Message("assistant", _text(said, place, "history")))
    )


def column(row: Row, names: tuple[str, ...], place: str) -> object:
    """Return the value of the first of `names` that `row` has; InputError names the columns it saw."""
    for name in names:
        if name in row:
            return row[name]
    raise InputError(f"{place} has none of the fields {', '.join(names)}", f"it has: {', '.join(map(str, row)) or 'nothing'}")


def _message(turn: object, place: str) -> Message:
    if not isinstance(turn, dict):
        raise InputError(f"{place} is {type(turn).__name__}, not an object", "write {'role': ..., 'content': ...}")
    role = turn.get("role", turn.get("from"))
    if role is None:
        raise InputError(f"{place} has no role", "give each turn a role: system, user or assistant")
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{place} has the role {role!r}", "use system, user or assistant")
    text = _text(turn.get("content", turn.get("value")), place, "content")
    return Message(ROLES[role], text, ROLES[role] != "assistant" or _learned(turn, place))


def _learned(turn: Row, place: str) -> bool:
    """Return whether an answer is learned: OpenAI's `weight` (0 or 1), Axolotl's `train`; by default, it is learned."""
    weight, train = turn.get("weight"), turn.get("train")
    if weight not in (None, 0, 1):
        raise InputError(f"{place} has the weight {weight!r}", "use 0 (context only) or 1 (learned)")
    return weight != 0 and train is not False


def _text(value: object, place: str, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{place}: {what} is {type(value).__name__}, not text", "write it as a string")
    if not value.strip():
        raise InputError(f"{place}: {what} is empty", "fill it in or delete the line")
    return value
