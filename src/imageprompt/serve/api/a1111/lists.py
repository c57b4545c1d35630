"""What can be chosen: little, as A1111's clients see it; and ControlNet's lists."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request

from imageprompt.serve.api.a1111.payload import (
    SAMPLER,
    SCHEDULER,
    check_settings,
    settings_of,
    title_of,
)
from imageprompt.serve.api.a1111.units import MODULES
from imageprompt.serve.api.catalog import described_of
from imageprompt.serve.api.common import service_of
from imageprompt.serve.bodies import read_json_with_pictures

router = APIRouter()

_CONTROLNET_VERSION = 2
_SCRIPTS = ["controlnet", "controlnet m2m"]
"""By the second one webuiapi knows that there is a ControlNet."""
_FIXED: Mapping[str, Any] = {
    "/sdapi/v1/scripts": {"txt2img": _SCRIPTS, "img2img": _SCRIPTS},
    "/sdapi/v1/samplers": [{"name": SAMPLER, "aliases": [], "options": {}}],
    "/sdapi/v1/schedulers": [{"name": SCHEDULER, "label": "Automatic", "aliases": None}],
    "/sdapi/v1/upscalers": [{"name": "None", "model_name": None, "model_path": None, "scale": 1}],
    "/sdapi/v1/latent-upscale-modes": [],
    "/sdapi/v1/sd-vae": [],
    "/sdapi/v1/hypernetworks": [],
    "/sdapi/v1/face-restorers": [],
    "/sdapi/v1/realesrgan-models": [],
    "/sdapi/v1/prompt-styles": [],
    "/sdapi/v1/loras": [],
    "/sdapi/v1/embeddings": {"loaded": {}, "skipped": {}},
    "/sdapi/v1/cmd-flags": {},
    "/sdapi/v1/memory": {"ram": {}, "cuda": {}},
    "/controlnet/version": {"version": _CONTROLNET_VERSION},
    "/controlnet/module_list": {"module_list": [*MODULES], "module_detail": {}},
}


def _fixed(value: Any) -> Callable[[], Awaitable[Any]]:
    async def answer() -> Any:
        return value

    return answer


for path, value in _FIXED.items():
    router.add_api_route(path, _fixed(value), name=path, description="Always the same.")


@router.get("/sdapi/v1/sd-models")
async def list_bases(request: Request) -> list[dict[str, Any]]:
    """The base that is served."""
    base = described_of(service_of(request))["base"]
    return [
        {
            "title": title_of(base),
            "model_name": base["name"],
            "hash": base["hash"][:10],
            "sha256": base["hash"],
            "filename": base["name"],
            "config": None,
        }
    ]


@router.post("/sdapi/v1/refresh-checkpoints")
async def refresh() -> None:
    """Does nothing."""


@router.get("/sdapi/v1/options")
async def show_settings(request: Request) -> dict[str, Any]:
    """The settings; none can be changed."""
    return settings_of(described_of(service_of(request)))


@router.post("/sdapi/v1/options")
async def change_settings(request: Request) -> dict[str, Any]:
    """Takes settings that are so already, and refuses others."""
    service = service_of(request)
    settings = await read_json_with_pictures(request, service.limits)
    check_settings(settings, described_of(service), "options")
    return {}


@router.get("/controlnet/model_list")
async def list_adapters(request: Request) -> dict[str, Any]:
    """The adapters that are served."""
    adapters = described_of(service_of(request))["adapters"]
    return {"model_list": [title_of(one) for one in adapters]}
