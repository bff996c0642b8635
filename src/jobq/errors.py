"""Every error that jobq raises.

    JobQueueError
    ├── ConfigError (ValueError)         an option, an id or a name is wrong; nothing was stored
    ├── SerializationError               a value would not come back equal
    ├── PayloadTooLargeError             an encoded payload exceeds ``max_payload``
    ├── QueueClosedError                 the queue is not started, or stopped
    ├── StorageError                     the storage could not do what was asked
    │   ├── StorageUnavailableError      not reachable or busy; the outcome is unknown, call again with the same id
    │   ├── StorageFullError             no room left; nothing was stored
    │   └── StorageCorruptError          what is stored cannot be read, or is of a newer version
    └── JobError                         about one job: ``job_id``
        ├── JobNotFoundError             nobody holds that id
        │   └── ResultExpiredError       it ended, and its record has expired
        ├── JobCancelledError            it was cancelled
        ├── JobFailedError               it failed: ``error``, ``attempts``
        │   └── MaxRetriesError          it failed after its last attempt
        └── JobTimeoutError (TimeoutError)   it did not end within the caller's timeout

Every error carries ``code``, a short constant for machines. Finer cases are codes of these classes, not classes of
their own. Messages say what happened, which id is concerned and what to do next, and never contain a password.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class ErrorInfo(msgspec.Struct, frozen=True):
    """A stored failure: data, never turned back into an exception class or code."""

    type: str
    """Name of the exception's class."""
    message: str
    """Its text, cut at 16 KiB."""
    code: str | None = None
    """The exception's own ``code`` where that is a text, else None."""
    stack: str | None = None
    """The traceback as text, cut at 64 KiB."""


class JobQueueError(Exception):
    """The base of all errors of jobq."""

    code: str = "JOBQ"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ConfigError(JobQueueError, ValueError):
    """An option, an id or a name was refused before anything was stored."""

    code = "CONFIG"


class SerializationError(JobQueueError):
    """A value cannot be stored so that it comes back equal, or stored bytes cannot be decoded."""

    code = "SERIALIZATION"


class PayloadTooLargeError(JobQueueError):
    """An encoded payload is larger than the queue's ``max_payload``; nothing was stored."""

    code = "PAYLOAD_TOO_LARGE"


class QueueClosedError(JobQueueError):
    """The queue is not started, or it has been stopped."""

    code = "QUEUE_CLOSED"


class StorageError(JobQueueError):
    """The storage could not do what was asked of it."""

    code = "STORAGE"


class StorageUnavailableError(StorageError):
    """The storage did not answer in time.

    The outcome is unknown: calling again with the same id is safe and tells.
    """

    code = "UNAVAILABLE"


class StorageFullError(StorageError):
    """The storage has no room left; nothing of the call was stored."""

    code = "FULL"


class StorageCorruptError(StorageError):
    """What is stored cannot be read: damaged, replaced, or written by a newer version."""

    code = "CORRUPT"


class JobError(JobQueueError):
    """An error about one job."""

    code = "JOB"

    def __init__(self, job_id: str, message: str, *, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.job_id = job_id

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.args, self.__dict__)


class JobNotFoundError(JobError):
    """No job holds that id."""

    code = "NOT_FOUND"


class ResultExpiredError(JobNotFoundError):
    """The job ended, and its record expired before it was read."""

    code = "RESULT_EXPIRED"


class JobCancelledError(JobError):
    """The job was cancelled; it has no result and never will."""

    code = "CANCELLED"


class JobFailedError(JobError):
    """The job ended as ``failed``."""

    code = "FAILED"

    def __init__(self, job_id: str, error: ErrorInfo, attempts: int, message: str | None = None) -> None:
        text = message or f"job {job_id!r} failed on attempt {attempts}: {error.type}: {error.message}"
        super().__init__(job_id, text)
        self.error = error
        """What the last attempt raised, as data."""
        self.attempts = attempts
        """How many attempts were made."""


class MaxRetriesError(JobFailedError):
    """The job failed on each of its attempts; ``retry(id)`` would start it anew."""

    code = "MAX_RETRIES"


class JobTimeoutError(JobError, TimeoutError):
    """The job did not end within the caller's timeout; it goes on, and ``get_result`` or ``wait`` still work."""

    code = "WAIT_TIMEOUT"


def _restore(kind: type[JobError], args: Iterable[object], state: dict[str, object]) -> JobError:
    """Rebuild a pickled error, since the constructors take more than the message."""
    error = kind.__new__(kind, *args)
    error.args = tuple(args)
    error.__dict__.update(state)
    return error
