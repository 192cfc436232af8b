"""A server on loopback that the official, unmodified `tinker` client can train, sample and read at, with a tiny real model behind it.

Written from the client's own requests (tinker 0.38). Weights are real PEFT adapters, so log-probabilities, gradients and
optimiser steps are real. Saved weights lie in a folder: a server that is killed and started again there still has them.

    python tests/tinker_server.py MODEL_FOLDER STATE_FOLDER PORT
"""

from __future__ import annotations

import json
import queue
import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # run as a program, too
from faulty import Faults
from tinker_models import Run, Samplers

KEY = "tml-a-key-of-tests-only"
BASE = "tiny/tiny-llama"
PENDING = 0.2  # seconds that a result is waited for before the client is told to try again
INLINE = 20_000  # bytes of a result that is sent without being announced
Body = dict[str, Any]


class Refused(Exception):
    """A request that is answered with a status of its own."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclass
class Promise:
    """A result to come: JSON, protobuf bytes, or an error's text."""

    done: threading.Event = field(default_factory=threading.Event)
    found: Body | bytes | None = None


class Tinker:
    """The service itself; `post` and `get` answer requests."""

    def __init__(self, model: Path, root: Path, faults: Faults, config: Body) -> None:
        self.root, self.faults, self.config = root, faults, config
        self.samplers = Samplers(model)
        self.runs: dict[str, Run] = {}
        self.waiting: dict[str, dict[int, Callable[[], None]]] = {}  # by run and number, those whose turn has not come
        self.next: dict[str, int] = {}
        self.sampling: dict[str, tuple[str, str | None]] = {}
        self.promises: dict[str, Promise] = {}
        self.requests: list[tuple[str, Body | bytes]] = []
        self.seen: list[str] = []  # every header and body, for the search for keys
        self.lock = threading.Lock()
        self.work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.worker = threading.Thread(target=self._work, daemon=True)
        self.worker.start()
        self.address = ""

    def _work(self) -> None:
        while (job := self.work.get()) is not None:
            job()

    def get(self, path: str) -> Body | bytes:
        """Answer a GET request."""
        parts = path.partition("?")[0].removeprefix("/api/v1/").split("/")
        if path.startswith("/files/"):
            return self._file(path)
        if parts == ["get_server_capabilities"]:
            return {
                "supported_models": [{"model_name": BASE, "max_context_length": 512, "trainable": True, "sampleable": True}]
            }
        if parts[0] == "samplers":
            base, model_path = self._sampler(parts[1])
            return {"sampler_id": parts[1], "base_model": base, "model_path": model_path}
        if parts[0] == "training_runs" and len(parts) == 2:
            if not (self.root / parts[1]).is_dir():
                raise Refused(404, f"no run {parts[1]}")
            about = {"model_owner": "me", "is_lora": True, "last_request_time": "2026-01-01T00:00:00Z"}
            return {"training_run_id": parts[1], "base_model": BASE, **about}
        if parts[0] == "training_runs" and parts[-1] == "external_weights_urls":
            run, name = parts[1], "/".join(parts[3:-1])
            files = sorted(p.name for p in self._saved(f"tinker://{run}/{name}").iterdir() if p.suffix != ".pt")
            urls = {f: f"{self.address}/files/{run}/{name}/{f}?signature=abc" for f in files}
            return {"urls": urls, "expires": "2100-01-01T00:00:00Z"}
        if parts[0] == "training_runs" and parts[-1] == "checkpoints":
            return {"checkpoints": [self._listed(p) for p in sorted((self.root / parts[1]).glob("*/*"))]}
        raise Refused(404, f"no {path}")

    def post(self, path: str, body: Body | bytes) -> Body:
        """Answer a POST request with JSON."""
        name = path.removeprefix("/api/v1/")
        self.requests.append((name, body))
        if isinstance(body, bytes):
            return self._forward_backward(body)
        if name.startswith("sessions/") or name in ("session_heartbeat", "client/dynamic_config", "cancel_future"):
            return {}
        if name == "client/config":
            return self.config
        if name == "telemetry":
            return {"status": "accepted"}
        if name == "create_session":
            return {"session_id": uuid.uuid4().hex}
        answer = getattr(self, f"_{name}", None)
        if answer is None:
            raise Refused(404, f"no {path}")
        return answer(body)

    # --- training ---

    def _create_model(self, body: Body) -> Body:
        if body["base_model"] != BASE:
            raise Refused(400, f"base model '{body['base_model']}' is not supported")
        run, how = f"{body['session_id']}:train:{body['model_seq_id']}", body["lora_config"]
        self._open_run(run)

        def create() -> Body:
            self.runs[run] = Run.fresh(self.samplers.base, how)
            return {"model_id": run, "type": "create_model"}

        return self._promised(f"{run}:0", create, model_id=run)

    def _load_weights(self, body: Body) -> Body:
        run, saved = f"{body['session_id']}:train:{body['model_seq_id']}", self._saved(body["path"])
        self._open_run(run)

        def load() -> Body:
            self.runs[run] = Run.saved(self.samplers.base, saved, optimiser=body["optimizer"])
            return {"path": body["path"], "model_id": run, "type": "load_weights"}

        return self._promised(f"{run}:0", load, model_id=run)

    def _open_run(self, run: str) -> None:
        """Await the requests of a run, of which the first has number 1."""
        with self.lock:
            self.waiting.setdefault(run, {})
            self.next.setdefault(run, 1)

    def _get_info(self, body: Body) -> Body:
        run = self.runs.get(body["model_id"])
        if run is None:
            raise Refused(404, f"no model {body['model_id']}")
        data = {"arch": "llama", "model_name": BASE, "tokenizer_id": BASE}
        return {"type": "get_info", "model_data": data, "model_id": body["model_id"], "is_lora": True, "lora_rank": run.rank}

    def _forward_backward(self, body: bytes) -> Body:
        from tinker.proto import tinker_public_pb2 as pb

        message = pb.ForwardBackwardRequest()
        message.ParseFromString(body)
        if message.loss_fn != "cross_entropy":
            raise Refused(400, f"unknown loss '{message.loss_fn}'")
        run = message.model_id
        return self._in_turn(run, message.seq_id, lambda: self.runs[run].forward_backward(message))

    def _optim_step(self, body: Body) -> Body:
        run = body["model_id"]
        return self._in_turn(run, body["seq_id"], lambda: self.runs[run].step(body["adam_params"]))

    def _save_weights(self, body: Body) -> Body:
        return self._save(body, "weights", optimiser=True)

    def _save_weights_for_sampler(self, body: Body) -> Body:
        return self._save(body, "sampler_weights")

    def _save_weights_external(self, body: Body) -> Body:
        return self._save(body, "external_weights")

    def _save(self, body: Body, kind: str, *, optimiser: bool = False) -> Body:
        run, place = body["model_id"], f"{body['model_id']}/{kind}/{body['path']}"

        def save() -> Body:
            self.runs[run].save(self.root / place, optimiser=optimiser)
            return {"path": f"tinker://{place}", "type": body["type"]}

        return self._in_turn(run, body["seq_id"], save)

    def _in_turn(self, run: str, number: int, job: Callable[[], Body | bytes]) -> Body:
        """Promise what `job` returns, computed once all requests of a run with lower numbers are."""
        if run not in self.runs:
            raise Refused(404, f"no model {run}")
        request = f"{run}:{number}"
        with self.lock:
            if request not in self.promises:
                promise = self.promises[request] = Promise()
                self.waiting[run][number] = lambda: self._fulfil(promise, job)
            while (ready := self.waiting[run].pop(self.next[run], None)) is not None:
                self.work.put(ready)
                self.next[run] += 1
        return {"request_id": request, "model_id": run}

    # --- sampling ---

    def _create_sampling_session(self, body: Body) -> Body:
        name = f"{body['session_id']}:sample:{body['sampling_session_seq_id']}"
        path, base = body.get("model_path"), body.get("base_model")
        if path is not None:
            self._saved(path)
        elif base != BASE:
            raise Refused(400, f"base model '{base}' is not supported")
        self.sampling[name] = (BASE, path)
        return {"sampling_session_id": name}

    def _sampler(self, name: str) -> tuple[str, str | None]:
        if name not in self.sampling:
            raise Refused(404, f"no sampler {name}")
        return self.sampling[name]

    def _asample(self, body: Body) -> Body:
        _, path = self._sampler(body["sampling_session_id"])
        request = f"{body['sampling_session_id']}:{body['seq_id']}"
        ids = [f"{request}:{n}" for n in range(body["num_samples"])]
        tokens = [t for chunk in body["prompt"]["chunks"] for t in chunk["tokens"]]
        if not tokens or max(tokens) >= self.samplers.vocabulary or len(tokens) > 512:
            raise Refused(400, f"a prompt of {len(tokens)} tokens cannot be read")
        saved = self._saved(path) if path else None
        return self._promised(request, lambda: self.samplers.sample(saved, tokens, body)) | {"sample_sequence_ids": ids}

    # --- promises ---

    def _promised(self, request: str, job: Callable[[], Body | bytes], **more: str) -> Body:
        with self.lock:
            if request not in self.promises:
                promise = self.promises[request] = Promise()
                self.work.put(lambda: self._fulfil(promise, job))
        return {"request_id": request, **more}

    @staticmethod
    def _fulfil(promise: Promise, job: Callable[[], Body | bytes]) -> None:
        try:
            promise.found = job()
        except Exception as error:
            promise.found = {"error": f"{type(error).__name__}: {error}", "category": "server"}
        promise.done.set()

    def retrieve(self, body: Body) -> Body | bytes:
        """Return a result, or what is said until there is one."""
        promise = self.promises.get(body["request_id"])
        if promise is None:
            raise Refused(410, "this promise has expired")
        if not promise.done.wait(PENDING):
            raise Refused(408, "still at it")
        found = promise.found
        assert found is not None
        if isinstance(found, bytes) and len(found) > INLINE and body.get("allow_metadata_only"):
            return {"status": "complete_metadata", "response_payload_size": len(found)}
        return found

    def forget(self, body: Body) -> None:
        """Lose a result for good."""
        self.promises.pop(body["request_id"], None)

    # --- files ---

    def _saved(self, path: str) -> Path:
        place = self.root / path.removeprefix("tinker://")
        if not path.startswith("tinker://") or ".." in path or not (place / "adapter_config.json").is_file():
            raise Refused(404, f"no weights at {path}")
        return place

    def _listed(self, place: Path) -> Body:
        kind = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}[place.parent.name]
        about = {
            "checkpoint_type": kind,
            "time": "2026-01-01T00:00:00Z",
            "tinker_path": f"tinker://{place.relative_to(self.root)}",
        }
        return {"checkpoint_id": f"{place.parent.name}/{place.name}", **about}

    def _file(self, path: str) -> bytes:
        place, _, query = path.removeprefix("/files/").partition("?")
        if query != "signature=abc":
            raise Refused(403, "not signed")
        return (self.root / place).read_bytes()

    def delete(self, path: str) -> None:
        """Delete a checkpoint."""
        parts = path.removeprefix("/api/v1/training_runs/").split("/")
        shutil.rmtree(self._saved(f"tinker://{parts[0]}/{'/'.join(parts[2:])}"))


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP for the `service` that a subclass names."""

    protocol_version = "HTTP/1.1"
    service: Tinker

    def do_GET(self) -> None:
        self._answer(lambda: self.service.get(self.path), keyed=not self.path.startswith("/files/"))

    def do_DELETE(self) -> None:
        self._answer(lambda: self.service.delete(self.path) or {})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer(dict)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        proto = "protobuf" in self.headers.get("content-type", "")
        self.service.seen.append(raw.decode("latin-1"))
        body: Any = raw if proto else json.loads(raw or b"{}")
        if self.path.endswith("/retrieve_future"):
            self._answer(lambda: self.service.retrieve(body), gone=lambda: self.service.forget(body))
        else:
            self._answer(lambda: self.service.post(self.path, body))

    def _answer(self, found: Callable[[], Body | bytes], *, keyed: bool = True, gone: Callable[[], None] = dict) -> None:
        fault = self.service.faults.of(self.path)
        if keyed and self.headers.get("x-api-key") != KEY:
            self._send(401, {"detail": f"unknown key {self.headers.get('x-api-key')}"})
        elif fault == "cut before":
            self._cut()
        elif fault == "400":
            self._send(400, b"")  # as a proxy says it
        elif fault not in (None, "cut after"):
            gone() if fault == "410" else None
            self._send(int(fault or 500), {"detail": f"fault {fault}", "type": "try_again", "queue_state": "active"})
        else:
            try:
                answer, status = found(), 200
            except Refused as error:
                answer, status = {"detail": error.detail, "queue_state": "active"}, error.status
            self._cut() if fault else self._send(status, answer)

    def _send(self, status: int, body: Body | bytes) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        proto = isinstance(body, bytes) and status == 200 and not self.path.startswith("/files/")
        self.send_response(status)
        self.send_header("content-type", "application/x-protobuf" if proto else "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("retry-after-ms", "5")
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(data)

    def _cut(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(2)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def tinker_server(
    model: Path, root: Path, *, faults: Faults | None = None, config: Body | None = None, port: int = 0
) -> Iterator[Tinker]:
    """Yield the service; its address is `service.address`."""
    service = Tinker(model, root, faults or Faults(), config or {})
    handler = type("Bound", (Handler,), {"service": service})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    service.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        service.work.put(None)


if __name__ == "__main__":
    with tinker_server(Path(sys.argv[1]), Path(sys.argv[2]), port=int(sys.argv[3])) as running:
        print(running.address, flush=True)
        threading.Event().wait()
