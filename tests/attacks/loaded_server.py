"""The app of a server, made once as a server does: FastAPI evaluates the annotations of routes."""

import asyncio
from typing import Any

from imageprompt.serve.app import make_app
from imageprompt.serve.service import Service
from imageprompt.serve.settings import Settings


async def _made() -> Any:
    return make_app(Service(Settings(data="data", library="library")))


APP = asyncio.run(_made())
APP._app.openapi()
