"""Tinker through its official client: training, reading and sampling at weights that are not on this machine.

The client retries failures that it knows to be temporary (408, 429, 5xx, a lost connection); temporary ones that it gives up on
(a result that is gone, 410; one that is pending, 425) are retried here. Reading and sampling change nothing at the host and are
simply repeated. A lost training request is not: it may or may not have been carried out, so training resumes from saved weights.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Protocol, TypeVar

from emscope.core.errors import InputError, MissingDependency, WorldError, near
from emscope.models.remote.address import check_address
from emscope.models.remote.metering import Meter, charge_for_reading, charge_for_sample
from emscope.models.remote.outcomes import LATER, TINKER, fault_of, said, status_of
from emscope.models.remote.session import Session

if TYPE_CHECKING:
    from tinker import RestClient, SamplingClient, ServiceClient, TrainingClient
    from tinker.types import (
        ExternalWeightsUrlsResponse,
        GetServerCapabilitiesResponse,
        SampleResponse,
        SaveWeightsExternalResponse,
        SupportedModel,
    )

V = TypeVar("V")
HOST, ADDRESS, TELEMETRY = "tinker", "TINKER_BASE_URL", "TINKER_TELEMETRY"
QUEUES = ("tinker.lib.queue_state_logger", "tinker.lib.public_interfaces.sampling_client")  # its loggers
LOOK = 0.5  # seconds between checks for cancellation
GONE = 404  # for an adapter in training, or a sampler, that existed before
KEPT = 3600  # seconds that exported weights stay, the least that Tinker allows
CLOSING = 5.0  # seconds to say goodbye in
INSTALL = "pip install 'emscope[tinker]'"


class Promise(Protocol[V]):
    """A pending result of the client."""

    def future(self) -> Future[V]: ...


class Lost(Exception):
    """A training request that may or may not have been carried out."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sampled answer: token ids, the sum of their log-probabilities [nats] and whether it ended on its own."""

    tokens: tuple[int, ...]
    logprob: float | None
    stopped: bool


