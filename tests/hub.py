"""A Hugging Face hub on loopback, with the requests that downloading a model needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from harness.program import COMMAND, Result, run
from harness.terminal import Terminal

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000
"""Size in bytes above which a file is stored by Git LFS."""


@dataclass
class Hub:
    """Hub of one repository, ``org/name``."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    refuse: tuple[int, dict[str, str]] | None = None
    """Status and headers of every answer, if set."""
    cut: list[int] = field(default_factory=list)
    """Bytes after which the next large files break off; after the last, all requests fail."""
    overrides: dict[str, object] = field(default_factory=dict)
    """Entries of the listing that are replaced."""
    ranges: bool = True
    storage: str = ""
    """Address of another host to which requests for large files are redirected."""
    stall: threading.Event | None = None
    """Event, if set, for which large files wait after a slow first half; the rest is not sent."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and range of each request for a file."""
    tokens: set[str | None] = field(default_factory=set)
    """Authorization headers of the requests for the repository."""

    def listing(self) -> dict[str, object]:
        """Return the hub's description of the repository."""
        siblings = []
        for path, data in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": git}
            if len(data) > LARGE:
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": "org/name", "sha": COMMIT, "siblings": siblings} | self.overrides


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        if "org/" in path:  # the library also sends requests of other kinds
            hub.tokens.add(self.headers.get("Authorization"))
        if hub.refuse is not None:
            self._send(hub.refuse[0], b"{}", hub.refuse[1])
        elif path.startswith("/api/models/"):
            self._list(path.removeprefix("/api/models/"))
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            self._send_file(path.removeprefix(f"/org/name/resolve/{COMMIT}/"))
        else:
            self._send(404, b"{}")

    def _list(self, wanted: str) -> None:
        name, _, revision = wanted.partition("/revision/")
        if name != "org/name":
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", "main", "v2", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._send(200, json.dumps(self.hub.listing()).encode())

    def _send_file(self, path: str) -> None:
        hub, asked = self.hub, self.headers.get("Range")
        hub.asked.append((path, asked))
        data = hub.files[path]
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and hub.ranges else 0
        rest, large = data[begin:], len(data) > LARGE
        if large and hub.storage:
            self._send(302, b"", {"Location": hub.storage + self.path})
            return
        headers = {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"} if begin else {}
        if large and hub.cut:
            self._send(206 if begin else 200, rest, headers, only=hub.cut.pop(0))
            self.close_connection = True
            hub.refuse = None if hub.cut else (503, {})
        elif large and hub.stall is not None:
            self._send(200, rest, headers, only=0)
            for at in range(0, len(rest) // 2, len(rest) // 40):
                self.wfile.write(rest[at : at + len(rest) // 40])
                hub.stall.wait(0.03)
            hub.stall.wait(60)
            self.close_connection = True
        else:
            self._send(206 if begin else 200, rest, headers)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        only: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:only])
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve it, with its address in ``hub.url``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        if hub.stall is not None:
            hub.stall.set()
        server.shutdown()
        server.server_close()


def environment_for(hub: Hub, home: Path) -> dict[str, str]:
    """Return variables with which the program uses only this hub."""
    cache = home / ".cache/huggingface"
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "",
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "TRANSFORMERS_OFFLINE": "",
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
    }


def files_below(folder: Path) -> dict[str, bytes]:
    """Read every file below ``folder`` by relative path: hidden ones too, records not."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".metadata"
    }


def pull(hub: Hub, home: Path, *arguments: str, **env: str) -> Result:
    """Run ``llama-chat pull`` with ``hub``."""
    return run("pull", *arguments, home=home, stdin=None, **(environment_for(hub, home) | env))


def terminal_of(hub: Hub, home: Path, *arguments: str, **env: str) -> Terminal:
    """Open a terminal whose program uses ``hub``."""
    env = environment_for(hub, home) | env
    return Terminal(*arguments, home=home, size=(160, 40), command=COMMAND, **env)
