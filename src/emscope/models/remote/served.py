"""An OpenAI-compatible server that takes LoRA adapters over its API (vLLM): started on request, adapters loaded one after the other."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from emscope.core.errors import InputError, WorldError
from emscope.core.plain import Json
from emscope.core.signals import Handler
from emscope.models.remote import minder
from emscope.models.remote.address import KEY_VARIABLE, check_address, scrubbed

PATIENCE = 900.0  # seconds that a server may take to load its model
MOST_SAID = 20_000  # bytes of a refusal that are read
GRACE = 30.0  # seconds to end on its own
REQUEST = 300.0  # seconds to load an adapter
UNKNOWN = 10  # times that the address may answer without knowing the request
NOT_THERE = (OSError, HTTPException, ValueError)
RUNTIME = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


class NoRedirect(HTTPRedirectHandler):
    """Treats a redirect as the answer: the key is for one host only."""

    def redirect_request(self, *_: object) -> None:
        """Follow none."""


OPENER = build_opener(NoRedirect)  # of http and https alone, as the address was checked


class AdapterServer:
    """A server to load adapters into; a context manager.

    Args:
        url: of its API, such as http://127.0.0.1:8000/v1. command: starts it; None if it already runs.
        restart_every: loads after which a server that `command` started is restarted, since every load leaks host memory.
        log: file for the server's output.

    Raises:
        InputError: an invalid address, a command that cannot be run.
        WorldError: it does not answer in time, or exits.
    """

    def __init__(self, url: str, command: str | None, restart_every: int, log: Path) -> None:
        check_address(url)
        if command is not None and not command.strip():
            raise InputError("the server's command is empty", "give the command that starts it with `command`")
        self.url, self.command, self.restart_every, self.log = url.rstrip("/"), command, restart_every, log
        self._process: subprocess.Popen[bytes] | None = None
        self._loads = 0
        self._handlers: dict[int, Handler] = {}

    def __enter__(self) -> AdapterServer:
        self._heed()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers.clear()

    def _heed(self) -> None:
        """Make sure that the server ends with this program, however that ends."""
        if self.command is None or threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, lambda n, _: sys.exit(128 + n))

    @contextmanager
    def adapter(self, name: str, folder: Path) -> Iterator[str]:
        """Yield the name under which the server answers as the adapter in `folder`; it is unloaded afterwards.

        Raises:
            WorldError: the server rejects it.
        """
        if self.command is not None and self._loads >= self.restart_every:
            self._stop()
            self._start()
        self._loads += 1
        load = {"lora_name": name, "lora_path": str(folder.resolve())}
        try:
            self._post("load_lora_adapter", load)
        except WorldError:  # perhaps left loaded by a killed job
            with suppress(WorldError):
                self._post("unload_lora_adapter", {"lora_name": name})
            self._post("load_lora_adapter", load)
        try:
            yield name
        except BaseException:
            with suppress(WorldError):  # the earlier error is what matters
                self._post("unload_lora_adapter", {"lora_name": name})
            raise
        self._post("unload_lora_adapter", {"lora_name": name})

    def _start(self) -> None:
        self._loads = 0
        if self.command is None:
            return
        if self._answers() is not None:
            raise InputError(f"something already answers at {self.url}", "end it, or leave out `command`")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as sink:
            try:
                words = shlex.split(self.command)
                if shutil.which(words[0]) is None:
                    raise ValueError(f"there is no program '{words[0]}'")
                self._process = subprocess.Popen(
                    [sys.executable, minder.__file__, *words],
                    stdin=subprocess.PIPE,  # closed by the system when this process ends, however it does
                    stdout=sink,
                    stderr=sink,
                    env=os.environ | RUNTIME,
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                raise InputError(f"the server's command cannot be run ({error})", "check `command`") from None
        self._wait()

    def _wait(self) -> None:
        end, unknown = time.monotonic() + PATIENCE, 0
        while time.monotonic() < end:
            if self._process is not None and self._process.poll() is not None:
                raise WorldError(f"the server exited with code {self._process.returncode}", f"see its output in {self.log}")
            code = self._answers()
            if code == 200:
                return
            if code in (401, 403):
                raise WorldError(f"the server at {self.url} needs a key", f"set {KEY_VARIABLE}")
            unknown += code == 404
            if unknown > UNKNOWN:
                raise WorldError(f"the server at {self.url} has no /models there", "does the address end in /v1?")
            time.sleep(0.5)
        raise WorldError(f"the server at {self.url} did not answer in {PATIENCE:.0f} seconds", f"see {self.log}")

    def _answers(self) -> int | None:
        """Return the status of a request for the models; None where nothing answers."""
        try:
            with OPENER.open(self._request("models", None), timeout=5) as reply:
                return int(reply.status)
        except HTTPError as error:
            return error.code
        except NOT_THERE:
            return None

    def _stop(self) -> None:
        """End the server and everything it started."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            _signal(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            _signal(process.pid, signal.SIGKILL)
            process.wait()

    def _post(self, what: str, body: Mapping[str, Json]) -> None:
        try:
            with OPENER.open(self._request(what, body), timeout=REQUEST):
                return
        except HTTPError as error:
            said = "no message"
            with suppress(*NOT_THERE):
                said = scrubbed(error.read(MOST_SAID).decode(errors="replace"))[:300]
            raise WorldError(
                f"the server at {self.url} rejected {what} of '{body['lora_name']}' ({error.code}: {said})",
                "start vLLM with --enable-lora, a --max-lora-rank of the adapter's rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
            ) from None
        except NOT_THERE as error:
            raise WorldError(
                f"the server at {self.url} does not answer ({scrubbed(str(error))})", "check that it runs"
            ) from None

    def _request(self, what: str, body: Mapping[str, Json] | None) -> Request:
        headers = {"content-type": "application/json"}
        if os.environ.get(KEY_VARIABLE):
            headers["authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        data = None if body is None else json.dumps(body).encode()
        return Request(f"{self.url}/{what}", data, headers)  # noqa: S310 (its scheme was checked)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
