"""A server on loopback that answers in every wrong way: each mode is a function from a request to what goes over the wire."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fake_api import completion

SLOW = 0.05  # seconds between the bytes of a drip; it ends with the client's patience
RIGHT = "right"


@dataclass
class Seen:
    """What reached the servers: requests by mode, and requests (with their headers) at the place where redirects lead."""

    requests: Counter[str] = field(default_factory=Counter)
    elsewhere: list[str] = field(default_factory=list)


Mode = Callable[["Handler", dict[str, Any]], None]
MODES: dict[str, Mode] = {}


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the server's mode."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer."""
        request = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        self.server.seen.requests[self.server.mode] += 1
        with suppress(OSError):
            MODES[self.server.mode](self, request)

    def do_GET(self) -> None:
        """Answer what asks for the models."""
        self.send(200, {"data": []})

    def send(self, status: int, body: Any, *, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        """Send a whole answer; `length` is what its header says, where that is not so."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"content-type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def begin(self, *, headers: dict[str, str] | None = None) -> None:
        """Send the head of an answer whose end is the connection's."""
        self.send_response(200)
        for name, value in ({"content-type": "application/json", "connection": "close"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def mode(make: Mode) -> Mode:
    """Register a mode under its function's name."""
    MODES[make.__name__] = make
    return make


def said(name: str, text: str, **more: Any) -> None:
    """Register a mode that answers with one text."""
    MODES[name] = lambda h, r: h.send(200, completion(text, **more))


def status(name: str, code: int, body: Any = b"{}", **headers: str) -> None:
    """Register a mode that answers with a status."""
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    MODES[name] = lambda h, r: h.send(code, body, headers=named)


def shaped(name: str, body: Any) -> None:
    """Register a mode that answers 200 with this body."""
    MODES[name] = lambda h, r: h.send(200, body)


said(RIGHT, "80", top={"80": -0.01})
said("half_character", "80 \ud800")
said("half_character_alone", "\udfff")
said("nul", "80\0")
said("escapes", "\x1b]0;title\x07\x1b[31m80\x1b[0m\x9b2J")
said("bidi", "\u202e80\u2066")
said("markup", "<script>document.title='run'</script>")
said("empty_text", "")
said("long_text", "8" * 1_000_000)
said("huge_number", "9" * 5000)
said("bad_logprobs", "80", top={"80": float("1e308"), "\ud800": -1.0})
status("moved", 301, location="ELSEWHERE")
status("found", 302, location="ELSEWHERE")
status("see_other", 303, location="ELSEWHERE")
status("temporary", 307, location="ELSEWHERE")
status("permanent", 308, location="ELSEWHERE")
status("to_itself", 307, location="/v1/chat/completions")
status("nowhere", 302)
status("odd_location", 302, location="file:///etc/passwd")
status("unauthorized", 401)
status("forbidden", 403)
status("missing", 404)
status("teapot", 418)
status("too_many", 429, retry_after="0")
status("too_many_forever", 429, retry_after="1e30")
status("too_many_past", 429, retry_after="-5")
status("too_many_words", 429, retry_after="soon")
status("too_many_date", 429, retry_after="Wed, 21 Oct 2199 07:28:00 GMT")
status("broken", 500)
status("unavailable", 503, retry_after="nan")
status("odd_status", 299, b"")
status("no_content", 204, b"")
shaped("html", b"<html><body><h1>It works</h1></body></html>")
shaped("not_json", b"{'choices':")
shaped("empty_body", b"")
shaped("a_list", [1, 2])
shaped("a_number", 5)
shaped("null", None)
shaped("deep", b"[" * 100_000)
shaped("no_choices", {"choices": []})
shaped("choices_null", {"choices": None})
shaped("choices_text", {"choices": "x"})
shaped("message_null", {"choices": [{"index": 0, "message": None, "finish_reason": "stop"}]})
shaped("content_list", {"choices": [{"index": 0, "message": {"role": "assistant", "content": [1]}, "finish_reason": 5}]})
shaped("content_number", {"choices": [{"index": 0, "message": {"role": "x", "content": 80}, "finish_reason": "stop"}]})
shaped("odd_usage", completion("80") | {"usage": {"prompt_tokens": 10**40, "completion_tokens": -5, "total_tokens": "x"}})
shaped(
    "odd_logprobs",
    {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "80"},
                "logprobs": {"content": [{"token": None, "top_logprobs": 3}]},
            }
        ]
    },
)
shaped("error_in_200", {"error": {"message": "no", "code": 5}})
shaped("not_utf8", b'{"choices": "\xff\xfe"}')


