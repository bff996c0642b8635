"""Refusals of bad input: each names the option, the value and the remedy, before anything is stored."""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
import socket
from datetime import timedelta
from typing import Any

from jobq.clock import Clock
from jobq.errors import ConfigError

LONGEST = 100 * 365.25 * 86400.0
"""100 years, the longest duration."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_SHOWN = 80


def check_seconds(option: str, value: object, *, zero: bool = True) -> float:
    """Return a duration as a float of seconds, from a number or a timedelta."""
    if type(value) is float and 0.0 < value <= LONGEST:
        return value
    if isinstance(value, timedelta):
        value = value.total_seconds()
    seconds = _finite(option, value, "a number of seconds or a timedelta")
    if seconds < 0.0 or (seconds == 0.0 and not zero):
        least = "0 or more" if zero else "more than 0"
        raise ConfigError(f"{option}={shown(value)}: must be {least} seconds")
    if seconds > LONGEST:
        raise ConfigError(f"{option}={shown(value)}: must be at most 100 years ({LONGEST:.0f} seconds)")
    return abs(seconds)


def check_optional_seconds(option: str, value: object, *, zero: bool = True) -> float | None:
    return None if value is None else check_seconds(option, value, zero=zero)


def check_number(option: str, value: object, *, least: float, most: float) -> float:
    """Return a finite number within bounds, both included."""
    number = _finite(option, value, "a number")
    if not least <= number <= most:
        raise ConfigError(f"{option}={shown(value)}: must be between {least:g} and {most:g}")
    return number


def check_integer(option: str, value: object, *, least: int, most: int) -> int:
    """Return a whole number within bounds, both included."""
    if type(value) is not int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{option}={shown(value)}: must be an int, not {type(value).__name__}")
        value = int(value)
    if not least <= value <= most:
        raise ConfigError(f"{option}={shown(value)}: must be between {least} and {most}")
    return value


def check_id(value: object) -> str:
    """Return a job's id as plain text: 1 to 1,024 bytes of UTF-8 without NUL.

    Everything else is data: ``../x``, ``a:b`` and line ends are ids like any other. Of a subclass of ``str`` the text
    itself is taken, whatever its ``__str__`` says.
    """
    if type(value) is not str:
        if not isinstance(value, str):
            raise ConfigError(f"id={shown(value)}: must be a str, not {type(value).__name__}")
        value = str.__str__(value)
    if value.isascii():
        size = len(value)
    else:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise ConfigError(f"id={shown(value)}: has a lone surrogate; it must be valid UTF-8") from None
    if not 1 <= size <= 1024:
        raise ConfigError(f"id={shown(value)}: is {size} bytes long; it must have 1 to 1,024 bytes of UTF-8")
    if "\0" in value:
        raise ConfigError(f"id={shown(value)}: has a NUL character; remove it")
    return value


def check_name(option: str, value: object) -> str:
    """Return the name of a queue or a worker: 1 to 128 letters, digits, ``_``, ``.``, ``-``; first no ``.``, ``-``."""
    if not isinstance(value, str):
        raise ConfigError(f"{option}={shown(value)}: must be a str, not {type(value).__name__}")
    name = str.__str__(value)
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{option}={shown(value)}: must be 1 to 128 of the characters A-Z a-z 0-9 _ . - "
            "and begin with a letter, a digit or _"
        )
    return name


def check_callable(option: str, value: Any, *, plain: bool = False) -> Any:
    """Return what can be called, or None; with ``plain`` what answers at once."""
    if value is not None and not callable(value):
        raise ConfigError(f"{option}: must be callable, not {type(value).__name__}")
    if plain and inspect.iscoroutinefunction(value):
        raise ConfigError(f"{option}: must be a plain function, since nobody awaits its answer; remove the async")
    return value


def check_storage(value: Any) -> Any:
    """Return what has the methods of a storage."""
    if isinstance(value, type) or not callable(getattr(value, "namespace", None)):
        given = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise ConfigError(f"storage: must be one, such as FileStorage('./data') or open_storage(url), not {given}")
    return value


def check_bool(option: str, value: object) -> bool:
    """Return a bool, and nothing that merely counts as one."""
    if type(value) is not bool:
        raise ConfigError(f"{option}={shown(value)}: must be a bool")
    return value


def check_logger(value: Any) -> Any:
    """Return a logger, ``jobq`` by default."""
    if value is None:
        return logging.getLogger("jobq")
    if not isinstance(value, logging.Logger | logging.LoggerAdapter):
        raise ConfigError(f"logger: must be a logging.Logger, not {type(value).__name__}")
    return value


def check_clock(value: Any) -> Clock:
    """Return a clock, the machine's own by default."""
    if value is None:
        return Clock()
    if not isinstance(value, Clock):
        raise ConfigError(f"clock: must be a jobq.clock.Clock, not {type(value).__name__}")
    return value


def check_serde(option: str, value: Any) -> Any:
    """Return what has the methods of a serde, or None."""
    methods = (getattr(value, name, None) for name in ("serialize", "deserialize"))
    if value is not None and (isinstance(value, type) or not all(map(callable, methods))):
        raise ConfigError(f"{option}: must have serialize and deserialize, as the Serde protocol says")
    return value


def default_label() -> str:
    """Return a worker's label for people: host and process, in the characters that `check_name` allows."""
    host = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in socket.gethostname())
    return f"{host[:100].lstrip('.-') or 'host'}-{os.getpid()}"


def shown(value: object) -> str:
    """Return a value's repr, made short and ASCII, for messages; a repr that raises is not trusted."""
    try:
        text = ascii(value) if not isinstance(value, str) else ascii(str.__str__(value[: _SHOWN * 2]))
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def text_of(error: object) -> str:
    """Return what an error says, whatever its ``__str__`` does; an event's may be no exception."""
    try:
        return str(error)
    except BaseException:
        return f"<{type(error).__name__} that cannot be printed>"


def is_scheme(text: str) -> bool:
    """Whether a text can be the scheme of a URL. What cannot is not shown, since it may have a password in it."""
    return _SCHEME.fullmatch(text) is not None


def _finite(option: str, value: object, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{option}={shown(value)}: must be {wanted}, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{option}={shown(value)}: must be finite")
    return number
