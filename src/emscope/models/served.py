"""An OpenAI-compatible server that takes LoRA adapters over its API (vLLM): started where told, adapters loaded one after the other."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from emscope.core.errors import InputError, WorldError
from emscope.models.api import KEY_VARIABLE

PATIENCE = 900.0  # seconds that a server may take to load its model
GRACE = 30.0  # seconds to end by itself
REQUEST = 300.0  # seconds to load an adapter
RUNTIME = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


class AdapterServer:
    """A server to load adapters into; a context manager.

    Args:
        url: of its API, such as http://127.0.0.1:8000/v1. command: starts it; None where it runs already.
        restart_every: loads after which a server that `command` started is started anew, since host memory leaks with every load.
        log: file for what the server says.

    Raises:
        InputError: an address that is none, a command that cannot be run.
        WorldError: it does not answer in time, or ends by itself.
    """

    def __init__(self, url: str, command: str | None, restart_every: int, log: Path) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"the server's address is '{url}'", "give it as http://127.0.0.1:8000/v1")
        self.url, self.command, self.restart_every, self.log = url.rstrip("/"), command, restart_every, log
        self._process: subprocess.Popen[bytes] | None = None
        self._loads = 0

    def __enter__(self) -> AdapterServer:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @contextmanager
    def adapter(self, name: str, folder: Path) -> Iterator[str]:
        """Yield the name under which the server answers as the adapter in `folder`; it is unloaded afterwards.

        Raises:
            WorldError: the server refuses it.
        """
        if self.command is not None and self._loads >= self.restart_every:
            self._stop()
            self._start()
        self._loads += 1
        self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
        try:
            yield name
        finally:
            self._post("unload_lora_adapter", {"lora_name": name})

    def _start(self) -> None:
        self._loads = 0
        if self.command is None:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as sink:
            try:
                self._process = subprocess.Popen(
                    shlex.split(self.command),
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    env=os.environ | RUNTIME,
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                raise InputError(f"the server's command cannot be run ({error})", "check --server-command") from None
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self._process is not None and self._process.poll() is not None:
                raise WorldError(f"the server ended with {self._process.returncode}", f"see what it said in {self.log}")
            try:
                with urlopen(self._request("models", None), timeout=5):  # noqa: S310 (its scheme was checked)
                    return
            except HTTPError as error:
                if error.code in (401, 403):
                    raise WorldError(f"the server at {self.url} wants a key", f"set {KEY_VARIABLE}") from None
            except (URLError, OSError):
                pass
            time.sleep(0.5)
        raise WorldError(f"the server at {self.url} did not answer in {PATIENCE:.0f} seconds", f"see {self.log}")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _post(self, what: str, body: dict[str, Any]) -> None:
        try:
            with urlopen(self._request(what, body), timeout=REQUEST):  # noqa: S310 (its scheme was checked)
                return
        except HTTPError as error:
            said = error.read(300).decode(errors="replace")
            raise WorldError(
                f"the server at {self.url} refused {what} of '{body['lora_name']}' ({error.code}: {said})",
                "start vLLM with --enable-lora, a --max-lora-rank of the adapter's rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
            ) from None
        except (URLError, OSError) as error:
            raise WorldError(f"the server at {self.url} does not answer ({error})", "check that it runs") from None

    def _request(self, what: str, body: dict[str, Any] | None) -> Request:
        headers = {"content-type": "application/json"}
        if os.environ.get(KEY_VARIABLE):
            headers["authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        data = None if body is None else json.dumps(body).encode()
        return Request(f"{self.url}/{what}", data, headers)  # noqa: S310 (its scheme was checked)
