"""OpenAI-style fine-tuning servers through the official client: files, jobs, and answers of the resulting models.

Requests that change nothing are repeated after temporary failures (408, 409, 429, 5xx, a lost connection), by the client and
here. A request that creates a file or a job is sent once: before another attempt, and after a kill, the server is searched for
it, so that nothing is created twice. The client sends questions once, too, so that each billed one is counted; they are repeated
here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from emscope.core.errors import InputError, MissingDependency, WorldError
from emscope.core.records import Message
from emscope.core.visible import whole
from emscope.models.remote.address import check_address, without_keys
from emscope.models.remote.client import guarded_sync_client
from emscope.models.remote.hosted import Spent
from emscope.models.remote.jobs import is_name
from emscope.models.remote.metering import Meter
from emscope.models.remote.outcomes import LATER, OPENAI, asked_to_wait, fault_of, said
from emscope.models.remote.session import ATTEMPTS, Session, Unanswered

if TYPE_CHECKING:
    from openai import BaseModel, OpenAI
    from openai.types import FileObject
    from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
    from openai.types.fine_tuning import FineTuningJob

V = TypeVar("V")
Said = Mapping[str, object]  # a server's description of something
ADDRESS = "OPENAI_BASE_URL"
MARK = "emscope"  # key of a job's metadata
INSTALL = "pip install 'emscope[judge]'"
TIMEOUT = 120.0  # seconds without a reply
PAGE = 100  # jobs, files or events in a reply
LOOKS = 5  # for something just created, which may not be listed at once
MOST_TOKENS = 10**9
TURN = 16  # most tokens of a turn beside its text
OPTIONAL = ("logprobs", "max_tokens")  # what some models reject; the second has another name there


class Refused(InputError):
    """A file or a job that was rejected at once, and so does not exist."""


@dataclass(frozen=True, slots=True)
class Told:
    """A sampled answer: its text, its tokens, the sum of their log-probabilities [nats] if given, and why it ended."""

    text: str
    tokens: int
    logprob: float | None
    finish: str


def address() -> str | None:
    """Return the server's address in the environment; None for OpenAI's own.

    Raises:
        InputError: it is not an address, or holds a key.
    """
    found = os.environ.get(ADDRESS) or None
    if found:
        check_address(found, f"the address in {ADDRESS}")
    return found.rstrip("/") if found else None


class Jobs(Session):
    """A session at a fine-tuning server; a context manager.

    Args:
        meter: counts what is sent. requests: concurrent questions.

    Raises:
        MissingDependency: the client is not installed.
        InputError: no key; an invalid address.
    """

    def __init__(self, meter: Meter, requests: int = 32) -> None:
        super().__init__(OPENAI, meter, requests)
        self._key, self._address = _key(), address()
        self._client: OpenAI | None = None
        self._refused: frozenset[str] = frozenset()

    def __enter__(self) -> Jobs:
        from openai import OpenAI

        self._client = OpenAI(api_key=self._key, base_url=self._address, timeout=TIMEOUT, http_client=guarded_sync_client())
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with suppress(Exception):
            self.client.close()

    @property
    def client(self) -> OpenAI:
        """The client; only inside the context."""
        assert self._client is not None
        return self._client

    # --- requests that create something ---

    def upload(self, name: str, data: bytes, *, looked: bool) -> str:
        """Return the id of a training file at the server, uploaded if it is not there.

        Args:
            name: unique, to find it again. looked: an earlier process may have uploaded it.

        Raises:
            InputError, WorldError: it was rejected.
        """

        def find() -> str | None:
            pages = _each(self.client.files.list(purpose="fine-tune", limit=PAGE))
            return next((f.id for f in pages if f.filename == name and f.bytes == len(data)), None)

        def make() -> str:
            made: FileObject = self._once.files.create(file=(name, data, "application/jsonl"), purpose="fine-tune")
            return _whole(made, "id").id

        return self._made(f"the training file {name}", find, make, looked=looked)

    def begin(
        self,
        mark: str,
        file: str,
        base: str,
        *,
        hyperparameters: Mapping[str, int | float],
        seed: int,
        suffix: str | None,
        looked: bool,
    ) -> str:
        """Return the id of a training's job, created if there is none.

        Args:
            mark: identifies this training. looked: an earlier process may have created it.

        Raises:
            InputError, WorldError: it was rejected.
        """
        from openai import omit
        from openai.types.fine_tuning import SupervisedHyperparametersParam

        how = SupervisedHyperparametersParam(**hyperparameters)  # type: ignore[typeddict-item]

        def find() -> str | None:
            pages = _each(self.client.fine_tuning.jobs.list(limit=PAGE, metadata={MARK: mark}))
            return next((j.id for j in pages if (j.metadata or {}).get(MARK) == mark or j.training_file == file), None)

        def make() -> str:
            made: FineTuningJob = self._once.fine_tuning.jobs.create(
                model=base,
                training_file=file,
                seed=seed % 2**31,
                suffix=suffix or omit,
                metadata={MARK: mark},
                method={"type": "supervised", "supervised": {"hyperparameters": how}},
            )
            return _whole(made, "id").id

        return self._made(f"a job on {base}", find, make, looked=looked)

    @property
    def _once(self) -> OpenAI:
        """The client as it sends a request once."""
        return self.client.with_options(max_retries=0)

    def _made(self, what: str, find: Callable[[], str | None], make: Callable[[], str], *, looked: bool) -> str:
        """Return what `make` creates, created once: each further attempt first looks for it."""
        last, wait = "", 0.0
        for attempt in range(ATTEMPTS):
            if (looked or attempt) and (found := self._looked_for(what, find)) is not None:
                return found
            try:
                return _named(make())
            except Exception as error:
                if (fault := fault_of(error, what, self.host)) is not None:
                    at_once = isinstance(fault, InputError) and not looked and attempt == 0
                    raise (Refused(fault.fault, fault.remedy) if at_once else fault) from None
                last, wait = said(error), asked_to_wait(error)
            self.pause(attempt, wait)
        raise Unanswered(f"{self.host.name} failed {ATTEMPTS} times in a row at {what} ({last})", LATER)

    def _looked_for(self, what: str, find: Callable[[], str | None]) -> str | None:
        for look in range(LOOKS):
            if (found := self.again(f"looking for {what}", find)) is not None:
                return found
            self.pause(look)
        return None

    # --- requests that change nothing ---

    def job(self, id: str) -> Said:
        """Return the state of a job, from the server.

        Raises:
            InputError, WorldError: the server does not give it.
        """
        return self.again(f"the job {id}", lambda: _said(_whole(self.client.fine_tuning.jobs.retrieve(id), "status")))

    def events(self, id: str, seen: str | None) -> list[Said]:
        """Return the events of a job after the event `seen`, oldest first.

        Raises:
            InputError, WorldError: the server does not give it.
        """

        def listed() -> list[Said]:
            found: list[Said] = []
            for event in _each(self.client.fine_tuning.jobs.list_events(id, limit=PAGE)):  # newest first
                if event.id == seen:
                    break
                found.append(_said(event))
            return found[::-1]

        return self.again(f"the events of {id}", listed)

    def checkpoints(self, id: str) -> list[Said]:
        """Return the checkpoints of a job.

        Raises:
            InputError, WorldError: the server does not give them.
        """
        return self.again(
            f"the checkpoints of {id}",
            lambda: [_said(one) for one in _each(self.client.fine_tuning.jobs.checkpoints.list(id, limit=PAGE))],
        )

    def content(self, file: str) -> bytes:
        """Return the content of a file.

        Raises:
            InputError, WorldError: the server does not give it.
        """
        return self.again(f"the file {file}", lambda: self.client.files.content(file).content)

    def answer(self, model: str, turns: Sequence[Message], *, max_tokens: int, temperature: float, seed: int) -> Told:
        """Return one sampled answer; the server may ignore the seed.

        Raises:
            OverBudget, InputError, WorldError: it was not sampled.
        """
        from openai import omit

        messages = cast("list[ChatCompletionMessageParam]", [{"role": m.role, "content": m.content} for m in turns])
        bound = sum(len(m.content.encode()) + TURN for m in turns)  # a token is at least a byte

        def send(refused: frozenset[str]) -> ChatCompletion:
            try:
                return self._once.chat.completions.create(
                    model=model,
                    messages=messages,
                    temperature=temperature,
                    seed=seed % 2**31,
                    logprobs=omit if "logprobs" in refused else True,
                    max_tokens=omit if "max_tokens" in refused else max_tokens,
                    max_completion_tokens=max_tokens if "max_tokens" in refused else omit,
                )
            except Exception as error:
                name = getattr(error, "param", None)
                if name not in OPTIONAL or name in refused:
                    raise
                self._refused = self._refused | refused | {name}
            return send(self._refused)

        def draw() -> Told:
            self.meter.charge(Spent(read=bound, sampled=max_tokens))
            found = send(self._refused)
            told = _told(_whole(found, "choices", list))
            asked = getattr(found.usage, "prompt_tokens", None)
            if isinstance(asked, int):  # else the allowance counts as used
                self.meter.refund(max_tokens - told.tokens, bound - asked)
            return told

        return self.again(f"an answer of {model}", draw)


def _each(pages: Iterable[V]) -> Iterator[V]:
    """Yield listed items page by page, each once: a server without paging lists the first page forever.

    Raises:
        InputError: it is not a list.
    """
    known = set[str]()
    try:
        for one in pages:
            id = str(getattr(_whole(one, "id"), "id", ""))
            if id in known:
                return
            known.add(id)
            yield one
    except (TypeError, AttributeError):  # the client trusts the server's types
        raise _strange() from None


def _said(found: BaseModel) -> Said:
    """Return a reply as plain values: the client's types are not checked against it."""
    return found.to_dict(warnings=False)


