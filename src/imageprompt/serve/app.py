"""The app: routes, the page's files, errors as JSON; inside a guard."""

from __future__ import annotations

import gzip
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from imageprompt.core import __version__
from imageprompt.serve.api import a1111, catalog, jobs, openai, styles, uploads, workflows
from imageprompt.serve.dialects import dialect_of
from imageprompt.serve.errors import ApiError, Problem
from imageprompt.serve.guard import INTERNAL, Guard
from imageprompt.serve.live_job import API
from imageprompt.serve.openapi import described
from imageprompt.serve.service import Service

PAGE = Path(__file__).parent / "page"
_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
"""Of the page's own files; a file of another kind is not served."""


_PATHS = {"index.html": "/", "docs.html": "/docs"}


def make_app(service: Service, clock: Callable[[], float] = time.monotonic) -> Guard:
    """The guarded app of a service that somebody else starts and stops."""
    app = FastAPI(
        title="imageprompt",
        version=__version__,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.openapi = cache(lambda: described(app))  # type: ignore[method-assign]
    app.state.service = service
    for router in (jobs.router, workflows.router, uploads.router, catalog.router, styles.router):
        app.include_router(router, prefix=API)
    for router in (catalog.operations, openai.router, a1111.router):
        app.include_router(router)
    open_paths = add_page(app)
    add_error_handlers(app)
    return Guard(app, service.settings, service.metrics, open_paths, clock, service.tracing)


def add_page(app: FastAPI) -> list[str]:
    """A route for each of the page's files; returns their paths.

    Which files there are is known before any request: no request can name another.
    """
    found = []
    for file in sorted(PAGE.rglob("*")):
        if file.is_file() and file.suffix in _TYPES:
            name = file.relative_to(PAGE).as_posix()
            path = _PATHS.get(name, f"/{name}")
            app.add_api_route(
                path,
                _page_file(file),
                name=f"page {name}",
                include_in_schema=False,
                response_model=None,
            )
            found.append(path)
    return found


def _page_file(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """The answer with the file: compressed once, and sent again only if it has changed."""
    content = file.read_bytes()
    packed = gzip.compress(content, mtime=0)
    kind = _TYPES[file.suffix]
    tag = f'"{hashlib.sha256(content).hexdigest()}"'
    always = {"cache-control": "no-cache", "etag": tag, "vary": "accept-encoding"}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=always)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers = {**always, "content-encoding": "gzip"}
            return Response(packed, media_type=kind, headers=headers)
        return Response(content, media_type=kind, headers=always)

    return answer


# ── errors ──────────────────────────────────────────────────────────────────────────────────────


def add_error_handlers(app: FastAPI) -> None:
    """Every error has the same form, whoever raises it."""
    handlers: Mapping[Any, Any] = {
        ApiError: _api_error,
        HTTPException: _http_error,
        RequestValidationError: _wrong_query,
        Exception: _internal_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _api_error(request: Request, error: ApiError) -> Response:
    dialect = dialect_of(request.url.path)
    headers = dialect.headers(error)
    return JSONResponse(dialect.body(error), status_code=error.status, headers=headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    known = {404: ("not_found", "no such route"), 405: ("method_not_allowed", "not by this method")}
    kind, message = known.get(error.status_code, ("invalid_request", "the request is wrong"))
    answer = await _api_error(request, ApiError(error.status_code, Problem(kind, message)))
    answer.headers.update(error.headers or {})
    return answer


async def _wrong_query(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    param = str(first["loc"][-1])[:60]
    return await _api_error(
        request, ApiError(400, Problem("invalid_request", f"{param}: {first['msg']}", param))
    )


async def _internal_error(request: Request, _: Exception) -> Response:
    return await _api_error(request, ApiError(500, INTERNAL))
