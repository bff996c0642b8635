"""URLs of Redis and Valkey servers, read strictly: what is not known is refused, and no message shows a secret.

    redis://[[user]:password@]host[:6379][/db]            rediss: the same over TLS
    unix://[[user]:password@]/path/to/socket[?db=0]
    redis+sentinel://[[user]:password@]host[:26379],…/service[/db]
    redis+cluster://[[user]:password@]host[:6379],…

``valkey`` and ``valkeys`` stand for ``redis`` and ``rediss`` everywhere, ``redis+unix`` for ``unix``. The user and the
password are the server's; Sentinels that want their own get the options ``sentinel_username`` and
``sentinel_password``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

from jobq.checks import is_scheme, shown
from jobq.errors import ConfigError

Mode = Literal["single", "sentinel", "cluster"]
Options = Mapping[str, object]

_BASES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}
_URL = re.compile(r"(?:([^:/?#]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
"""The parts of a URL, as RFC 3986 divides it: scheme, authority, path, query, fragment."""
_HOST = re.compile(r"[^\s\x00-\x1f\x7f]+")
_KINDS = ("", "sentinel", "cluster", "unix")
_ENCODED = "inside a user name or password write / ? # @ : and % percent-encoded, such as %2F for /"


class Place(NamedTuple):
    """Where a server listens: a host and a port, or the path of a socket and 0."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Target(NamedTuple):
    """What a URL says."""

    mode: Mode
    secure: bool
    """Whether connections are encrypted."""
    places: tuple[Place, ...]
    """The server, or those Sentinels or nodes that are known at first."""
    service: str = ""
    """What the Sentinels call the master."""
    database: int = 0

    def __str__(self) -> str:
        """Spell the URL without user, password and options."""
        scheme, places = "rediss" if self.secure else "redis", ",".join(map(str, self.places))
        if self.mode == "cluster":
            return f"{scheme}+cluster://{places}"
        if self.mode == "sentinel":
            return f"{scheme}+sentinel://{places}/{self.service}/{self.database}"
        if not self.places[0].port:
            return f"unix://{places}" + (f"?db={self.database}" if self.database else "")
        return f"{scheme}://{places}/{self.database}"


