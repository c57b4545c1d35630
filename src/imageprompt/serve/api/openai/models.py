"""The models that are served: the base, and the base with each of its adapters."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from imageprompt.serve.api.catalog import described_of
from imageprompt.serve.api.common import service_of
from imageprompt.serve.api.openai.translation import models, unknown_model

router = APIRouter()


@router.get("/models")
async def list_models(request: Request) -> dict[str, Any]:
    """All of them."""
    known = models(described_of(service_of(request)))
    return {"object": "list", "data": [_model_dict(name, known[name]) for name in known]}


@router.get("/models/{model:path}")
async def show_model(request: Request, model: str) -> dict[str, Any]:
    """One of them."""
    known = models(described_of(service_of(request)))
    if model not in known:
        raise unknown_model(model, known)
    return _model_dict(model, known[model])


def _model_dict(name: str, adapter: str | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "imageprompt",
        "adapter": adapter,
    }
