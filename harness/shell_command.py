"""The program as a command that scripts of a shell can call, started by the fork server.

A new interpreter that imports torch takes two seconds; a script calls the program several times.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness.process import Process
from harness.request import COMMAND, LENGTH_BYTES, NUMBER, receive_body

_TIMEOUT_S = 120.0

_CLIENT = """#!{python} -IS
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({path!r})
body = json.dumps([sys.argv[1:], os.getcwd()]).encode()
socket.send_fds(connection, [len(body).to_bytes({n}, "big")], [0, 1, 2])
connection.sendall(body)
status = connection.recv(4)
sys.exit(int.from_bytes(status, sys.byteorder) if status else 1)
"""


@contextmanager
def shell_command(folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Put an executable ``llama-chat`` into ``folder``, which runs in ``environment``."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        program = folder / "llama-chat"
        program.write_text(_CLIENT.format(python=sys.executable, path=str(path), n=LENGTH_BYTES))
        program.chmod(0o755)
        arguments = listener, dict(environment)
        thread = threading.Thread(target=_serve, args=arguments, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listener: socket.socket, environment: dict[str, str]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the end of the block
            return
        threading.Thread(target=_run, args=(connection, environment), daemon=True).start()


def _run(connection: socket.socket, environment: dict[str, str]) -> None:
    """Run the program once, on the streams of the client, and answer with its status."""
    with connection:
        body, streams = receive_body(connection)
        arguments, folder = json.loads(body)
        try:
            command = [*COMMAND, *arguments]
            process = Process(command, environment, dict(enumerate(streams)), folder=folder)
        finally:
            for stream in streams:
                os.close(stream)
        try:
            status = process.wait(_TIMEOUT_S)
        finally:
            process.end()
        connection.sendall(NUMBER.pack(status if status >= 0 else 128 - status))
