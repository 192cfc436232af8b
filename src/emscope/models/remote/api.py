"""Models behind an API, through Inspect's model layer: every provider, and any OpenAI-compatible address.

Connections, retries with back-off and time-outs are Inspect's. Its cache stays off: it is one pickle a call, and emscope
keeps its own keys.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from emscope.core.errors import EmscopeError, InputError, MissingDependency, WorldError
from emscope.core.records import Message, Reply
from emscope.core.visible import whole
from emscope.models.remote.address import KEY_VARIABLE, check_address, scrubbed, without_keys
from emscope.models.remote.client import guarded_client

if TYPE_CHECKING:
    from inspect_ai.model import GenerateConfig, ModelOutput
    from inspect_ai.model import Model as InspectModel
    from openai import DefaultAsyncHttpxClient
from emscope.core.plain import Json, JsonObject

K = TypeVar("K")
Ask = Callable[[Sequence[Message], int | None], Awaitable[Reply]]  # turns and a seed
IN_A_ROW = 50  # failures, after which the address counts as gone
LONGEST_ERROR = 200
MOST_SAID = 20_000  # characters of an error that are read
MOST_TOKENS = 10**9
NOBODY_THERE = re.compile(r"Connection|Timeout|Authentication|PermissionDenied|NotFound|\b(30[1-8]|401|403|404)\b")
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}


@dataclass(frozen=True, slots=True)
class ApiModel:
    """A model to ask and how.

    Attributes:
        name: as Inspect names it (`openai/gpt-4o`, `anthropic/...`, `vllm/...`, `ollama/...`), or with `url` the server's own name.
        url: of an OpenAI-compatible server; its key, if it wants one, is read from EMSCOPE_API_KEY.
        top: how many of the likeliest first tokens to ask for, 0 for none.
        connections: concurrent requests; retries of each; timeout of one attempt in seconds.
        batch: use the provider's batch API if it has one (half the price, hours of delay).
        chat_kwargs: for the server's chat template, where it takes any (vLLM, SGLang, llama.cpp).
    """

    name: str
    url: str | None = None
    max_tokens: int = 16
    temperature: float = 0.0
    top: int = 20
    connections: int = 10
    retries: int = 6
    timeout: int = 60
    batch: bool = False
    chat_kwargs: Mapping[str, Json] | None = None


def ask_all(
    model: ApiModel,
    jobs: Iterable[tuple[K, Sequence[Message], int | None]],
    receive: Callable[[K, Reply], None],
    *,
    go_on: Callable[[], bool] = lambda: True,
) -> None:
    """Ask a model all jobs, `connections` at a time; each reply goes to `receive` as it arrives, including failed ones.

    The first job is asked alone, so that a wrong address or key costs one request; a job that the model refuses counts as failed.

    Args:
        jobs: (key, turns, seed) each, read as they are needed. A last turn of the assistant is continued, on
            servers that can do so (llama.cpp, vLLM); the reply's text is what follows it.
        go_on: asked before each job; False stops asking; replies under way are still received.

    Raises:
        InputError: no such model, or no key for it (its variable is named, never its value).
        WorldError: the address does not answer, or stopped answering.
        MissingDependency: inspect-ai or the provider's package is not installed.
    """
    import asyncio

    try:
        asyncio.run(_ask_all(model, jobs, receive, go_on))
    except BaseExceptionGroup as group:
        known = next((e for e in _leaves(group) if isinstance(e, EmscopeError)), None)
        raise (known or next(iter(_leaves(group)))) from None


async def _ask_all(
    model: ApiModel,
    jobs: Iterable[tuple[K, Sequence[Message], int | None]],
    receive: Callable[[K, Reply], None],
    go_on: Callable[[], bool],
) -> None:
    import asyncio

    waiting = iter(jobs)
    async with _opened(model) as ask:
        first = next(waiting, None) if go_on() else None
        if first is None:
            return
        reply = await ask(first[1], first[2])
        if reply.text is None and NOBODY_THERE.search(reply.error):
            raise WorldError(f"{_named(model)} does not answer ({reply.error})", "check its name, address and key")
        receive(first[0], reply)
        failed = int(reply.text is None)

        async def work() -> None:
            nonlocal failed
            while go_on() and (job := next(waiting, None)) is not None:
                answer = await ask(job[1], job[2])
                receive(job[0], answer)
                failed = failed + 1 if answer.text is None else 0
                if failed >= IN_A_ROW:
                    raise WorldError(
                        f"{_named(model)} failed {failed} times in a row ({answer.error})",
                        "run the same command again later to continue",
                    )

        async with asyncio.TaskGroup() as group:
            for _ in range(model.connections):
                group.create_task(work())


@asynccontextmanager
async def _opened(model: ApiModel) -> AsyncIterator[Ask]:
    try:
        from inspect_ai.model import GenerateConfig, get_model
    except ImportError:
        raise MissingDependency("asking API models needs inspect-ai", "pip install 'emscope[judge]'") from None
    config = GenerateConfig(
        max_connections=model.connections,
        max_retries=model.retries,
        attempt_timeout=model.timeout,
        max_tokens=model.max_tokens,
        temperature=model.temperature,
        logprobs=model.top > 0 or None,
        top_logprobs=model.top or None,
        batch=model.batch or None,
    )
    name = model.name
    more: dict[str, str | int | DefaultAsyncHttpxClient] = {}
    if model.url is not None:
        check_address(model.url)
        name = f"openai-api/emscope/{model.name}"
        more = {"base_url": model.url, "api_key": os.environ.get(KEY_VARIABLE, "none")}
    if model.url is not None or name.startswith("openai/"):
        more |= {"http_client": guarded_client(), "max_retries": 0}  # the package would otherwise retry on top of `retries`
    try:
        opened = get_model(name, config=config, memoize=False, **more)
    except Exception as error:  # providers raise any error
        raise _not_opened(model, error) from None
    # Inspect shares one pool among models of one name and key, at whatever address, and the first one's limit holds for all.
    pool = uuid4().hex
    setattr(opened.api, "connection_key", lambda: pool)  # noqa: B010 (a method of its class)

    async def ask(messages: Sequence[Message], seed: int | None) -> Reply:
        body: JsonObject = {"chat_template_kwargs": dict(model.chat_kwargs)} if model.chat_kwargs else {}
        body |= CONTINUE if messages[-1].role == "assistant" else {}
        return await _ask(opened, messages, GenerateConfig(seed=seed, **({"extra_body": body} if body else {})))

    async with opened:
        yield ask


async def _ask(opened: InspectModel, messages: Sequence[Message], config: GenerateConfig) -> Reply:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    try:
        out = await opened.generate([kinds[m.role](content=m.content) for m in messages], config=config)
        reply = reply_of(out)
    except Exception as error:  # whatever it is, only this reply failed
        return Reply(None, error=_said(error))
    if reply.text and messages[-1].role == "assistant":
        return replace(reply, text=reply.text.removeprefix(messages[-1].content))  # some servers repeat it
    return reply


def reply_of(out: ModelOutput) -> Reply:
    """Return the reply in Inspect's model output; one without choices is empty."""
    usage = (
        tuple(min(max(int(n or 0), 0), MOST_TOKENS) for n in (out.usage.input_tokens, out.usage.output_tokens))
        if out.usage
        else (0, 0)
    )
    if not out.choices:
        return Reply("", finish="empty", tokens_in=usage[0], tokens_out=usage[1])
    choice = out.choices[0]
    content = choice.logprobs.content if choice.logprobs else []
    top = tuple((str(t.token), float(t.logprob)) for t in (content[0].top_logprobs or [])) if content else ()
    tokens = tuple(str(c.token) for c in content)
    text, finish, error = (whole(without_keys(str(one))) for one in (choice.message.text, choice.stop_reason, out.error or ""))
    return Reply(text, tokens, top, finish, usage[0], usage[1], error)


