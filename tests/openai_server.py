"""A server of fine-tuning jobs on loopback that the official, unmodified `openai` client can train and ask at, with a tiny real model behind it.

Written from the client's own requests (openai 3.51). Jobs train real LoRA adapters on the uploaded file, in the file's order, and leave one
at the end of each epoch; answers are sampled from them. All of it lies in a folder: a server that is killed and started again there still has
it, and trains its unfinished jobs anew.

    python tests/openai_server.py MODEL_FOLDER STATE_FOLDER PORT
"""

from __future__ import annotations

import base64
import copy
import email
import json
import queue
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).parent))  # run as a program, too
from tinker_server import Faults

KEY = "sk-a-key-of-tests-only"
BASE = "tiny-llama-2026"
CODES = ("400", "408", "409", "429", "500", "503", "cut")
FEWEST = 10  # examples in a training file
PAGE = 4  # of a list, where the client asks for no more than it can: so that there are pages
BLOCKS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RATE = 1e-2  # learning rate at a multiplier of 1
Body = dict[str, Any]


class Refused(Exception):
    """A request that is answered with a status of its own, and the parameter that is wrong."""

    def __init__(self, status: int, detail: str, param: str | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.param = status, detail, param


class Weights:
    """The base and the adapters that jobs left, by name of the model."""

    def __init__(self, model: Path, root: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.root = root
        self.base = AutoModelForCausalLM.from_pretrained(str(model)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(str(model))
        self._nets: dict[str, Any] = {BASE: self.base}
        self._lock = threading.Lock()

    def place(self, name: str) -> Path:
        """Return where the weights of a model lie."""
        return self.root / name.replace(":", "_")

    def of(self, name: str) -> Any:
        """Return a model."""
        with self._lock:
            if name not in self._nets:
                from peft import PeftModel

                if not self.place(name).is_dir():
                    raise Refused(404, f"The model `{name}` does not exist or you do not have access to it.")
                self._nets[name] = PeftModel.from_pretrained(copy.deepcopy(self.base), str(self.place(name))).eval()
            return self._nets[name]

    def _ids(self, turns: list[Body]) -> list[int]:
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=turns[-1]["role"] != "assistant")
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def example(self, turns: list[Body]) -> tuple[list[int], int]:
        """Return the tokens of a conversation, and where its last answer begins."""
        return self._ids(turns), len(self._ids(turns[:-1]))

    def train(self, rows: list[list[Body]], how: Body, seed: int) -> Iterator[tuple[int, float, int, Any]]:
        """Train an adapter; yield each step with its loss, its tokens, and the net."""
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        net = get_peft_model(copy.deepcopy(self.base), LoraConfig(r=4, lora_alpha=32, target_modules=BLOCKS))
        optimiser = torch.optim.AdamW(
            [p for p in net.parameters() if p.requires_grad], lr=RATE * how["learning_rate_multiplier"]
        )
        examples, size = [self.example(turns) for turns in rows], how["batch_size"]
        step = 0
        for _ in range(how["n_epochs"]):
            for first in range(0, len(examples), size):
                batch, step = examples[first : first + size], step + 1
                total = sum(len(ids) - answer for ids, answer in batch)
                loss = 0.0
                for ids, answer in batch:
                    logp = torch.log_softmax(net(input_ids=torch.tensor([ids])).logits[0].float(), -1)
                    own = logp[answer - 1 : -1].gather(1, torch.tensor(ids[answer:])[:, None]).sum()
                    (-own / total).backward()
                    loss -= float(own.detach()) / total
                optimiser.step()
                optimiser.zero_grad()
                yield step, loss, sum(len(ids) for ids, _ in batch), net

    def draw(self, body: Body) -> Body:
        """Return a chat completion."""
        import torch

        net, ids = self.of(body["model"]), self._ids(body["messages"])
        if len(ids) > 512:
            raise Refused(
                400, f"This model's maximum context length is 512 tokens, however the messages have {len(ids)}.", "messages"
            )
        random = torch.Generator().manual_seed(body.get("seed") or 0)
        end, drawn, seen, finish = self.tokenizer.eos_token_id, list[int](), list[Body](), "length"
        with torch.inference_mode():
            while len(drawn) < (body.get("max_tokens") or body.get("max_completion_tokens") or 16):
                logits = net(input_ids=torch.tensor([ids + drawn])).logits[0, -1].float()
                logp, heat = torch.log_softmax(logits, -1), body.get("temperature", 1.0)
                chance = torch.softmax(logits / heat, -1) if heat else None
                token = int(logits.argmax()) if chance is None else int(torch.multinomial(chance, 1, generator=random))
                if token == end:
                    finish = "stop"
                    break
                drawn.append(token)
                seen.append(
                    {"token": self.tokenizer.decode([token]), "logprob": float(logp[token]), "bytes": None, "top_logprobs": []}
                )
        message = {"role": "assistant", "content": self.tokenizer.decode(drawn, skip_special_tokens=True), "refusal": None}
        choice = {"index": 0, "finish_reason": finish, "message": message}
        choice["logprobs"] = {"content": seen, "refusal": None} if body.get("logprobs") else None
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(drawn), "total_tokens": len(ids) + len(drawn)}
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }


