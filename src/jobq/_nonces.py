"""Nonces: names of requests, unique among all processes, cheap to make."""

from __future__ import annotations

from base64 import urlsafe_b64encode

from jobq.clock import Clock


class Nonces:
    """Gives ``"<session>.<number>"``: a random session, then a count.

    A session of its own for each claiming worker lets a storage remember only the last claim of each.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._prefix = urlsafe_b64encode(clock.random_bytes(8)).decode().rstrip("=") + "."
        self._count = 0

    def next(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"

    def session(self) -> Nonces:
        return Nonces(self._clock)
