"""What is served: bases, adapters, presets, the schema of a request; and how the server is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response

from imageprompt.control import DEFAULT_SCALE
from imageprompt.control.presets import PRESETS
from imageprompt.core import __version__
from imageprompt.serve import request_body
from imageprompt.serve.admission import NOT_READY
from imageprompt.serve.api.common import service_of
from imageprompt.serve.errors import ApiError, Problem
from imageprompt.serve.metrics import CONTENT_TYPE
from imageprompt.serve.service import Service

router = APIRouter(tags=["catalog"])
operations = APIRouter(tags=["operations"])

_PRIVATE = ("projector", "hash")
_LIMITS = (
    *("num_images", "steps", "side", "pixels", "references", "prompt_characters"),
    *("json_bytes", "body_bytes", "picture_bytes", "picture_pixels", "parts"),
    *("queued_jobs_of_one_key",),
)


@router.get("/bases")
async def list_bases(request: Request) -> dict[str, Any]:
    """The base that is served, and the largest values that a request may have."""
    service = service_of(request)
    limits = {name: value for name, value in asdict(service.limits).items() if name in _LIMITS}
    limits["queued_jobs"] = service.settings.queue
    return {"bases": [_public(described_of(service)["base"])], "limits": limits}


@router.get("/adapters")
async def list_adapters(request: Request) -> dict[str, Any]:
    """The names that `adapter` can have."""
    return {"adapters": [_public(one) for one in described_of(service_of(request))["adapters"]]}


@router.get("/presets")
async def list_presets() -> dict[str, Any]:
    """The names that `preset` can have."""
    presets = [
        {"name": one.name, "summary": one.summary, "reads": one.reads} for one in PRESETS.values()
    ]
    return {"presets": presets, "scale": DEFAULT_SCALE}


@router.get("/schema")
async def show_schema(request: Request) -> dict[str, Any]:
    """The JSON schema of a request."""
    described = described_of(service_of(request))
    adapters = [one["name"] for one in described["adapters"]]
    return request_body.schema([described["base"]["name"]], adapters)


@router.get("/health")
async def show_health(request: Request) -> dict[str, Any]:
    """Version, queue and worker."""
    service = service_of(request)
    return {
        "version": __version__,
        "status": service.admission.closed() or "ready",
        "queue": {"jobs": len(service.queue), "most": service.settings.queue},
        "worker": {"ready": service.worker.ready, "starts": service.worker.starts},
    }


def described_of(service: Service) -> dict[str, Any]:
    """What the worker serves. Raises ApiError while it starts for the first time."""
    if not service.worker.described:
        raise ApiError(503, NOT_READY, retry_after=5)
    return service.worker.described


def _public(described: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in described.items() if name not in _PRIVATE}


# ── for those who run it ────────────────────────────────────────────────────────────────────────


@operations.get("/healthz")
async def is_alive() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@operations.get("/readyz")
async def is_ready(request: Request) -> dict[str, str]:
    """Jobs are taken."""
    reason = service_of(request).admission.closed()
    if reason is not None:
        problem = Problem(reason, "no jobs are taken now", None, "Try again.")
        raise ApiError(503, problem, retry_after=5)
    return {"status": "ready"}


@operations.get("/metrics", response_model=None)
async def show_metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE)
