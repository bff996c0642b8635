"""How a failure is stored, and how it is told: exceptions become data once, and never come back as code."""

from __future__ import annotations

import traceback
from types import TracebackType

import msgspec

from jobq.checks import text_of
from jobq.errors import ErrorInfo, JobFailedError, MaxRetriesError
from jobq.job import Snapshot
from jobq.storage.contract import WORKER_LOST

_LONGEST_MESSAGE = 16 * 1024
_LONGEST_STACK = 64 * 1024
_FINAL_CODES = frozenset({"GIVE_UP", "SERIALIZATION", "DESERIALIZATION", "RESULT_TOO_LARGE"})
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ErrorInfo).decode


def describe(error: BaseException) -> ErrorInfo:
    """Turn an exception into data; one that cannot even be printed is described by its type."""
    code = code_of(error)
    return ErrorInfo(
        type=_name_of(type(error)),
        message=_clean(text_of(error), _LONGEST_MESSAGE),
        code=None if code is None else _clean(code, 256),
        stack=_clean(_stack_of(error), _LONGEST_STACK),
    )


def encode_error(info: ErrorInfo) -> bytes:
    return _encode(info)


def decode_error(data: bytes) -> ErrorInfo:
    """Read a stored failure; unreadable bytes are a failure too, and say so."""
    if data == WORKER_LOST:
        return ErrorInfo("WorkerLost", "its worker was lost on the last attempt", "WORKER_LOST")
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ErrorInfo("Unknown", "the stored error cannot be read", "CORRUPT")


def failure(job_id: str, info: ErrorInfo, attempts: int, max_attempts: int) -> JobFailedError:
    """Word a final failure: `MaxRetriesError` where the attempts were used up."""
    if attempts >= max_attempts and info.code not in _FINAL_CODES:
        text = (
            f"job {job_id!r} failed on all of its {attempts} attempts, at last with {info.type}: {info.message}; "
            "retry(id) would start it anew"
        )
        return MaxRetriesError(job_id, info, attempts, text)
    return JobFailedError(job_id, info, attempts)


def failure_of(snapshot: Snapshot) -> JobFailedError:
    return failure(snapshot.id, decode_error(snapshot.error or b""), snapshot.attempts, snapshot.max_attempts)


def code_of(error: BaseException) -> str | None:
    """Return an exception's own ``code`` if that is a text; reading it may run a stranger's code."""
    try:
        own = vars(error)  # First, since that is where it is given one: a SystemExit has a number of that name.
        code = own["code"] if "code" in own else getattr(error, "code", None)
    except BaseException:
        return None
    return str.__str__(code) if isinstance(code, str) else None


def _name_of(kind: type) -> str:
    """Return a class's own name, whatever its metaclass says."""
    name: str = type.__dict__["__name__"].__get__(kind)
    return _clean(name, 256)


def _stack_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, _from_handler(error), limit=-50))
    except Exception:
        return ""


def _from_handler(error: BaseException) -> TracebackType | None:
    """Leave out the frames of jobq that called the handler; an error of jobq's own keeps them."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith("jobq._"):
        frame = frame.tb_next
    return frame or error.__traceback__


def _clean(text: str, longest: int) -> str:
    """Cut a text and replace lone surrogates, which no encoding can carry."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return cut.encode("utf-8", "replace").decode()
