"""Whatever JSON a client sends as OpenAI's or A1111's: a request of ours, or a typed 4xx."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from imageprompt.serve.api.a1111 import payload
from imageprompt.serve.api.openai import body, options, translation
from imageprompt.serve.errors import ApiError, bad_request
from imageprompt.serve.request_body import REFERENCE, TOP, checked_request
from imageprompt.serve.settings import Limits
from served import drawn

LIMITS = Limits()
SERVED = {
    "base": {"name": "bundled", "hash": "a" * 16, "steps": 20, "guidance_scale": 5.0},
    "adapters": [{"name": "plus", "hash": "b" * 16, "kind": "picture"}],
}
URL = f"data:image/png;base64,{base64.b64encode(drawn('red')).decode()}"
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3.5, 1e308, 10**30, "", "x", "true", "64x64", "auto"),
    *(URL, "http://127.0.0.1/", "/etc/passwd", "part:image.0", f"upload:{'0' * 64}", "data:,"),
    *("plus", f"tokens:{'0' * 64}/0", [], {}, [[]], {"url": "x"}),
)
FIELDS = (*options._KNOWN, *options._REFUSED, "images", "image", "mask")
KEYS = (
    *("prompt", "seed", "batch_size", "n_iter", "steps", "cfg_scale", "width", "height", "styles"),
    *("alwayson_scripts", "override_settings", "init_images", "mask", "mask_blur", "sampler_name"),
    *("denoising_strength", "inpainting_mask_invert"),
)
UNIT = ("image", "model", "module", "weight", "guidance_start", "guidance_end", "control_mode")


def value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(4)
    if kind < 2 or depth > 2:
        return draw.choice(VALUES)
    if kind == 2:
        return [value(draw, depth + 1) for _ in range(draw.randrange(3))]
    return some(draw, (*REFERENCE, *TOP, *UNIT, "file_id", "image_url"), depth + 1)


def some(draw: random.Random, names: Any, depth: int = 1) -> dict[str, Any]:
    return {draw.choice(names): value(draw, depth) for _ in range(draw.randrange(4))}


def edits(count: int) -> Iterator[dict[str, Any]]:
    for seed in range(count):
        draw = random.Random(seed)
        found = {"prompt": "", "images": [URL] * draw.randrange(3), **some(draw, FIELDS)}
        if draw.random() < 0.6:
            references = [some(draw, REFERENCE) for _ in range(draw.randrange(3))]
            found["ip_adapter"] = {"references": references, **some(draw, TOP)}
        yield found


def payloads(count: int) -> Iterator[dict[str, Any]]:
    for seed in range(count):
        draw = random.Random(seed)
        found = {"prompt": "", "init_images": [URL], **some(draw, KEYS)}
        if draw.random() < 0.6:
            unit = {"module": "ip-adapter", "image": URL, **some(draw, UNIT)}
            found["alwayson_scripts"] = {"ControlNet": {"args": [unit]}}
        yield found


def missing(_: str, place: str) -> str:
    raise bad_request("no such file", param=place)


def from_openai(data: dict[str, Any]) -> Any:
    asked = body._from_json(body._object(data), LIMITS, missing)
    body._open_own_field(asked, LIMITS)
    found = options.options_of(asked.values, edit=True)
    with translation.in_words_of_openai(found.own):
        request = translation.request_of(asked, found, SERVED, once=None)
        checked_request(request, LIMITS)
    return request


def from_a1111(data: dict[str, Any]) -> Any:
    with payload.in_words_of_a1111():
        found = payload.Translation(data, SERVED, LIMITS)
        found.start()
        checked_request(found.request, LIMITS)
    return found.request


@pytest.mark.parametrize(
    ("translate", "all_of_them"), [(from_openai, edits), (from_a1111, payloads)]
)
def test_any_json(translate: Any, all_of_them: Any) -> None:
    taken, refused = 0, []
    for data in all_of_them(500):
        try:
            json.dumps(translate(json.loads(json.dumps(data))))
            taken += 1
        except ApiError as error:
            refused.append(error)
    assert taken > 20
    assert len(refused) > 20
    assert all(400 <= error.status < 500 for error in refused)
    assert all(len(json.dumps(error.body())) < 2000 for error in refused)
