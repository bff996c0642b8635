"""Events: names, and the emitter behind `Queue.on` and `Reaper.on`.

Events are local: they are emitted by the object whose own call made the transition. A listener that raises harms
nothing: what it raised becomes an ``error`` event, and an ``error`` that nobody listens to is logged.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
import weakref
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from jobq.checks import text_of
from jobq.errors import ConfigError, StorageUnavailableError

QUEUE_EVENTS = (
    "started",
    "stopped",
    "enqueued",
    "completed",
    "failed",
    "failing",
    "requeued",
    "cancelled",
    "lease_lost",
    "error",
)
REAPER_EVENTS = ("stalled", "leadership_acquired", "leadership_lost", "error")

_listening: ContextVar[weakref.ref[asyncio.Task[Any]] | None] = ContextVar("jobq_listening", default=None)
"""The task of the listener that this code runs in, and those that it makes, as `asyncio.gather` does. A context
outlives what it was made for, so it is weak."""

Listener = Callable[..., Any]
L = TypeVar("L", bound=Listener)


class Emitter:
    """Calls the listeners of an event; those that are coroutine functions run as tasks."""

    def __init__(self, names: Iterable[str], logger: logging.Logger) -> None:
        self._listeners: dict[str, list[Listener]] = {name: [] for name in names}
        self._logger = logger
        self._tasks: set[asyncio.Task[None]] = set()

    def subscribe(self, event: str, listener: Listener | None) -> Any:
        """Add a listener and return it; without one, return a decorator that does."""
        if listener is not None:
            self.on(event, listener)
            return listener
        self._named(event)

        def decorate(decorated: L) -> L:
            self.on(event, decorated)
            return decorated

        return decorate

    def on(self, event: str, listener: Listener) -> None:
        """Add a listener; the same one may be added twice and is then called twice."""
        if not callable(listener):
            raise ConfigError(f"on({event!r}): a listener must be callable, not {type(listener).__name__}")
        self._named(event).append(listener)

    def off(self, event: str, listener: Listener) -> None:
        """Remove a listener once; removing one that is not there changes nothing."""
        listeners = self._named(event)
        if listener in listeners:
            listeners.remove(listener)

    def emit(self, event: str, *arguments: object) -> None:
        """Call each listener now; coroutines go on in the background."""
        listeners = self._listeners[event]
        if not listeners:
            if event == "error":
                self._log_unheard(arguments[0])
            return
        for listener in tuple(listeners):
            self._call(event, listener, arguments)

    async def emit_and_wait(self, event: str, *arguments: object) -> None:
        """Call each listener and wait for the coroutines among them."""
        before = set(self._tasks)
        self.emit(event, *arguments)
        started = self._tasks - before
        if started:
            await asyncio.wait(started)

    @property
    def calling(self) -> bool:
        """Whether this code runs in a listener, which a stop waits for, or in a task that one has made."""
        listening = _listening.get()
        return listening is not None and listening() in self._tasks

    async def drain(self, timeout: float) -> None:
        """Wait for listeners that are still running; cancel those that take longer than ``timeout`` seconds."""
        current = asyncio.current_task()
        tasks = {task for task in self._tasks if task is not current}
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=timeout)
        for task in late:
            task.cancel()

    def forget(self) -> None:
        """Wait no more for listeners whose loop was closed under them."""
        self._tasks.clear()

    def _named(self, event: str) -> list[Listener]:
        try:
            return self._listeners[event]
        except (KeyError, TypeError):
            known = ", ".join(self._listeners)
            raise ConfigError(f"there is no event {event!r}; the events are: {known}") from None

    def _call(self, event: str, listener: Listener, arguments: tuple[object, ...]) -> None:
        try:
            answer = listener(*arguments)
        except BaseException as error:  # Even SystemExit: it is the listener's trouble, and no job's.
            self._report(event, error)
            return
        if answer is not None and inspect.isawaitable(answer):  # Asking costs more than most listeners do.
            # Never eagerly, whatever factory of tasks the loop has: a listener must be known as one when it begins.
            task = asyncio.Task(self._follow(event, answer), loop=asyncio.get_running_loop())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _follow(self, event: str, answer: Any) -> None:
        _listening.set(weakref.ref(cast("asyncio.Task[Any]", asyncio.current_task())))
        try:
            await answer
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # In a task, SystemExit would end the whole loop.
            self._report(event, error)

    def _report(self, event: str, error: BaseException) -> None:
        # A failing error listener must not call itself again for ever.
        if event == "error":
            self._write("a listener of 'error' raised", error)
        else:
            self.emit("error", error)

    def _log_unheard(self, error: object) -> None:
        # Of a storage that does not answer, where in the code that was noticed is of no use to anybody.
        exc_info = (
            error if isinstance(error, BaseException) and not isinstance(error, StorageUnavailableError) else None
        )
        self._write(f"jobq: {text_of(error)!a}", exc_info)

    def _write(self, message: str, error: BaseException | None) -> None:
        try:
            self._logger.error("%s", message, exc_info=error)
        except Exception:  # A handler of the log may raise, as on a full disk; the queue goes on.
            traceback.print_exc()
