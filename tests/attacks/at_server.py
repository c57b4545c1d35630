"""Requests of strangers to `imageprompt serve`: headers, paths, bodies, pictures.

The app answers in this process, without a worker and without a socket; what only a live server can
show is in tests/serve.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .attack import Attack, Door

DEEP = "[" * 100_000
PIECE = 2**16
"""Bytes of a body that come at once."""


BASE = {"name": "toy", "default": True, "family": None, "width": 64, "height": 64, "multiple": 8}
BASE |= {"steps": 4, "guidance_scale": None, "batch": 8, "hash": "0" * 16}
ADAPTER = {"name": "plus", "default": True, "variant": "plus", "kind": "picture"}
ADAPTER |= {"projector": "1" * 16, "hash": "1" * 16}
"""What a worker would have said, so that requests are checked to the end."""


@dataclass(frozen=True)
class Asked:
    """A request; `size` bytes of nothing follow its body."""

    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    size: int = 0


def _ask(made: Asked, out: Path) -> object:
    """The answer; an OptionError for one of 4xx or 503. A 500 is a fault."""
    from imageprompt.core.errors import OptionError

    status, headers, content = asyncio.run(_answer(made, out))
    assert headers["x-content-type-options"] == "nosniff", headers
    assert "default-src 'none'" in headers["content-security-policy"], headers
    assert str(out).encode() not in content, content[:2000]
    text = content[:2000].decode("utf-8", "replace")
    if status == 500:
        raise AssertionError(text)
    if status >= 400:
        raise OptionError(f"{status} {text}")
    return f"{status} {headers.get('content-type')}"


def _app(out: Path) -> Any:
    """The app, with the folder of this row."""
    from tests.attacks.loaded_server import APP  # as the process has loaded it

    from imageprompt.library import Library
    from imageprompt.serve.admission import Admission
    from imageprompt.serve.files import Files

    (out / "data").mkdir()
    service = APP._app.state.service
    service.files = Files(out / "data", service.limits)
    service.library = Library(out / "library")
    service.worker.described = {"base": dict(BASE), "adapters": [dict(ADAPTER)]}
    service.admission = Admission(service.files, service.library, service.queue, service.worker)
    return APP


async def _answer(asked: Asked, out: Path) -> tuple[int, dict[str, str], bytes]:
    app = _app(out)
    path, _, query = asked.path.partition("?")
    plain = {"host": "localhost", "content-type": "application/json"} | asked.headers
    sent: list[Any] = []
    pieces = _pieces(asked)

    async def receive() -> Any:
        piece = next(pieces, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": asked.method,
        "path": path,
        "raw_path": path.encode(errors="replace"),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in plain.items()],
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(one.get("body", b"") for one in sent[1:])


def _pieces(asked: Asked) -> Iterator[bytes]:
    for start in range(0, len(asked.body), PIECE):
        yield asked.body[start : start + PIECE]
    for _ in range(0, asked.size, PIECE):
        yield b" " * PIECE


def asks(name: str, says: str, outcome: str = "refused", **request: Any) -> Attack:
    """A request; a body that is a function is made when the row is run."""

    def make(folder: Path) -> Asked:
        body = request.get("body", b"")
        return Asked(**{**request, "body": body() if callable(body) else body})

    return Attack(name, make, says, outcome)  # type: ignore[arg-type]


# ── who asks, and for what ──────────────────────────────────────────────────────────────────────


def _heads() -> Iterator[Attack]:
    get = partial(asks, path="/api/v1/presets", method="GET")
    for host in ("evil.example", "localhost.evil.example", "", "[", "127.0.0.1.x", "a" * 60_000):
        yield get(f"the host {host[:30]!r}", "invalid_host", headers={"host": host})
    for origin in ("http://evil.example", "null", "file://", "http://localhost:1", "http://["):
        yield asks(
            f"the origin {origin!r}",
            "foreign_origin",
            path="/api/v1/jobs",
            headers={"origin": origin},
        )
    for name, value in (
        ("authorization", "Bearer " + "x" * 60_000),
        ("authorization", "Basic \xff"),
        ("traceparent", "00-" + "f" * 60_000),
        ("traceparent", "00-\x1b[2J"),
        ("if-none-match", '"' * 60_000),
        ("accept-encoding", "gzip," * 10_000),
        ("last-event-id", "9" * 60_000),
    ):
        yield get(f"{name} {value[:20]!r}", "200", "read", headers={name: value})
    yield get("10,000 headers", "200", "read", headers={f"x-{n}": "y" for n in range(10_000)})
    for length in ("-1", "1e9", "9" * 400, "\xb2", "0x10"):
        yield asks(
            f"a length of {length[:10]!r}",
            "",
            path="/api/v1/jobs",
            headers={"content-length": length},
        )
    yield asks(
        "a key of once with spaces", "", path="/api/v1/jobs", headers={"idempotency-key": "a b"}
    )
    yield asks("another method", "", path="/api/v1/jobs", method="PUT")
    yield asks("a method of escapes", "", path="/api/v1/jobs", method="\x1b[2J")


def _paths() -> Iterator[Attack]:
    for path in (
        "/../../etc/passwd",
        "/settings.py",
        "/docs/../../settings.py",
        "/docs/x",
        "/vendor/../../keys.py",
        "/api/v1/uploads/..",
        "/api/v1/uploads/../../jobs.sqlite",
        "/api/v1/uploads/\0",
        f"/api/v1/uploads/{'0' * 64}",
        f"/api/v1/uploads/{'1' * 100_000}",
        f"/api/v1/jobs/{'0' * 32}/result/../../jobs.sqlite",
        f"/api/v1/jobs/{'0' * 32}/result/0.svg",
        f"/api/v1/jobs/{'0' * 32}/result/\u0661.png",
        "/api/v1/styles/..",
        "/api/v1/styles/\x1b[2J",
        "/api/v1/styles/x/thumbnail",
        "/api/v1/jobs?limit=99999999999999999999",
        "/api/v1/jobs?before=../x",
        "/v1/files/../../x/content",
        "/nothing",
    ):
        yield asks(f"GET {path[:60]!r}", "", path=path, method="GET")
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/healthz"):
        yield asks(f"GET {path}", "200", "read", path=path, method="GET")


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────

BOUNDARY = "multipart/form-data; boundary=x"


def _form(*parts: tuple[str, bytes]) -> bytes:
    lines = [
        b'--x\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n'
        % (name.encode(), data)
        for name, data in parts
    ]
    return b"".join(lines) + b"--x--\r\n"


def _texts() -> dict[str, Callable[[], bytes]]:
    """JSON that is none, or none that may be."""
    return {
        "lists 100,000 deep": lambda: b'{"references": ' + DEEP.encode(),
        "objects 900 deep": lambda: b'{"a":' * 900 + b"1" + b"}" * 900,
        "5,000 digits": lambda: b'{"seed": ' + b"9" * 5000 + b"}",
        "a number beyond floats": lambda: b'{"guidance_scale": 1e999}',
        "NaN": lambda: b'{"guidance_scale": NaN}',
        "a key twice": lambda: b'{"seed": 1, "seed": 2}',
        "half a character": lambda: b'{"prompt": "\\ud800"}',
        "no text": lambda: b'{"prompt": "\xff"}',
        "nothing": lambda: b"",
        "300,000 values": lambda: b'{"references": [' + b"0," * 300_000 + b"0]}",
        "escapes": lambda: b'{"\\u001b[2J": 1}',
    }


def _jobs() -> Iterator[Attack]:
    path = "/api/v1/jobs"
    for name, body in _texts().items():
        yield asks(name, "", path=path, body=body)
    yield asks("2 MB of JSON", "413", path=path, size=2 * 2**20)
    yield asks("300 MB without a length", "413", path=path, size=300 * 2**20)
    form = {"content-type": BOUNDARY}
    yield asks("a form of 300 MB", "invalid_multipart", path=path, headers=form, size=300 * 2**20)
    for name, value in (
        ("a path", "/etc/passwd"),
        ("a URL", "http://169.254.169.254/latest"),
        ("a file URL", "file:///etc/passwd"),
        ("a Hub id", "owner/repository"),
        ("a hash that leads out", "upload:../../x"),
        ("an object", {"a": 1}),
        ("20,000 pictures", ["part:a"] * 20_000),
        ("an upload that is not there", f"upload:{'0' * 64}"),
    ):
        text = json.dumps({"references": [{"reference": value, "adapter": "plus"}]})
        yield asks(f"a reference that is {name}", "", path=path, body=text.encode())
    for name in ("base", "library", "device", "encoder", "faces", "controlnet", "exported"):
        text = json.dumps({name: "/etc/passwd"})
        yield asks(f"the field {name}", "400", path=path, body=text.encode())
    for kind in ("text/plain", "", "multipart/form-data", f"{BOUNDARY[:-1]}{'y' * 60_000}"):
        head = {"content-type": kind}
        yield asks(f"the type {kind[:40]!r}", "", path=path, headers=head, body=b"--x\r\n")
    yield asks("2,000 parts", "400", path=path, headers=form,
               body=lambda: _form(*((f"p{n}", b"x") for n in range(2000))))  # fmt: skip
    yield asks("a part twice", "400", path=path, headers=form,
               body=lambda: _form(("request", b"{}"), ("request", b"{}")))  # fmt: skip
    yield asks(
        "a part without an end", "", path=path, headers=form, body=lambda: _form(("a", b""))[:60]
    )
    yield asks(
        "a head of 5 MB", "", path=path, headers=form, body=lambda: b"--x\r\nX: " + b"y" * 5_000_000
    )
    yield asks("5 MB before the form", "", path=path, headers=form, body=lambda: b"y" * 5_000_000)
    yield asks(
        "100,000 boundaries", "", path=path, headers=form, body=lambda: b"--x\r\n\r\n" * 100_000
    )
    for name in ("../x", "a/b", "\x1b[2J", "x" * 5000):
        yield asks(f"a part named {name[:20]!r}", "", path=path, headers=form,
                   body=lambda name=name: _form(("request", b"{}"), (name, b"x")))  # fmt: skip


def _workflows() -> Iterator[Attack]:
    """Inputs of workflows that name what is not the client's; routes of reports that lead out."""
    path = "/api/v1/workflows/variations"
    for name, body in _texts().items():
        yield asks(f"a workflow: {name}", "", path=path, body=body)
    for name, value in (
        ("a path", "/etc/passwd"),
        ("a URL", "http://169.254.169.254/latest"),
        ("a Hub id", "owner/repository"),
        ("a hash that leads out", "upload:../../x"),
        ("tokens", f"tokens:{'0' * 64}/0"),
        ("an object", {"a": 1}),
        ("20,000 pictures", ["part:a"] * 20_000),
        ("an upload that is not there", f"upload:{'0' * 64}"),
    ):
        text = json.dumps({"picture": value}).encode()
        yield asks(f"a workflow's picture that is {name}", "400", path=path, body=text)
    for name in ("base", "library", "device", "encoder", "faces", "adapter", "embedding"):
        text = json.dumps({"picture": f"upload:{'0' * 64}", name: "/etc/passwd"}).encode()
        yield asks(f"a workflow's input {name}", "400", path=path, body=text)
    for number, (name, value) in enumerate(
        (
            ("scales", [1e308] * 3),
            ("scales", [0.5] * 40_000),
            ("steps", 10**30),
            ("num_images", 10**9),
            ("size", [10**6] * 2),
            ("seed", "\x1b"),
        )
    ):
        text = json.dumps({"picture": f"upload:{'0' * 64}", name: value}).encode()
        yield asks(f"a workflow's {name}, {number}", "400", path=path, body=text)
    for name, given in (("tune-style", "domain"), ("restore-ct", "scan"), ("../x", "a"),
                        ("\x1b[2J", "a"), ("x" * 50_000, "a"), ("_judged", "a")):  # fmt: skip
        text = json.dumps({given: "/etc"}).encode()
        yield asks(f"the workflow {name[:20]!r}", "", path=f"/api/v1/workflows/{name}", body=text)
    for job in ("..", "0" * 32, "1" * 100_000, "\0"):
        route = f"/api/v1/jobs/{job}/report"
        yield asks(f"the report of {job[:20]!r}", "404", path=route, method="GET")