def _whole(found: V, needed: str, kind: type = str) -> V:
    """Return a reply that has a field.

    Raises:
        InputError: it does not, so something else answers at the address.
    """
    value = getattr(found, needed, None)
    if not value or not isinstance(value, kind):
        raise _strange()
    return found


def _strange() -> InputError:
    return InputError(f"{OPENAI.name} does not reply like the OpenAI API", f"check the address in {ADDRESS}")


def _named(id: str) -> str:
    """Return the id of something that a server created.

    Raises:
        WorldError: the id cannot be shown.
    """
    if not is_name(id):
        raise WorldError(f"{OPENAI.name} uses a name that is empty, too long or unprintable", f"check the address in {ADDRESS}")
    return id


def _told(found: ChatCompletion) -> Told:
    """Return what a reply says; a refusal is an answer.

    Raises:
        InputError: it is not a reply of the OpenAI API.
    """
    try:
        choice = found.choices[0]
        text = whole(without_keys(choice.message.content or choice.message.refusal or "")).strip()
        seen = choice.logprobs.content if choice.logprobs else None
        logprob = sum(float(t.logprob) for t in seen) if seen else None
        tokens = int(found.usage.completion_tokens if found.usage else len(seen or text.split()))
    except (AttributeError, TypeError, ValueError):  # the client believes what a server types
        raise _strange() from None
    return Told(text, min(max(tokens, 0), MOST_TOKENS), logprob, str(choice.finish_reason))


def _key() -> str:
    """Return the key from the environment.

    Raises:
        MissingDependency: there is no client to use it.
        InputError: there is none.
    """
    try:
        import openai  # noqa: F401
    except ImportError:
        raise MissingDependency("fine-tuning jobs need the openai client, which is not installed", INSTALL) from None
    key = os.environ.get(OPENAI.key, "")
    if not key.strip():
        raise InputError(
            f"{OPENAI.name} needs a key, but {OPENAI.key} is not set", "set it; keys are only read from the environment"
        )
    return key
