"""Connections between ranks: other clients are rejected, and an end is noticed at once."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from llama_chat.parallel.channel import Connection, Gone, Listener, Message, connect, encode

TIMEOUT_S = 20.0


def is_sent_away(port: int, hello: bytes) -> bool:
    """Say something to a listener; True if it closes the connection and says nothing."""
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.settimeout(TIMEOUT_S)
        try:
            stranger.sendall(hello)
            stranger.shutdown(socket.SHUT_WR)
            return stranger.recv(1) == b""
        except OSError as error:  # what it did not read makes the end a reset
            return not isinstance(error, TimeoutError)


@pytest.mark.parametrize("hello", [b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 999, b"\xff\n", b"a 1\n"])
def test_only_ranks_with_the_token_come_in(hello: bytes) -> None:
    listener, found = Listener(local=True), dict[int, Connection]()
    port, token = listener.key.split()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(listener.accept, found, 3)
        for data in (hello, f"{token} 0\n".encode(), f"{token} 3\n".encode()):
            assert is_sent_away(int(port), data)
        second = connect("127.0.0.1", listener.key, 2)
        first = connect("127.0.0.1", listener.key, 1)
        waiting.result(TIMEOUT_S)
    assert sorted(found) == [1, 2]
    first.close()
    second.close()


def test_strangers_who_say_nothing_keep_nobody_waiting() -> None:
    listener, found = Listener(local=True), dict[int, Connection]()
    port = int(listener.key.split()[0])
    with ThreadPoolExecutor(1) as pool, ExitStack() as strangers:
        waiting = pool.submit(listener.accept, found, 2)
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        for stranger in silent:
            strangers.enter_context(stranger)
        silent[0].sendall(b"half a")
        theirs = connect("127.0.0.1", listener.key, 1)
        waiting.result(TIMEOUT_S)
        for stranger in silent:  # and they are sent away in the end
            stranger.settimeout(TIMEOUT_S)
            assert stranger.recv(1) == b""
    theirs.close()


def test_strangers_who_come_again_and_again_do_not_prolong_the_wait() -> None:
    listener = Listener(local=True)
    port = int(listener.key.split()[0])

    def disturb() -> None:
        with suppress(OSError):  # refused at last
            while True:
                socket.create_connection(("127.0.0.1", port)).close()

    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(listener.accept, {}, 2, 0.5)
        disturbing = pool.submit(disturb)
        with pytest.raises(TimeoutError):
            waiting.result(TIMEOUT_S)
        disturbing.result(TIMEOUT_S)


def connected() -> tuple[Connection, Connection]:
    """Both ends of a connection: ours, and that of rank 1."""
    listener, found = Listener(local=True), dict[int, Connection]()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(listener.accept, found, 2)
        theirs = connect("127.0.0.1", listener.key, 1)
        waiting.result(TIMEOUT_S)
    return found[1], theirs


def test_messages_arrive_in_order_and_an_end_is_noticed() -> None:
    ours, theirs = connected()
    seen: list[Message] = []
    gone = threading.Event()

    def take(message: Message) -> bool:
        seen.append(message)
        return bool(message[0] == "told")

    ours.listen(take, gone.set)
    for message in (["one", 1], ["told", None], ["two", [1, 2]], [True]):
        theirs.send(encode(message))
    assert [ours.receive() for _ in range(3)] == [["one", 1], ["two", [1, 2]], [True]]
    assert len(seen) == 4
    assert not ours.has_message(0)
    theirs.close()
    assert gone.wait(TIMEOUT_S)
    assert ours.has_message(TIMEOUT_S)
    for _ in range(2):
        with pytest.raises(Gone):
            ours.receive()
    ours.send(encode(["nobody hears it"]))


def test_an_answer_is_received_before_the_end_that_follows_it() -> None:
    ours, theirs = connected()
    theirs.send(encode(["refused"]))
    theirs.close()
    gone = threading.Event()
    ours.listen(lambda message: False, gone.set)
    assert gone.wait(TIMEOUT_S)
    assert ours.has_message(TIMEOUT_S)
    assert ours.receive() == ["refused"]
    with pytest.raises(Gone):
        ours.receive()
