"""A stand-in for the model Hub: serves a folder of repositories over the HTTP that its client asks.

`root/owner/repo/...` are the files. Repositories named `gated...` answer as gated ones do,
`broken...` with status 500. `asked` keeps what was asked for.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """One server on a free port of this machine."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(f"{self.command} {path}")
        parts = path.split("/")
        api = parts[:2] == ["api", "models"]
        owner, repo, *rest = parts[2:] if api else parts
        folder = self.server.root / owner / repo
        if repo.startswith("gated"):
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repo.startswith("broken"):
            self._send(500, b"", {})
        elif not folder.is_dir():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif api:
            self._json(self._tree(folder) if "tree" in rest else self._info(folder))
        else:
            self._file(folder / "/".join(rest[2:]))  # after resolve/<revision>/

    def _file(self, path: Path) -> None:
        if path.is_file():
            data = path.read_bytes()
            self._send(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _info(self, folder: Path) -> object:
        siblings = [{"rfilename": name} for name, _ in _files(folder)]
        name = f"{folder.parent.name}/{folder.name}"
        return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}

    def _tree(self, folder: Path) -> object:
        return [
            {
                "type": "file",
                "path": name,
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for name, path in _files(folder)
        ]

    def _json(self, data: object) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _files(folder: Path) -> list[tuple[str, Path]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path) for path in found]