@mode
def echoed_key(h: Handler, request: dict[str, Any]) -> None:
    """The key comes back as the reply."""
    h.send(200, completion(f"80 {h.headers.get('authorization')}"))


@mode
def echoed_key_in_error(h: Handler, request: dict[str, Any]) -> None:
    """The key comes back in an error."""
    h.send(400, {"error": {"message": f"bad key {h.headers.get('authorization')}", "headers": dict(h.headers)}})


@mode
def echoed_key_in_page(h: Handler, request: dict[str, Any]) -> None:
    """The key comes back in a page."""
    h.send(500, f"<pre>{h.headers}</pre>".encode())


@mode
def reset(h: Handler, request: dict[str, Any]) -> None:
    """The connection is reset."""
    h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    h.close_connection = True
    h.connection.close()


@mode
def closed(h: Handler, request: dict[str, Any]) -> None:
    """The connection is closed without a word."""
    h.close_connection = True
    h.connection.shutdown(socket.SHUT_RDWR)


@mode
def too_short(h: Handler, request: dict[str, Any]) -> None:
    """The body is shorter than its header says."""
    h.send(200, completion("80"), length=10**6)
    h.close_connection = True


@mode
def too_long(h: Handler, request: dict[str, Any]) -> None:
    """The body is longer than its header says."""
    h.send(200, completion("80"), length=20)


@mode
def odd_length(h: Handler, request: dict[str, Any]) -> None:
    """The length is no number."""
    h.send_response(200)
    h.send_header("content-length", "many")
    h.end_headers()
    h.close_connection = True


@mode
def no_http(h: Handler, request: dict[str, Any]) -> None:
    """It does not speak HTTP."""
    h.wfile.write(b"\x00\x01\x02 hello\r\n\r\n")
    h.close_connection = True


@mode
def endless_headers(h: Handler, request: dict[str, Any]) -> None:
    """The headers do not end."""
    h.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for n in range(20_000):
        h.wfile.write(f"x-{n}: {'y' * 100}\r\n".encode())
    h.close_connection = True


@mode
def endless(h: Handler, request: dict[str, Any]) -> None:
    """The body does not end."""
    h.begin()
    for _ in range(4000):
        h.wfile.write(b" " * 2**16)


@mode
def drip(h: Handler, request: dict[str, Any]) -> None:
    """A byte now and then."""
    h.begin()
    for _ in range(200):
        h.wfile.write(b" ")
        h.wfile.flush()
        time.sleep(SLOW)


@mode
def silence(h: Handler, request: dict[str, Any]) -> None:
    """Nothing at all."""
    time.sleep(10)


@mode
def gzip_bomb(h: Handler, request: dict[str, Any]) -> None:
    """A little that unpacks to much."""
    h.send(200, gzip.compress(b" " * 2**27, 9), headers={"content-encoding": "gzip"})


@mode
def deflate_bomb(h: Handler, request: dict[str, Any]) -> None:
    """The same in another packing."""
    h.send(200, zlib.compress(b" " * 2**27, 9), headers={"content-encoding": "deflate"})


@mode
def not_gzip(h: Handler, request: dict[str, Any]) -> None:
    """It says that it is packed, and is not."""
    h.send(200, completion("80"), headers={"content-encoding": "gzip"})


@mode
def odd_packing(h: Handler, request: dict[str, Any]) -> None:
    """A packing that nobody knows."""
    h.send(200, completion("80"), headers={"content-encoding": "x-none"})


@mode
def chunks_broken(h: Handler, request: dict[str, Any]) -> None:
    """Chunks whose sizes are none."""
    h.begin(headers={"transfer-encoding": "chunked"})
    h.wfile.write(b"zz\r\n{}\r\n0\r\n\r\n")


@mode
def stream(h: Handler, request: dict[str, Any]) -> None:
    """Events where an object was asked for."""
    h.send(200, b"data: {}\n\n" * 100, headers={"content-type": "text/event-stream"})


@contextmanager
def fault_server(name: str, seen: Seen) -> Iterator[tuple[str, Any]]:
    """Yield the address of a server of one mode, and the server, whose mode may be changed; redirects lead to a second one that counts."""

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.elsewhere.append(f"{self.command} {self.path} {self.headers}")
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    other = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.mode = seen, name  # type: ignore[attr-defined]
    away = f"http://localhost:{other.server_port}/v1/chat/completions"
    for one in ("moved", "found", "see_other", "temporary", "permanent"):
        code = {"moved": 301, "found": 302, "see_other": 303, "temporary": 307, "permanent": 308}[one]
        status(one, code, location=away)
    for running in (other, server):
        running.daemon_threads = True
        running.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that is killed is no fault here
        threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", server
    finally:
        for running in (other, server):
            running.shutdown()
            running.server_close()
