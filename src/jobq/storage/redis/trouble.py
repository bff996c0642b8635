"""What goes wrong with a server, in jobq's words: no exception of redis-py leaves this folder, and no secret either.

====================================================================  ==============================================
from the connection or the server                                     becomes
====================================================================  ==============================================
connection lost or refused, no answer in time, LOADING, BUSY,         `StorageUnavailableError`: passes by itself
READONLY, MASTERDOWN, CLUSTERDOWN, TRYAGAIN, a slot on the move …
OOM, MISCONF (it cannot save, mostly because its disk is full)        `StorageFullError`
WRONGTYPE, JOBQFORMAT (our scripts' own)                              `StorageCorruptError`
NOAUTH, WRONGPASS, NOPERM, a wrong database, TLS refused              `StorageError`, code ``MISCONFIGURED``
NOSCRIPT, to a digest                                                 `NoScript`: the caller sends the text
a reply that no server gives to that command                          `StorageUnavailableError`, code ``GARBLED``
anything else                                                         `StorageError`
====================================================================  ==============================================
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from redis import exceptions as redis_errors

from jobq.errors import StorageCorruptError, StorageError, StorageFullError, StorageUnavailableError

MISCONFIGURED = "MISCONFIGURED"

_PASSING = ("LOADING", "BUSY", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "UNBLOCKED", "NOREPLICAS")
_SETUP = ("NOAUTH", "WRONGPASS", "NOPERM", "NOPROTO", "DENIED")
_ACL_TEXTS = ("ACL failure in script", "The user executing the script can't")
_SETUP_TEXTS = (
    *_ACL_TEXTS,
    "DB index is out of range",
    "invalid DB index",
    "SELECT is not allowed in cluster mode",
    "This instance has cluster support disabled",
    "unknown command",
    "unknown subcommand",
    "AUTH <password> called without any password",
)
_ON_THE_MOVE = "non local key"


class NoScript(Exception):
    """The server does not know the script: send its text."""


def unavailable(address: str, what: object) -> StorageUnavailableError:
    """Say that the server did not answer."""
    why = _text(what) if isinstance(what, BaseException) else what
    return StorageUnavailableError(
        f"{address} is unavailable ({why}): the outcome is unknown; see that the server runs and can be reached, "
        "then call again with the same id"
    )


def garbled(asked: str) -> StorageUnavailableError:
    """Say that a reply cannot be one to what was asked."""
    return StorageUnavailableError(
        f"the reply to {asked} cannot be read: the outcome is unknown; see that a Redis or Valkey server answers there "
        "and nothing changes what it says, then call again with the same id",
        code="GARBLED",
    )


def misconfigured(address: str, what: str) -> StorageError:
    """Say what must be set right before it can work."""
    return StorageError(f"{address} cannot be used: {what}", code=MISCONFIGURED)


def code_of(error: BaseException) -> str:
    """Return the code with which a server's error reply began, such as ``READONLY``; empty if it had none."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    first = str(error).partition(" ")[0]
    return first if first.isalpha() and first.isupper() else ""


def explained(address: str, error: BaseException, command: object = None) -> StorageError | NoScript:
    """Turn what redis-py or the system raised into the error that a caller may see."""
    if isinstance(error, StorageError):
        return error
    code, text = code_of(error), _text(error)
    if code == "NOSCRIPT" and _name(command) == "EVALSHA":
        return NoScript(text)
    if code in _SETUP or _is_setup(error, text):
        doing = f" ({_name(command)})" if command else ""
        return StorageError(f"{address} refuses{doing}: {text}; {_remedy(code, error)}", code=MISCONFIGURED)
    if code == "OOM":
        return StorageFullError(
            f"{address} has no memory left: {text}; raise maxmemory or let jobs end, then try again"
        )
    if code == "MISCONF":
        return StorageFullError(f"{address} cannot save its data: {text}; give its disk room, then try again")
    if code == "JOBQFORMAT":
        return StorageCorruptError(f"{address}: {text}; update jobq in this process")
    if code == "WRONGTYPE":
        return StorageCorruptError(f"{address}: other software wrote to a key of this queue: {text}; remove that key")
    if code in _PASSING or _ON_THE_MOVE in text or not isinstance(error, redis_errors.ResponseError):
        return unavailable(address, text)
    return StorageError(f"{address} refused {_name(command) or 'a command'}: {text}")


def passes(error: BaseException) -> bool:
    """Tell whether a Cluster's error reply comes of a slot on the move or a fail-over: soon it will be answered."""
    return code_of(error) in ("TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN") or _ON_THE_MOVE in str(error)


# redis-py takes these codes off the texts of errors.
_CODES: dict[type[BaseException], str] = {
    redis_errors.NoScriptError: "NOSCRIPT",
    redis_errors.ReadOnlyError: "READONLY",
    redis_errors.OutOfMemoryError: "OOM",
    redis_errors.NoPermissionError: "NOPERM",
    redis_errors.AuthenticationError: "WRONGPASS",
    redis_errors.AuthorizationError: "NOAUTH",
    redis_errors.BusyLoadingError: "LOADING",
    redis_errors.MovedError: "MOVED",
    redis_errors.AskError: "ASK",
    redis_errors.TryAgainError: "TRYAGAIN",
    redis_errors.MasterDownError: "MASTERDOWN",
    redis_errors.ClusterDownError: "CLUSTERDOWN",
}


def _text(error: BaseException) -> str:
    return str(error).strip().rstrip(".") or (
        "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    )


def _is_setup(error: BaseException, text: str) -> bool:
    if isinstance(error, redis_errors.ResponseError):
        return any(part in text for part in _SETUP_TEXTS)
    return any(_refuses_tls(cause) for cause in _causes(error))


def _refuses_tls(cause: BaseException) -> bool:
    # A TLS connection that merely ended is a lost connection like any other.
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, ended)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _remedy(code: str, error: BaseException) -> str:
    if any(_refuses_tls(cause) for cause in _causes(error)):
        return "see that it speaks TLS and that its certificate is valid for this host (ssl_ca_certs names the CA)"
    if code == "NOPERM" or any(part in str(error) for part in _ACL_TEXTS):
        return "allow it to the user by ACL SETUSER"
    if code in _SETUP:
        return "see that the user and the password are right"
    return "see that the database number, the URL's kind and the server's version are right"


def _name(command: object) -> str:
    """Return the name of a command, since its arguments may be anybody's data."""
    if not isinstance(command, tuple) or not command:
        return ""
    first = command[0]
    return first.decode("ascii", "replace") if isinstance(first, bytes) else str(first)
