"""An event loop in a thread of its own, for instruments that must run whatever the loop of the test does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

Answer = TypeVar("Answer")

PATIENCE = 10.0


class LoopThread:
    """Runs coroutines and functions for other threads, and returns when they are done."""

    def __init__(self, name: str) -> None:
        # By name and not through the policy: a test may have set one whose loops behave differently.
        self.loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def call(self, function: Callable[[], Answer]) -> Answer:
        """Call a function in the loop's thread, between two of its steps."""
        answer: Future[Answer] = Future()

        def answering() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)

        self.loop.call_soon_threadsafe(answering)
        return answer.result(PATIENCE)

    def close(self, first: Callable[[], None]) -> None:
        """Call the function in the thread, cancel what still runs there, and end it."""
        self.call(first)
        self.run(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # Aborted transports close their sockets in the next turn of the loop.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
