"""The fault proxy does to each connection what it says, and nothing to the others."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest

from tests.servers.proxy import FaultProxy
from tests.servers.resp import Frames
from tests.servers.server import Server
from tests.servers.trouble import Direction, Ending
from tests.servers.waiting import wait_for

SHORT = 0.1
"""Seconds in which an answer that is not held back has long arrived."""
SEEN = [(Ending.CLOSE, "end"), (Ending.RESET, "reset"), (Ending.HALF_CLOSE, "end")]
"""What a client reads after an ending."""


class Client:
    """A plain socket that speaks whole requests, and tells what it reads: an answer, an end, a reset, or nothing."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)

    def send(self, *words: str) -> None:
        parts = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        self.socket.sendall(f"*{len(words)}\r\n{parts}".encode())

    def read(self, within: float = 5.0) -> str:
        self.socket.settimeout(within)
        try:
            return self.socket.recv(65_536).decode() or "end"
        except TimeoutError:
            return "nothing"
        except ConnectionResetError:
            return "reset"

    def ask(self, *words: str) -> str:
        self.send(*words)
        return self.read()


@pytest.fixture
def proxy(valkey_server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(valkey_server.port) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: FaultProxy) -> Iterator[Callable[[], Client]]:
    clients: list[Client] = []

    def connect() -> Client:
        clients.append(Client(proxy.port))
        return clients[-1]

    yield connect
    for client in clients:
        client.socket.close()


def test_frames_end_where_the_protocol_says_wherever_the_bytes_are_cut() -> None:
    whole = [b"*2\r\n$3\r\nGET\r\n$5\r\na\r\nbc\r\n", b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"*-1\r\n", b"PING a\r\n"]
    whole += [
        b"*2\r\n*1\r\n$1\r\nx\r\n:2\r\n",
        b"%1\r\n+k\r\n,1.5\r\n",
        b"_\r\n",
        b">2\r\n+message\r\n$0\r\n\r\n",
        b"*0\r\n",
    ]

    for size in (1, 2, 7, 1000):
        frames, stream = Frames(), b"".join(whole)
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        found = [frame for piece in pieces for frame in frames.feed(piece)]

        assert [frame.data for frame in found] == whole
        assert found[0].words == (b"GET", b"a\r\nbc")
        assert [frame.pushed for frame in found].index(True) == 9


def test_traffic_passes_and_is_counted(proxy: FaultProxy, connect: Callable[[], Client], key_prefix: str) -> None:
    first, second = connect(), connect()

    assert first.ask("set", key_prefix, "1") == "+OK\r\n"
    assert second.ask("GET", key_prefix) == "$1\r\n1\r\n"
    second.socket.close()

    assert proxy.commands == {"SET": 1, "GET": 1}
    assert (proxy.connections_ever, proxy.reads) == (2, 2)
    wait_for(lambda: proxy.connections == 1, "end of a connection")
    assert first.ask("PING") == "+PONG\r\n"


@pytest.mark.parametrize(
    ("ending", "seen"), [(Ending.CLOSE, "end"), (Ending.RESET, "reset"), (Ending.HALF_CLOSE, "end")]
)
def test_a_dropped_request_never_reaches_the_server(
    proxy: FaultProxy, connect: Callable[[], Client], key_prefix: str, ending: Ending, seen: str
) -> None:
    """What was sent before it is answered, and what is sent after it is lost as well."""
    client, other = connect(), connect()
    fault = proxy.drop_request("incr", nth=2, ending=ending)

    assert client.ask("INCR", key_prefix) == ":1\r\n"
    client.send("PING")
    client.send("INCR", key_prefix)
    with suppress(ConnectionError):  # The line may have ended before.
        client.send("INCR", key_prefix)

    assert client.read() == "+PONG\r\n"
    assert client.read() == seen
    assert other.ask("INCR", key_prefix) == ":2\r\n"
    assert (fault.done, proxy.faults) == (1, {f"requests {ending}": 1})


@pytest.mark.parametrize(
    ("ending", "seen"), [(Ending.CLOSE, "end"), (Ending.RESET, "reset"), (Ending.HALF_CLOSE, "end")]
)
def test_a_dropped_reply_is_lost_after_the_server_has_done_the_work(
    proxy: FaultProxy, connect: Callable[[], Client], key_prefix: str, ending: Ending, seen: str
) -> None:
    client, other = connect(), connect()
    proxy.drop_reply("INCR", when=lambda words: words[1] == key_prefix.encode(), ending=ending)

    assert client.ask("INCR", key_prefix + "other") == ":1\r\n"
    client.send("PING")
    client.send("INCR", key_prefix)

    assert client.read() == "+PONG\r\n"
    assert client.read() == seen
    assert other.ask("INCR", key_prefix) == ":2\r\n"
    assert proxy.faults == {f"replies {ending}": 1}


