"""Find the queue that ``module:attribute`` names."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from jobq import Queue
from jobq.cli.exits import CommandError, Exit


def load_queue(target: str) -> Queue[Any, Any]:
    """Import the module, with the current directory on ``sys.path``, and return its queue.

    The attribute is a `Queue`, or a function without arguments that returns one; dots reach into objects.

    Raises:
        CommandError: says in one line what is wrong, and where in the module.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise CommandError(f"{target!r}: say which queue, as module:attribute, such as app.tasks:queue", Exit.USAGE)
    found = _attribute(_module(module_name), module_name, attribute)
    if not isinstance(found, Queue) and callable(found):
        found = _call(found, target)
    if not isinstance(found, Queue):
        raise CommandError(f"{target} is of type {type(found).__name__}, not a Queue or a function that returns one")
    return found


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # A module may also call sys.exit while it is imported.
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise CommandError(f"there is no module {error.name!r} in {here} or elsewhere on sys.path") from None
        raise CommandError(f"module {name!r} cannot be imported: {_told(error)}") from None


def _attribute(module: ModuleType, module_name: str, path: str) -> object:
    found: object = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise CommandError(f"module {module_name!r} has no attribute {path!r}") from None
    return found


def _call(factory: Any, target: str) -> object:
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError):
        raise CommandError(f"{target} is not a Queue, and cannot be called without arguments to make one") from None
    try:
        answer = factory()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise CommandError(f"{target} failed: {_told(error)}") from None
    if inspect.iscoroutine(answer):
        answer.close()
        raise CommandError(f"{target} is a coroutine function; make it a plain one that returns the Queue")
    return answer


def _told(error: BaseException) -> str:
    """Return an error's class, text and place, since a traceback is not shown."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
        return f"{type(error).__name__}: {error.msg} ({place})"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({frames[-1].filename}:{frames[-1].lineno})"
