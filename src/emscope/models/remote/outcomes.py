"""What the errors of the `tinker` and `openai` clients mean: ask again, or stop with one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emscope.core.errors import EmscopeError, InputError, WorldError
from emscope.core.visible import whole
from emscope.models.remote.address import scrubbed

LONGEST = 200
MOST_SAID = 20_000  # characters of an error that are read
# try again, conflict, the result is gone, pending, back off; and whatever is the server's own fault
PASSING = (408, 409, 410, 425, 429)
LATER = "run the same command again later to continue"
WORDS = ("detail", "message", "error")  # keys of a reply that hold a sentence
CLIENTS = ("tinker", "openai", "httpx", "httpx2", "httpcore", "httpcore2", "pyqwest")
CONNECTION = ("APIConnectionError", "APITimeoutError", "RetryableException", "TimeoutError", "ConnectTimeout", "ReadTimeout")
LONGEST_WAIT = 120.0  # seconds that a host may ask to wait
SPENT = "insufficient_quota"  # a 429 that is permanent


@dataclass(frozen=True, slots=True)
class Host:
    """A host's name in sentences, its key's variable and prefix, and what may have happened to something missing."""

    name: str
    key: str
    begins: str
    gone: str


TINKER = Host("Tinker", "TINKER_API_KEY", "tml-", "saved weights may have expired")
OPENAI = Host("the fine-tuning server", "OPENAI_API_KEY", "sk-", "it may have been deleted, or belong to another project")


def fault_of(error: Exception, what: str, host: Host) -> EmscopeError | None:
    """Return the emscope error for an error of the client; None where the request may be repeated.

    Args:
        what: what was requested, for the sentence. host: where.
    """
    if isinstance(error, EmscopeError):
        return error
    status, told = status_of(error), said(error)
    if status in (401, 403):
        return InputError(
            f"{host.name} rejects the key in {host.key} ({told if status == 403 else status})",
            "set the right one; it is only read from the environment",
        )
    if status is not None and 300 <= status < 400:
        return InputError(
            f"{host.name} redirects {what} to another address, and keys are not sent to redirects ({status})",
            "give the final address",
        )
    if status == 402 or getattr(error, "code", None) == SPENT:
        return WorldError(f"{host.name} has paused the account behind {host.key} ({told})", f"settle its billing, then {LATER}")
    if status == 404:
        return InputError(f"{host.name} found nothing for {what} ({told})", f"check its name; {host.gone}")
    if status is not None and 400 <= status < 500 and status not in PASSING and not _bare(error):
        return InputError(f"{host.name} rejects {what} ({told})", "see what it says, and fix the settings")
    if status is not None or type(error).__name__ in CONNECTION:
        return None
    if type(error).__name__ == "RequestFailedError":
        return InputError(f"{host.name} rejects {what} ({told})", "see what it says") if _is_users(error) else None
    if not isinstance(error, ValueError | RuntimeError) and type(error).__module__.partition(".")[0] not in CLIENTS:
        raise error  # a bug in this program
    if "api_key" in str(error):
        return InputError(f"the key in {host.key} is not one of {host.name}'s", f"keys of {host.name} begin with {host.begins}")
    return WorldError(f"the client of {host.name} failed at {what} ({told})", LATER)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error; the client wraps a result's error in its own."""
    for one in (error, error.__cause__):
        found = getattr(one, "status_code", None)
        if isinstance(found, int):
            return found
    return None


def asked_to_wait(error: BaseException) -> float:
    """Return how long a host asks to wait before a retry [seconds]; 0 where it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            wait = float(headers.get(name) or "") * unit
        except ValueError:  # it is missing, or a date
            continue
        if wait >= 0:
            return min(wait, LONGEST_WAIT)
    return 0.0


def said(error: BaseException) -> str:
    """Return what an error says in one short line, without keys: the status and the host's own words where it has any."""
    status, name = status_of(error), type(error).__name__
    text = scrubbed(" ".join(whole(_told(error) or str(error))[:MOST_SAID].split()))
    return f"{status or name}: {text}"[:LONGEST].rstrip(": ")


def _told(error: BaseException) -> str:
    """Return the host's own words in the body of a reply, "" where there are none."""
    for one in (error, error.__cause__):
        body = getattr(one, "body", None)
        if isinstance(body, Mapping):
            return str(next((body[key] for key in WORDS if body.get(key)), ""))
    return ""


def _bare(error: BaseException) -> bool:
    """True for a 400 without a body, which comes from a proxy in between, not from Tinker."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if response is not None:
            return status_of(error) == 400 and not response.content
    return False


def _is_users(error: Exception) -> bool:
    return str(getattr(error, "category", "")).rpartition(".")[2].lower() == "user"