def test_a_large_value_passes_whole(proxy: FaultProxy, connect: Callable[[], Client]) -> None:
    client, size = connect(), 16 * 2**20

    sending = threading.Thread(target=client.send, args=("ECHO", "x" * size))
    sending.start()
    answer = read_until(client, "x\r\n")
    sending.join()

    assert len(answer) == size + len(f"${size}\r\n\r\n")


def test_a_fault_hits_as_often_as_it_is_told(proxy: FaultProxy, connect: Callable[[], Client]) -> None:
    proxy.drop_reply(nth=2, times=2)

    answers = [connect().ask("PING") for _ in range(5)]

    assert answers == ["+PONG\r\n", "end", "end", "+PONG\r\n", "+PONG\r\n"]


def test_a_held_request_arrives_at_last_though_its_client_has_gone(
    proxy: FaultProxy, connect: Callable[[], Client], key_prefix: str, valkey_server: Server
) -> None:
    """Like a packet that a network kept for a while: the worst kind of late."""
    client = connect()
    fault = proxy.drop_request("SET", ending=Ending.HOLD)

    client.send("SET", key_prefix, "late")
    fault.wait()
    client.socket.close()
    assert connect().ask("GET", key_prefix) == "$-1\r\n"
    proxy.heal()

    wait_for(lambda: valkey_server.command("GET", key_prefix) == "late", "late write")


def test_a_held_reply_arrives_at_last_and_in_order(proxy: FaultProxy, connect: Callable[[], Client]) -> None:
    client = connect()
    proxy.drop_reply("ECHO", ending=Ending.HOLD)

    client.send("ECHO", "late")
    client.send("PING")
    assert client.read(SHORT) == "nothing"
    proxy.heal()

    assert read_until(client, "+PONG\r\n") == "$4\r\nlate\r\n+PONG\r\n"


@pytest.mark.parametrize("drop", [FaultProxy.drop_request, FaultProxy.drop_reply])
def test_a_silenced_connection_stays_open_and_is_reset_when_healed(
    proxy: FaultProxy, connect: Callable[[], Client], drop: Callable[..., object]
) -> None:
    client, other = connect(), connect()
    drop(proxy, "ECHO", ending=Ending.SILENCE)

    client.send("ECHO", "lost")
    client.send("PING")

    assert client.read(SHORT) == "nothing"
    assert other.ask("PING") == "+PONG\r\n"
    proxy.heal()
    assert client.read() == "reset"


def test_a_black_hole_swallows_nothing_and_refuses_nothing(proxy: FaultProxy, connect: Callable[[], Client]) -> None:
    before = connect()
    assert before.ask("PING") == "+PONG\r\n"
    proxy.black_hole()

    after = connect()
    before.send("ECHO", "before")
    after.send("ECHO", "after")
    assert (before.read(SHORT), after.read(SHORT)) == ("nothing", "nothing")
    proxy.heal()

    assert (before.read(), after.read()) == ("$6\r\nbefore\r\n", "$5\r\nafter\r\n")


@pytest.mark.parametrize("delays", [{"requests": SHORT}, {"replies": SHORT}])
def test_a_delay_is_a_latency_and_not_a_queue(
    proxy: FaultProxy, connect: Callable[[], Client], delays: dict[str, float]
) -> None:
    client = connect()
    proxy.delay(**delays)
    began = time.monotonic()

    for _ in range(20):
        client.send("PING")
    answers = read_until(client, 20 * "+PONG\r\n")

    assert answers == 20 * "+PONG\r\n"
    assert SHORT <= time.monotonic() - began < 10 * SHORT


@pytest.mark.parametrize("direction", [*Direction, None])
def test_slices_arrive_whole(proxy: FaultProxy, connect: Callable[[], Client], direction: Direction | None) -> None:
    """Each byte comes alone, so a reader that takes one read for one answer is found out."""
    client = connect()
    proxy.slice(0.001, *([direction] if direction else []))

    first = client.ask("ECHO", "word" * 5)

    assert read_until(client, "d\r\n", first) == "$20\r\n" + "word" * 5 + "\r\n"
    assert (len(first) < 10) == (direction is not Direction.REQUESTS)


