"""OpenAI's images API, translated onto jobs."""

from __future__ import annotations

from fastapi import APIRouter

from imageprompt.serve.api.openai.files import router as files_router
from imageprompt.serve.api.openai.images import router as images_router
from imageprompt.serve.api.openai.models import router as models_router

router = APIRouter(prefix="/v1", tags=["OpenAI"])
for part in (images_router, models_router, files_router):
    router.include_router(part)