def read_url(url: object) -> tuple[Target, Options, Options]:
    """Read a URL into its target, the options of its connections, and those of connections to Sentinels.

    Raises:
        ConfigError: it is malformed; the message names the part and the remedy.
    """
    if not isinstance(url, str):
        raise ConfigError(f"url: must be a str, not {type(url).__name__}")
    scheme, authority, path, query, fragment = (part or "" for part in _parts(url))
    base, kind = _scheme(scheme.lower())
    if "@" in path + query + fragment or fragment:
        raise ConfigError(f"url: there is a @ or # behind the host; {_ENCODED}")
    given = _query(query)
    user_info, _, hosts = authority.rpartition("@")
    options, sentinel_options = _options(given, user_info, base == "rediss", kind == "sentinel")
    segments = [unquote(segment) for segment in path.split("/")[1:] if segment]
    if kind == "unix":
        return _unix(hosts, unquote(path), options, given), options, {}
    places = tuple(_place(host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(","))
    service = segments.pop(0) if kind == "sentinel" and segments else ""
    if kind == "sentinel" and not service:
        raise ConfigError("url: the service is missing; write redis+sentinel://host1,host2,host3/service")
    if len(segments) > 1 or ("db" in given and segments):
        raise ConfigError("url: its path must be the number of the database alone, such as /0")
    database = _database(given.get("db", segments[0] if segments else "0"))
    mode: Mode = "sentinel" if kind == "sentinel" else "cluster" if kind == "cluster" else "single"
    if mode == "single" and len(places) > 1:
        raise ConfigError("url: more than one host needs redis+sentinel:// or redis+cluster://")
    if mode == "cluster" and database:
        raise ConfigError("url: jobq uses the database 0 of a Cluster; leave the number out")
    if database:
        options["db"] = database
    return Target(mode, base == "rediss", places, service, database), options, sentinel_options


def _parts(url: str) -> tuple[str | None, ...]:
    # Not by urlsplit, which takes the authority for one host, and refuses several of which one is in brackets.
    match = _URL.fullmatch(url)
    if match is None or url.count("[") != url.count("]"):
        raise ConfigError(f"url: its brackets do not match; {_ENCODED}")
    return match.groups()


def _scheme(scheme: str) -> tuple[str, str]:
    name, _, kind = scheme.partition("+")
    base = _BASES.get(name)
    if base is None or kind not in _KINDS or (base == "unix" and kind):
        raise ConfigError(
            f"url: unknown scheme{f' {shown(scheme)}' if is_scheme(scheme) else ''}; use redis://, rediss://, "
            "valkey://, valkeys:// or unix://, or redis+sentinel:// and redis+cluster:// and the like"
        )
    if base == "unix":
        return "redis", "unix"
    if base == "rediss" and kind == "unix":
        raise ConfigError("url: a unix socket is not encrypted; use unix://")
    return base, kind


def _query(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError(f"url: its options must be written ?name=value&name=value; {_ENCODED}") from None
    if len(dict(pairs)) < len(pairs):
        raise ConfigError("url: an option is given twice; remove one")
    return dict(pairs)


def _options(
    given: Mapping[str, str], user_info: str, secure: bool, sentinels: bool
) -> tuple[dict[str, object], dict[str, object]]:
    allowed = {"db", "username", "password"}
    allowed |= set(_TLS) if secure else set()
    allowed |= {"sentinel_username", "sentinel_password"} if sentinels else set()
    for name in given:
        if name not in allowed:
            tls = "; ssl_… needs rediss://" if name in _TLS else ""
            raise ConfigError(f"url: unknown option {shown(name)}; known are {', '.join(sorted(allowed))}{tls}")
    if user_info == ":":
        raise ConfigError("url: user and password are empty; write user:password@host, or the host alone")
    user, _, password = user_info.partition(":")
    for name in ("username", "password", "sentinel_username", "sentinel_password"):
        if name in given:
            _text(name, given[name])
    if user_info and not given.keys().isdisjoint({"username", "password"}):
        raise ConfigError("url: user and password are given twice; write them before the host or as options")
    tls_options = {name: _TLS[name](name, value) for name, value in given.items() if name in _TLS}
    if "ssl_keyfile" in given and "ssl_certfile" not in given:
        raise ConfigError("url: ssl_keyfile needs ssl_certfile, the certificate that the key belongs to")
    options: dict[str, object] = dict(tls_options)
    options |= _login(unquote(user) or given.get("username"), unquote(password) or given.get("password"))
    sentinel_login = _login(given.get("sentinel_username"), given.get("sentinel_password"))
    return options, tls_options | sentinel_login


def _login(username: str | None, password: str | None) -> dict[str, object]:
    if username and not password:
        raise ConfigError("url: there is a user name without a password; write user:password@host")
    login: dict[str, object] = {}
    if username:
        login["username"] = username
    if password:
        login["password"] = password
    return login


def _unix(hosts: str, path: str, options: dict[str, object], given: Mapping[str, str]) -> Target:
    if hosts or len(path) < 2:
        raise ConfigError("url: a unix socket is written unix:///path/to/socket, with three slashes")
    if not path.isprintable():  # It stands in lines of the log.
        raise ConfigError("url: the path of the unix socket has characters that cannot be printed; link to it")
    database = _database(given.get("db", "0"))
    if database:
        options["db"] = database
    return Target("single", False, (Place(path, 0),), "", database)


def _place(text: str, default_port: int) -> Place:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        fits = bool(bracket) and rest[:1] in ("", ":")
        port = rest[1:]
    else:
        host, _, port = text.partition(":")
        fits = True
    if not fits or not _HOST.fullmatch(unquote(host)) or not unquote(host).isprintable():
        raise ConfigError(f"url: a host is missing or malformed; {_ENCODED}")
    if not port:
        return Place(unquote(host), default_port)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"url: a port is no number from 1 to 65535; {_ENCODED}")
    return Place(unquote(host), int(port))


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(f"url: the database must be a number, such as 0; {_ENCODED}")
    return int(text)


def _text(name: str, value: str) -> object:
    if not value:
        raise ConfigError(f"url: {name} is empty; give it a value or remove it")
    if "\0" in value:
        raise ConfigError(f"url: {name} has a NUL character; remove it")
    return value


def _yes_or_no(name: str, value: str) -> object:
    if value.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise ConfigError(f"url: {name} must be true or false")
    return value.lower() in ("true", "yes", "1")


def _requirement(name: str, value: str) -> object:
    if value not in ("required", "optional", "none"):
        raise ConfigError(f"url: {name} must be required, optional or none")
    return value


# The options of TLS, named as redis-py names them, and how each is read.
_TLS: Mapping[str, Callable[[str, str], object]] = {
    "ssl_ca_certs": _text,
    "ssl_ca_path": _text,
    "ssl_certfile": _text,
    "ssl_keyfile": _text,
    "ssl_password": _text,
    "ssl_ciphers": _text,
    "ssl_cert_reqs": _requirement,
    "ssl_check_hostname": _yes_or_no,
}
