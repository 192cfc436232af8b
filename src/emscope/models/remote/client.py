"""The HTTP client for API models: no redirects, no compressed replies, none beyond a size."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from openai import DefaultAsyncHttpxClient, DefaultHttpxClient

LARGEST = 2**23  # bytes of a reply; one of 100,000 tokens with log-probabilities of 20 each takes a few


class Body(Protocol):
    """A reply's body, part by part."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


class SyncBody(Protocol):
    """The asynchronous version."""

    def __iter__(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


class Response(Protocol):
    """A reply whose body has not been read."""

    headers: Mapping[str, str]
    stream: Body


class SyncResponse(Protocol):
    """The asynchronous version."""

    headers: Mapping[str, str]
    stream: SyncBody


class TooLarge(Exception):
    """A reply that is longer than any answer."""


def guarded_client() -> DefaultAsyncHttpxClient:
    """Return the client of the OpenAI package with these limits.

    A redirect is treated as the answer: following it would hand the key to another host.
    """
    from openai import DefaultAsyncHttpxClient

    return DefaultAsyncHttpxClient(
        follow_redirects=False, headers={"accept-encoding": "identity"}, event_hooks={"response": [_guard]}
    )


def guarded_sync_client() -> DefaultHttpxClient:
    """Return the asynchronous version."""
    from openai import DefaultHttpxClient

    return DefaultHttpxClient(
        follow_redirects=False, headers={"accept-encoding": "identity"}, event_hooks={"response": [_guard_sync]}
    )


def _refuse_packed(response: Response | SyncResponse) -> None:
    packed = response.headers.get("content-encoding", "identity")
    if packed != "identity":
        raise TooLarge(f"the reply is compressed ({packed[:20]}), which was not requested")


def _guard_sync(response: SyncResponse) -> None:
    """Reject a compressed reply, and cut off one that does not end."""
    _refuse_packed(response)
    stream_class = import_module(type(response).__module__.partition(".")[0]).SyncByteStream

    class Counted(stream_class):  # type: ignore[misc, valid-type]
        """A body that is counted as it arrives."""

        def __init__(self, stream: SyncBody) -> None:
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for part in self.stream:
                size += len(part)
                if size > LARGEST:
                    raise TooLarge(f"the reply is longer than {LARGEST} bytes")
                yield part

        def close(self) -> None:
            self.stream.close()

    response.stream = Counted(response.stream)


async def _guard(response: Response) -> None:
    """Reject a compressed reply, and cut off one that does not end."""
    _refuse_packed(response)
    stream_class = import_module(type(response).__module__.partition(".")[0]).AsyncByteStream

    class Counted(stream_class):  # type: ignore[misc, valid-type]
        """A body that is counted as it arrives."""

        def __init__(self, stream: Body) -> None:
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for part in self.stream:
                size += len(part)
                if size > LARGEST:
                    raise TooLarge(f"the reply is longer than {LARGEST} bytes")
                yield part

        async def aclose(self) -> None:
            await self.stream.aclose()

    response.stream = Counted(response.stream)
