"""A small OpenAI-compatible server for tests, on loopback: a function from the request to (status, body) answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], "tuple[int, Any] | None"]


def completion(text: str, top: dict[str, float] | None = None, finish: str = "stop") -> dict[str, Any]:
    """Return a chat completion; `top` maps first tokens to log-probabilities."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    if top is not None:
        seen = [{"token": t, "logprob": p, "bytes": None} for t, p in top.items()]
        first = next(iter(top))
        choice["logprobs"] = {"content": [{"token": first, "logprob": top[first], "bytes": None, "top_logprobs": seen}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class Waiting(ThreadingHTTPServer):
    """As many connections as are allowed come at once; five may wait by default, and others are reset."""

    request_queue_size = 128


@contextmanager
def fake_api(answer: Answer) -> Iterator[str]:
    """Yield the server's url; `answer` returns (status, body), or None to cut the connection."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found = answer(request)
            if found is None:
                self.close_connection = True
                self.connection.close()
                return
            status, body = found
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = Waiting(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)  # seconds that a shutdown waits
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