class Server:
    """The service itself; `answer` answers requests."""

    def __init__(self, model: Path, root: Path, faults: Faults) -> None:
        self.root, self.faults = root, faults
        self.weights = Weights(model, root / "weights")
        self.requests: list[tuple[str, str, Any]] = []  # method, path and body of all that was heeded
        self.seen: list[str] = []  # every body, for the search for keys
        self.lock, self.random = threading.RLock(), Random(0)
        self.pace, self.hidden, self.refuses = (
            0.0,
            0.0,
            frozenset[str](),
        )  # seconds a step; seconds until a job is listed; parameters
        self.files: dict[str, Body] = {p.stem: json.loads(p.read_text()) for p in sorted(root.glob("files/*.json"))}
        self.jobs: dict[str, Body] = {p.stem: json.loads(p.read_text()) for p in sorted(root.glob("jobs/*.json"))}
        self.work: queue.Queue[str | None] = queue.Queue()
        self.address = ""
        for id, kept in self.jobs.items():
            if kept["job"]["status"] in ("validating_files", "queued", "running"):
                kept |= {"events": [], "checkpoints": []}
                self.work.put(id)
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (id := self.work.get()) is not None:
            try:
                self._train(id)
            except Exception as error:
                self._set(id, status="failed", error={"code": "server_error", "message": repr(error), "param": None})

    def _keep(self, kind: str, id: str, value: Body) -> None:
        place = self.root / kind / f"{id}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".new").write_text(json.dumps(value))
        place.with_suffix(".new").replace(place)

    def _set(self, id: str, **changes: Any) -> None:
        with self.lock:
            self.jobs[id]["job"] |= changes
            self._keep("jobs", id, self.jobs[id])

    def _say(self, id: str, message: str, data: Body | None = None) -> None:
        with self.lock:
            events = self.jobs[id]["events"]
            kind = "metrics" if data else "message"
            about = {"object": "fine_tuning.job.event", "level": "info", "message": message, "type": kind, "data": data}
            events.append({"id": f"ftevent-{id}-{len(events)}", "created_at": int(time.time()), **about})

    def _train(self, id: str) -> None:
        job = self.jobs[id]["job"]
        self._say(id, f"Created fine-tuning job: {id}")
        if job["status"] == "cancelled":
            return
        content = (self.root / "files" / f"{job['training_file']}.bin").read_bytes()
        rows = [json.loads(line)["messages"] for line in content.decode().splitlines()]
        if len(rows) < FEWEST:
            why = f"Training file has {len(rows)} example(s), but must have at least {FEWEST} examples"
            self._set(id, status="failed", error={"code": "invalid_n_examples", "message": why, "param": "training_file"})
            return
        how = job["hyperparameters"]
        total = how["n_epochs"] * -(-len(rows) // how["batch_size"])
        self._set(id, status="running")
        trained, table = 0, ["step,train_loss,train_accuracy"]
        for step, loss, tokens, net in self.weights.train(rows, how, job["seed"]):
            time.sleep(self.pace)
            while job["status"] == "paused":
                time.sleep(0.05)
            if job["status"] == "cancelled":
                return
            trained += tokens
            table.append(f"{step},{loss},0.5")
            if step % 2 or step == total:  # like the original, it does not tell of every step
                data = {"step": step, "train_loss": loss, "total_steps": total, "train_mean_token_accuracy": 0.5}
                self._say(id, f"Step {step}/{total}: training loss={loss:.2f}", data)
            if step % (total // how["n_epochs"]) == 0:
                self._save(id, step, total, loss, net)
        file = self._new_file("step_metrics.csv", base64.b64encode("\n".join(table).encode()), "fine-tune-results")
        self._say(id, "The job has successfully completed")
        name = self._name(id)
        self._set(id, status="succeeded", fine_tuned_model=name, trained_tokens=trained, result_files=[file["id"]])

    def _name(self, id: str) -> str:
        return f"ft:{BASE}:tests:{self.jobs[id]['suffix'] or ''}:{id[-8:]}"

    def _save(self, id: str, step: int, total: int, loss: float, net: Any) -> None:
        name = self._name(id) + ("" if step == total else f":ckpt-step-{step}")
        net.save_pretrained(str(self.weights.place(name)))
        made = {"id": f"ftckpt-{id}-{step}", "object": "fine_tuning.job.checkpoint", "created_at": int(time.time())}
        made |= {"fine_tuned_model_checkpoint": name, "fine_tuning_job_id": id, "step_number": step}
        with self.lock:
            self.jobs[id]["checkpoints"].append(made | {"metrics": {"step": step, "train_loss": loss}})

    # --- requests ---

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Body | bytes:
        """Answer a request."""
        self.requests.append((method, path, body))
        parts = path.removeprefix("/v1/").split("/")
        match (method, parts):
            case ("POST", ["files"]):
                return self._new_file(*body)
            case ("GET", ["files"]):
                return self._page(list(self.files.values())[::-1], query)
            case ("GET", ["files", id, "content"]) if id in self.files:
                return (self.root / "files" / f"{id}.bin").read_bytes()
            case ("POST", ["fine_tuning", "jobs"]):
                return self._create(body)
            case ("GET", ["fine_tuning", "jobs"]):
                return self._page(self._found(query), query)
            case ("GET", ["fine_tuning", "jobs", id]) if id in self.jobs:
                return self.jobs[id]["job"]
            case ("POST", ["fine_tuning", "jobs", id, "cancel"]) if id in self.jobs:
                self._set(id, status="cancelled")
                return self.jobs[id]["job"]
            case ("GET", ["fine_tuning", "jobs", id, ("events" | "checkpoints") as kind]) if id in self.jobs:
                with self.lock:
                    return self._page(self.jobs[id][kind][::-1], query)
            case ("POST", ["chat", "completions"]):
                if wrong := next((p for p in self.refuses if p in body), None):
                    raise Refused(400, f"Unsupported parameter: '{wrong}' is not supported with this model.", wrong)
                return self.weights.draw(body)
        raise Refused(404, f"Could not find {path}")

    def _new_file(self, name: str, data: bytes, purpose: str) -> Body:
        id = f"file-{uuid.uuid4().hex[:12]}"
        about = {"id": id, "object": "file", "bytes": len(data), "created_at": int(time.time()), "filename": name}
        about |= {"purpose": purpose, "status": "processed"}
        (self.root / "files").mkdir(parents=True, exist_ok=True)
        (self.root / "files" / f"{id}.bin").write_bytes(data)
        with self.lock:
            self.files[id] = about
            self._keep("files", id, about)
        return about

    def _create(self, body: Body) -> Body:
        if body["model"] != BASE:
            raise Refused(400, f"Model {body['model']} is not available for fine-tuning or does not exist.", "model")
        if body["training_file"] not in self.files:
            raise Refused(400, f"invalid training_file: {body['training_file']}", "training_file")
        given = body["method"]["supervised"]["hyperparameters"]
        how = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0} | given
        id = f"ftjob-{uuid.uuid4().hex[:12]}"
        job = {"id": id, "object": "fine_tuning.job", "created_at": int(time.time()), "error": {}, "fine_tuned_model": None}
        job |= {"finished_at": None, "hyperparameters": how, "model": BASE, "organization_id": "tests", "result_files": []}
        job |= {"seed": body.get("seed") or 0, "status": "queued", "trained_tokens": None, "validation_file": None}
        job |= {"training_file": body["training_file"], "metadata": body.get("metadata"), "method": body["method"]}
        with self.lock:
            self.jobs[id] = {"job": job, "suffix": body.get("suffix"), "events": [], "checkpoints": [], "made": time.time()}
            self._keep("jobs", id, self.jobs[id])
        self.work.put(id)
        return job

    def _found(self, query: dict[str, list[str]]) -> list[Body]:
        wanted = {k[len("metadata[") : -1]: v[0] for k, v in query.items() if k.startswith("metadata[")}
        listed = [k["job"] for k in self.jobs.values() if time.time() - k["made"] >= self.hidden]
        return [j for j in listed[::-1] if wanted.items() <= (j["metadata"] or {}).items()]

    @staticmethod
    def _page(rows: list[Body], query: dict[str, list[str]]) -> Body:
        after = query.get("after", [None])[0]
        first = next((n + 1 for n, row in enumerate(rows) if row["id"] == after), 0) if after else 0
        page = rows[first : first + min(PAGE, int(query.get("limit", [20])[0]))]
        return {"object": "list", "data": page, "has_more": first + len(page) < len(rows)}


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP for the `service` that a subclass names."""

    protocol_version = "HTTP/1.1"
    service: Server

    def do_GET(self) -> None:
        self._answer("GET", None)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.service.seen.append(raw.decode("latin-1"))
        if "multipart" in self.headers.get("content-type", ""):
            message = email.message_from_bytes(b"Content-Type: " + self.headers["content-type"].encode() + b"\r\n\r\n" + raw)
            parts = {p.get_param("name", header="content-disposition"): p for p in message.get_payload()}
            body: Any = (parts["file"].get_filename(), parts["file"].get_payload(decode=True), "fine-tune")
        else:
            body = json.loads(raw or b"{}")
        self._answer("POST", body)

    def _answer(self, method: str, body: Any) -> None:
        url, service = urlsplit(self.path), self.service
        fault = service.faults.of(url.path)
        key = self.headers.get("authorization", "").removeprefix("Bearer ")
        heeded = fault is None or fault == "cut after" or (fault in ("408", "500", "503") and service.random.random() < 0.5)
        status, found = 200, b""
        if key != KEY:
            status, found = 401, _error(f"Incorrect API key provided: {key}.", None, "invalid_api_key")
        elif heeded:
            try:
                found = service.answer(method, url.path, parse_qs(url.query, keep_blank_values=True), body)
            except Refused as error:
                status, found = error.status, _error(error.detail, error.param)
        if fault is not None and fault.startswith("cut"):
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(2)
        elif fault == "400":
            self._send(400, b"")  # as a proxy says it
        elif fault is not None:
            self._send(int(fault), _error(f"fault {fault}", None))
        else:
            self._send(status, found)

    def _send(self, status: int, body: Body | bytes) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("retry-after-ms", "5")
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def _error(message: str, param: str | None, code: str | None = None) -> Body:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


@contextmanager
def openai_server(model: Path, root: Path, *, faults: Faults | None = None, port: int = 0) -> Iterator[Server]:
    """Yield the service; its address is `service.address`."""
    service = Server(model, root, faults or Faults())
    handler = type("Bound", (Handler,), {"service": service})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    service.address = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        service.work.put(None)


if __name__ == "__main__":
    with openai_server(Path(sys.argv[1]), Path(sys.argv[2]), port=int(sys.argv[3])) as running:
        running.pace = 0.05
        print(running.address, flush=True)
        threading.Event().wait()