def _others() -> Iterator[Attack]:
    """Routes that take more JSON, with pictures in base64."""
    for path in (
        "/v1/images/generations",
        "/v1/images/edits",
        "/sdapi/v1/txt2img",
        "/sdapi/v1/img2img",
    ):
        for name, body in _texts().items():
            if name == "escapes" and path.startswith("/sdapi/"):
                continue  # keys that are not known are ignored there: it is sound
            yield asks(f"{path}: {name}", "", path=path, body=body)
        yield asks(f"{path}: 300 MB", "413", path=path, size=300 * 2**20)
        bomb = base64.b64encode(_bomb()).decode()
        for name, value in (
            ("a URL", "http://169.254.169.254/latest"),
            ("a file URL", "file:///etc/passwd"),
            ("a bomb", f"data:image/png;base64,{bomb}"),
            ("no base64", "data:image/png;base64,\u0661"),
        ):
            asked = {
                "prompt": "x",
                "images": [{"image_url": value}],
                "init_images": [value],
                "alwayson_scripts": {
                    "controlnet": {"args": [{"module": "ip-adapter", "image": value}]}
                },
            }
            yield asks(f"{path}: {name}", "", path=path, body=json.dumps(asked).encode())


def _bomb() -> bytes:
    """A PNG of 10 kB with 81 million pixels."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("1", (9000, 9000)).save(stream, format="PNG")
    return stream.getvalue()


def _drawn(format: str, **how: Any) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, format=format, **how)
    return stream.getvalue()


def _half() -> bytes:
    """A PNG that ends in the middle of its noise."""
    from PIL import Image

    stream = io.BytesIO()
    Image.effect_noise((100, 100), 50).save(stream, format="PNG")
    return stream.getvalue()[: stream.tell() // 2]


def _uploads() -> Iterator[Attack]:
    picture = {"content-type": "image/png"}
    for path in ("/api/v1/uploads", "/api/v1/recipe", "/v1/files"):
        headers = {"content-type": BOUNDARY} if path == "/v1/files" else picture

        def body(make: Callable[[], bytes], path: str = path) -> Callable[[], bytes]:
            return (
                make if path != "/v1/files" else lambda: _form(("file", make()), ("purpose", b"v"))
            )

        for name, make in {
            "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
            "HTML": lambda: b"<!doctype html><script>alert(1)</script>",
            "a GIF": lambda: _drawn("GIF"),
            "a TIFF": lambda: _drawn("TIFF"),
            "nothing": lambda: b"",
            "a PNG in name only": lambda: b"\x89PNG\r\n\x1a\n" + bytes(200),
            "half a PNG": _half,
            "a bomb": _bomb,
        }.items():
            yield asks(f"{path}: {name}", "", path=path, headers=headers, body=body(make))
        says = "invalid_multipart" if path == "/v1/files" else "413"
        yield asks(f"{path}: 300 MB", says, path=path, headers=headers, size=300 * 2**20)
    yield asks(
        "a PNG", "201", "read", path="/api/v1/uploads", headers=picture, body=lambda: _drawn("PNG")
    )
    yield asks("a JPEG called a PNG", "201", "read", path="/api/v1/uploads", headers=picture,
               body=lambda: _drawn("JPEG"))  # fmt: skip


IMPORTS = ("tests.attacks.loaded_server",)
DOORS = (
    Door("server: headers", _ask, tuple(_heads()), IMPORTS),
    Door("server: paths", _ask, tuple(_paths()), IMPORTS),
    Door("server: bodies of jobs", _ask, tuple(_jobs()), IMPORTS),
    Door("server: workflows", _ask, tuple(_workflows()), IMPORTS),
    Door("server: bodies of other APIs", _ask, tuple(_others()), IMPORTS),
    Door("server: pictures", _ask, tuple(_uploads()), IMPORTS),
)
