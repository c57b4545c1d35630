"""Workflows: listed, taken as jobs, and what they measured."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from fastapi import APIRouter, Request

from imageprompt.serve import workflow_body
from imageprompt.serve.api.common import bound, once_of, owner_of, service_of
from imageprompt.serve.api.jobs import job_dict
from imageprompt.serve.bodies import read_body
from imageprompt.serve.errors import not_found
from imageprompt.serve.openapi import json_or_form
from imageprompt.serve.sources import JOB

router = APIRouter(tags=["workflows"])

_INPUTS = {"type": "object", "description": "the inputs of GET /api/v1/workflows"}


@router.get("/workflows")
async def list_workflows() -> dict[str, Any]:
    """The workflows: their inputs and figures, and whether they run here as jobs."""
    from imageprompt.workflows import WORKFLOWS

    return {"workflows": [workflow_body.described(one) for one in WORKFLOWS]}


@router.post("/workflows/{name}", status_code=202, openapi_extra=json_or_form(_INPUTS))
async def run_workflow(request: Request, name: str) -> dict[str, Any]:
    """Take a workflow into the queue."""
    service, owner = service_of(request), owner_of(request)
    once = once_of(request)
    workflow_body.find(name)
    body = await read_body(request, service.limits)
    asked = workflow_body.checked(name, body.data, service.limits)
    service.admission.check_room(owner)
    data = await bound(service, owner, asked, body.parts)
    return job_dict(service, await service.submit(data, owner, once=once, workflow=True))


@router.get("/jobs/{job}/report")
async def show_report(request: Request, job: str) -> dict[str, Any]:
    """What the workflow of a job measured, when it is done."""
    service, owner = service_of(request), owner_of(request)
    content = None
    if re.fullmatch(JOB, job, re.ASCII):
        content = await asyncio.to_thread(service.files.read_report, owner, job)
    if content is None:
        raise not_found("report")
    found: dict[str, Any] = json.loads(content)
    return found
