"""The API of A1111's web UI and of its ControlNet extension, translated onto jobs."""

from __future__ import annotations

from fastapi import APIRouter

from imageprompt.serve.api.a1111.images import router as images_router
from imageprompt.serve.api.a1111.lists import router as lists_router

router = APIRouter(tags=["A1111"])
router.include_router(images_router, prefix="/sdapi/v1")
router.include_router(lists_router)