def test_refused_connections_are_refused_and_the_others_go_on(proxy: FaultProxy, connect: Callable[[], Client]) -> None:
    client = connect()
    assert client.ask("PING") == "+PONG\r\n"

    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect()
    assert client.ask("PING") == "+PONG\r\n"
    proxy.heal()

    assert connect().ask("PING") == "+PONG\r\n"


@pytest.mark.parametrize(
    ("ending", "seen"), [(Ending.CLOSE, "end"), (Ending.RESET, "reset"), (Ending.HALF_CLOSE, "end")]
)
def test_all_connections_can_be_ended_at_once(
    proxy: FaultProxy, connect: Callable[[], Client], ending: Ending, seen: str
) -> None:
    clients = [connect(), connect()]
    assert [client.ask("PING") for client in clients] == ["+PONG\r\n"] * 2

    proxy.end_connections(ending)

    assert [client.read() for client in clients] == [seen] * 2
    assert connect().ask("PING") == "+PONG\r\n"


def test_connections_can_be_held_and_lose_nothing(proxy: FaultProxy, connect: Callable[[], Client]) -> None:
    held = connect()
    assert held.ask("PING") == "+PONG\r\n"
    proxy.end_connections(Ending.HOLD)

    held.send("ECHO", "late")
    assert connect().ask("PING") == "+PONG\r\n"
    assert held.read(SHORT) == "nothing"
    proxy.heal()

    assert held.read() == "$4\r\nlate\r\n"


def test_a_half_closed_connection_still_carries_requests(
    proxy: FaultProxy, connect: Callable[[], Client], key_prefix: str, valkey_server: Server
) -> None:
    client = connect()
    assert client.ask("PING") == "+PONG\r\n"
    proxy.end_connections(Ending.HALF_CLOSE)

    assert client.ask("SET", key_prefix, "1") == "end"

    wait_for(lambda: valkey_server.command("GET", key_prefix) == "1", "write")


def test_a_fault_that_is_healed_in_time_spares_the_answer(
    proxy: FaultProxy, connect: Callable[[], Client], key_prefix: str
) -> None:
    blocked, other = connect(), connect()
    fault = proxy.drop_reply("BLPOP")
    blocked.send("BLPOP", key_prefix, "0")
    wait_for(lambda: fault.seen, "request")

    proxy.heal()
    other.send("RPUSH", key_prefix, "marker")

    assert read_until(blocked, "marker\r\n").startswith("*2")
    assert fault.done == 0


def test_news_are_no_answers(proxy: FaultProxy, connect: Callable[[], Client], key_prefix: str) -> None:
    """A message that arrives between a request and its answer does not take the answer's place."""
    subscriber, publisher = connect(), connect()
    subscriber.send("SUBSCRIBE", key_prefix + "a", key_prefix + "b")
    assert read_until(subscriber, ":2\r\n").count("subscribe") == 2
    proxy.drop_reply("PING")

    assert publisher.ask("PUBLISH", key_prefix + "a", "news") == ":1\r\n"
    assert "news" in subscriber.read()

    assert subscriber.ask("PING") == "end"


def test_a_server_that_is_down_looks_down_through_the_proxy(connect: Callable[[], Client], proxy: FaultProxy) -> None:
    proxy.close()
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        with FaultProxy(nobody.getsockname()[1]) as in_front:
            client = Client(in_front.port)

            assert client.read() in ("end", "reset")
            client.socket.close()


def test_a_defect_of_a_predicate_is_not_kept_quiet(valkey_server: Server) -> None:
    proxy = FaultProxy(valkey_server.port).start()
    proxy.drop_request(when=lambda words: bool(words[5]))
    client = Client(proxy.port)

    assert client.ask("PING") == "reset"
    client.socket.close()

    with pytest.raises(IndexError):
        proxy.close()


def test_a_closed_proxy_leaves_no_thread(valkey_server: Server) -> None:
    before = threading.active_count()

    with FaultProxy(valkey_server.port) as proxy:
        client = Client(proxy.port)
        assert client.ask("PING") == "+PONG\r\n"

    assert client.read() in ("end", "reset")
    client.socket.close()
    assert proxy.commands == {"PING": 1}
    assert threading.active_count() == before


def read_until(client: Client, end: str, so_far: str = "") -> str:
    while not so_far.endswith(end) and (more := client.read()) not in ("end", "reset", "nothing"):
        so_far += more
    return so_far
