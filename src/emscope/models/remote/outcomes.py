"""What the errors of the `tinker` client mean: ask again, or stop with one sentence."""

from __future__ import annotations

from emscope.core.errors import EmscopeError, InputError, WorldError
from emscope.core.visible import whole
from emscope.models.remote.address import scrubbed

KEY = "TINKER_API_KEY"
LONGEST = 200
MOST_SAID = 20_000  # characters of an error that are looked at
# try again, conflict, the result is gone, pending, back off; and whatever is the server's own fault
PASSING = (408, 409, 410, 425, 429)
LATER = "run the same command again later; it goes on where it stopped"
CLIENTS = ("tinker", "httpx", "httpcore", "pyqwest")
CONNECTION = ("APIConnectionError", "APITimeoutError", "RetryableException", "TimeoutError", "ConnectTimeout", "ReadTimeout")


def fault_of(error: Exception, what: str) -> EmscopeError | None:
    """Return the emscope error that an error of the client is; None where the same may be asked again.

    Args:
        what: what was asked, for the sentence.
    """
    if isinstance(error, EmscopeError):
        return error
    status, told = status_of(error), said(error)
    if status in (401, 403):
        return InputError(
            f"Tinker refuses the key in {KEY} ({status})", "set the right one; it is read from the environment alone"
        )
    if status == 402:
        return WorldError(f"Tinker has paused the account behind {KEY} ({told})", f"settle its billing, then {LATER}")
    if status == 404:
        return InputError(f"Tinker has nothing for {what} ({told})", "check its name; saved weights may have expired")
    if status is not None and 400 <= status < 500 and status not in PASSING and not _bare(error):
        return InputError(f"Tinker refuses {what} ({told})", "see what it says, and mend the settings")
    if status is not None or type(error).__name__ in CONNECTION:
        return None
    if type(error).__name__ == "RequestFailedError":
        return InputError(f"Tinker refuses {what} ({told})", "see what it says") if _is_users(error) else None
    if not isinstance(error, ValueError | RuntimeError) and type(error).__module__.partition(".")[0] not in CLIENTS:
        raise error  # a fault of this program
    if "api_key" in str(error):
        return InputError(f"the key in {KEY} is none of Tinker's", "keys of Tinker begin with tml-")
    return WorldError(f"the tinker client failed at {what} ({told})", LATER)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error; the client wraps that of a result in an error of its own."""
    for one in (error, error.__cause__):
        found = getattr(one, "status_code", None)
        if isinstance(found, int):
            return found
    return None


def said(error: BaseException) -> str:
    """Return what an error says in one short line, without keys."""
    text = scrubbed(" ".join(whole(str(error))[:MOST_SAID].split()))
    return f"{type(error).__name__}: {text}"[:LONGEST].rstrip(": ")


def _bare(error: BaseException) -> bool:
    """True for a 400 without a body: a proxy between here and Tinker says it, not Tinker."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if response is not None:
            return status_of(error) == 400 and not response.content
    return False


def _is_users(error: Exception) -> bool:
    return str(getattr(error, "category", "")).rpartition(".")[2].lower() == "user"