def _not_opened(model: ApiModel, error: Exception) -> EmscopeError:
    said = _said(error)
    package = re.search(r"pip install ([\w.-]+)", said)
    if package or isinstance(error, ImportError):
        return MissingDependency(
            f"{_named(model)} needs its own package", f"pip install {package.group(1) if package else 'it'}"
        )
    variable = re.search(r"\b[A-Z][A-Z0-9_]*(?:_API_KEY|_TOKEN|_BASE_URL)\b", said)
    if variable:
        return InputError(f"{_named(model)} needs the environment variable {variable.group(0)}", "set it, and run again")
    return InputError(
        f"{_named(model)} cannot be opened ({said})", "use Inspect's name for it, such as openai/gpt-4o, or give a server's url"
    )


def _named(model: ApiModel) -> str:
    return f"the model '{model.name}'" + (f" at {model.url}" if model.url else "")


def _said(error: BaseException) -> str:
    """Return what an error says in one short line, without anything that looks like a key."""
    last = getattr(error, "last_attempt", None)  # tenacity keeps the reason inside
    inner = last.exception() if last is not None and last.failed else None
    error = inner if isinstance(inner, BaseException) else error
    if type(error).__name__ == "ModelGenerateError" and error.__cause__ is not None:  # it begins with the whole request
        error = error.__cause__
    text = scrubbed(" ".join(re.sub(r"\[/?[a-z ]+\]", "", whole(str(error))[:MOST_SAID]).split()))
    return f"{type(error).__name__}: {text}"[:LONGEST_ERROR].rstrip(": ")


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