class Tinker(Session):
    """A session at Tinker; a context manager.

    Args:
        meter: counts what is sent. requests: concurrent readings and samples.

    Raises:
        MissingDependency: the client is not installed.
        InputError: no key, or a wrong one; an invalid address.
        WorldError: Tinker does not answer.
    """

    def __init__(self, meter: Meter, requests: int = 32) -> None:
        super().__init__(TINKER, meter, requests)
        self._key, self._address = _key(), os.environ.get(ADDRESS) or None
        self._service: ServiceClient | None = None
        self._samplers: dict[str, SamplingClient] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Tinker:
        import tinker

        os.environ.setdefault(TELEMETRY, "0")  # its error reports contain the request's headers, and so the key
        _quieten()
        self._service = tinker.ServiceClient(base_url=self._address, api_key=self._key)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopped.set()
        if self._service is not None:
            with suppress(Exception):  # a lost goodbye does no harm
                self._service.close("success" if kind is None else "errored").result(CLOSING)

    @property
    def service(self) -> ServiceClient:
        """The client; only inside the context."""
        assert self._service is not None
        return self._service

    def context_of(self, base: str) -> int | None:
        """Return the longest sequence that a base takes there [tokens]; None where not given.

        Raises:
            InputError: Tinker has no such base.
        """
        known = {m.model_name: m.max_context_length for m in self.again("the list of its models", lambda: self._models())}
        if base not in known:
            raise InputError(f"Tinker has no base '{base}'", f"use Tinker's name for it; {near(base, [n for n in known if n])}")
        return known[base]

    def _models(self) -> list[SupportedModel]:
        found: GetServerCapabilitiesResponse = self.result(self.rest().get_server_capabilities())
        return list(found.supported_models)

    def rest(self) -> RestClient:
        """Return the client for requests that need no session."""
        import tinker

        return tinker.RestClient(base_url=self._address, api_key=self._key)

    def begin(self, base: str, *, rank: int, seed: int) -> TrainingClient:
        """Return a new LoRA adapter of all matrices of the blocks, its start drawn by a seed.

        Raises:
            InputError, WorldError: it was rejected.
        """

        def create() -> TrainingClient:
            made = self.service.create_lora_training_client(base, rank=rank, seed=seed, train_unembed=False)
            return self.result(made)

        return self.again(f"a LoRA adapter of {base}", create)

    def go_on(self, state: str) -> TrainingClient:
        """Return an adapter as its weights and its optimiser's state were saved.

        Raises:
            InputError, WorldError: it was rejected.
        """

        def load() -> TrainingClient:
            return self.result(self.service.create_training_client_from_state_with_optimizer(state))

        return self.again(f"training on from {state}", load)

    def exported(self, state: str) -> tuple[str, dict[str, str]]:
        """Have saved weights written as files; return where, and a signed address for each file. They are deleted after an hour.

        Raises:
            InputError, WorldError: it was rejected.
        """

        def export() -> tuple[str, dict[str, str]]:
            client = self.result(self.service.create_training_client_from_state(state))
            saved: SaveWeightsExternalResponse = self.result(client.save_weights_external("export", ttl_seconds=KEPT))
            urls: ExternalWeightsUrlsResponse = self.result(self.rest().get_external_weights_urls(saved.path))
            return saved.path, dict(urls.urls)

        return self.again(f"an export of {state}", export)

    def delete(self, path: str) -> None:
        """Delete exported weights; if that fails, they are deleted after an hour anyway."""
        with suppress(Exception):
            self.result(self.rest().delete_checkpoint_from_tinker_path(path))

    def logprobs(self, base: str, path: str | None, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """Return the summed log-probability of an answer's tokens after a prompt [nats].

        Args:
            path: saved weights, None for the base itself.

        Raises:
            OverBudget, InputError, WorldError: it was not read.
        """
        from tinker.types import ModelInput

        ids = ModelInput.from_ints([*prompt, *answer])

        def read() -> float:
            self.meter.charge(charge_for_reading(prompt, answer))
            found: list[float | None] = self._asked(
                path, base, lambda sampler: sampler.compute_logprobs(ids, prompt_logprobs_last_n=len(answer))
            )
            values = found[-len(answer) :]
            if len(found) != ids.length:
                raise WorldError(f"Tinker gave {len(found)} log-probabilities for {ids.length} tokens", LATER)
            if any(v is None or not isfinite(v) for v in values):
                raise WorldError(
                    f"Tinker gave no log-probability for a token of an answer at {path or base}",
                    "check whether the weights diverged",
                )
            return sum(float(v) for v in values if v is not None)

        return self.again(f"a reading of {path or base}", read)

    def sample(
        self,
        base: str,
        path: str | None,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        ends: Sequence[int],
    ) -> Drawn:
        """Return one sampled answer; a seed gives the same one again if the host respects it.

        Raises:
            OverBudget, InputError, WorldError: it was not sampled.
        """
        from tinker.types import ModelInput, SamplingParams

        ids = ModelInput.from_ints(list(prompt))
        how = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed % 2**31, stop=list(ends))

        def draw() -> Drawn:
            self.meter.charge(charge_for_sample(prompt, max_tokens))
            found: SampleResponse = self._asked(path, base, lambda sampler: sampler.sample(ids, 1, how))
            (one,) = found.sequences
            self.meter.refund(max_tokens - len(one.tokens))
            logprob = None if one.logprobs is None else float(sum(one.logprobs))
            return Drawn(tuple(one.tokens), logprob, one.stop_reason == "stop")

        return self.again(f"a sample of {path or base}", draw)

    def _asked(self, path: str | None, base: str, ask: Callable[[SamplingClient], Promise[V]]) -> V:
        """Return a sampler's answer; a sampler that the host has lost is opened again at the next attempt.

        Opening the sampler shows whether the weights still exist.
        """
        sampler = self._sampler(base, path)
        try:
            return self.result(ask(sampler))
        except Exception as error:
            if status_of(error) != GONE:
                raise
            with self._lock:
                if self._samplers.get(path or base) is sampler:
                    del self._samplers[path or base]
            raise TimeoutError("the host has lost a sampler") from None  # temporary

    def _sampler(self, base: str, path: str | None) -> SamplingClient:
        with self._lock:
            name = path or base
            if name not in self._samplers:
                opened = self.service.create_sampling_client(model_path=path, base_model=None if path else base)
                self._samplers[name] = self.result(opened)
            return self._samplers[name]

    def once(self, what: str, promise: Callable[[], Promise[V]]) -> V:
        """Return a result of a training.

        Raises:
            Lost: it may or may not have been carried out, or the host has lost the adapter in training.
            InputError, WorldError: it was rejected.
        """
        try:
            return self.result(promise())
        except Exception as error:
            fault = fault_of(error, what, TINKER)
            if fault is not None and status_of(error) != GONE:
                raise fault from None
            raise Lost(said(error)) from None

    def result(self, promise: Promise[V]) -> V:
        """Wait for a result, unless cancelled."""
        inner = promise.future()
        while True:
            try:
                return inner.result(LOOK)
            except NotYet:
                if inner.done():
                    raise
                if self._stopped.is_set():
                    inner.cancel()
                    raise WorldError("stopped", LATER) from None


def _key() -> str:
    """Return the key from the environment.

    Raises:
        MissingDependency: there is no client to use it.
        InputError: there is none.
    """
    try:
        import tinker  # noqa: F401
    except ImportError:
        raise MissingDependency("fine-tunes at Tinker need its client, which is not installed", INSTALL) from None
    if address := os.environ.get(ADDRESS):
        check_address(address, f"the address in {ADDRESS}")
    key = os.environ.get(TINKER.key, "")
    if not key.strip():
        raise InputError(f"Tinker needs a key, but {TINKER.key} is not set", "set it; keys are only read from the environment")
    return key


def _quieten() -> None:
    """Keep from the client's log only that a queue is paused; its errors are raised, and so reported once."""
    logging.getLogger(HOST).setLevel(logging.CRITICAL)
    for name in QUEUES:
        logging.getLogger(name).setLevel(logging.WARNING)
