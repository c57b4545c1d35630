"""From a request in OpenAI's words to one of `/api/v1/jobs`."""

from __future__ import annotations

import copy
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from imageprompt.core.errors import PictureError
from imageprompt.serve import sources
from imageprompt.serve.api.common import places_renamed
from imageprompt.serve.api.openai.body import OWN_FIELD, Asked
from imageprompt.serve.api.openai.options import SCALE_OF, STEPS_OF, Options
from imageprompt.serve.errors import ApiError, bad_request, problem_of
from imageprompt.serve.request_body import TOP

_MAPPED = ("prompt", "num_images", "size", "base")
OWN = tuple(name for name in TOP if name not in _MAPPED)
"""The fields of our request that `ip_adapter` can have."""
_SOURCES = ("reference", "style", sources.TOKENS)
_MAX_SEED = 2**31


def request_of(
    asked: Asked, options: Options, described: Mapping[str, Any], *, once: str | None
) -> dict[str, Any]:
    """The request; its pictures are still parts. Raises ApiError."""
    own = _own(options)
    adapter = _adapter(options.model, described)
    pictures = _start(asked, own)
    own["references"] = _references(own, pictures, asked, options)
    for reference in own["references"]:
        if adapter is not None and reference.get("style") is None:
            reference.setdefault("adapter", adapter)
    request = {"prompt": options.prompt, "num_images": options.n, **own}
    if options.size is not None:
        request["size"] = list(options.size)
    request.setdefault("seed", _seed(once))
    request.setdefault("steps", _steps(options, described))
    return request


def _own(options: Options) -> dict[str, Any]:
    for name in options.own:
        if name not in OWN:
            raise bad_request(
                f"{OWN_FIELD}.{name[:60]}: no such field",
                param=f"{OWN_FIELD}.{name[:60]}",
                hint=f"There are: {', '.join(OWN)}.",
            )
    return copy.deepcopy(dict(options.own))


def models(described: Mapping[str, Any]) -> dict[str, str | None]:
    """The names that `model` can have -> the adapter of references that name none."""
    base = described["base"]["name"]
    adapters = [one["name"] for one in described["adapters"]]
    return {base: None, **{f"{base}/{name}": name for name in adapters}}


def _adapter(model: str | None, described: Mapping[str, Any]) -> str | None:
    known = models(described)
    if model is not None and model not in known:
        raise unknown_model(model, known)
    return None if model is None else known[model]


def unknown_model(model: str, known: Mapping[str, Any]) -> ApiError:
    """A 404."""
    wrong = bad_request(
        f"model {model!r:.120}: not served",
        type="model_not_found",
        param="model",
        hint=f"There are: {', '.join(known)}.",
    )
    return ApiError(404, wrong.problem)


def _seed(once: str | None) -> int:
    """Another one each time; that of a repeated Idempotency-Key is the same."""
    if once is None:
        return secrets.randbelow(_MAX_SEED)
    return int.from_bytes(hashlib.sha256(once.encode()).digest()[:8]) % _MAX_SEED


def _steps(options: Options, described: Mapping[str, Any]) -> int:
    return max(1, round(int(described["base"]["steps"]) * STEPS_OF[options.quality]))


# ── pictures ────────────────────────────────────────────────────────────────────────────────────


def _start(asked: Asked, own: dict[str, Any]) -> Sequence[str]:
    """With a mask, the first picture is where the result begins; the others are left."""
    if asked.mask is None:
        return asked.pictures
    if not asked.pictures:
        raise bad_request("mask: there is no picture that it could belong to", param="mask")
    for name in sources.START_PICTURES:
        if own.get(name) is not None:
            place = f"{OWN_FIELD}.{name}"
            raise bad_request(f"{place}: there is a mask already", param=place)
    own["init_image"], own["inpaint_mask"] = asked.pictures[0], asked.mask
    own.setdefault("strength", 1.0)
    return asked.pictures[1:]


def _references(
    own: Mapping[str, Any], pictures: Sequence[str], asked: Asked, options: Options
) -> list[dict[str, Any]]:
    """Each picture that nothing names is a reference; those of `ip_adapter` without a source take
    one each, in order."""
    named = {holder[key] for _, holder, key in sources.places(own) if isinstance(holder[key], str)}
    left = [picture for picture in pictures if picture not in named]
    references: list[dict[str, Any]]
    if own.get("references"):
        references = own["references"]
        for reference in references:
            if left and not any(reference.get(name) for name in _SOURCES):
                reference["reference"] = left.pop(0)
        if left:
            raise bad_request(
                f"image: {len(left)} of {len(asked.pictures)} pictures have no reference in "
                f"{OWN_FIELD}",
                param="image",
                hint="Add an object to its references for each.",
            )
    else:
        references = [{"reference": picture} for picture in left]
    if options.input_fidelity is not None:
        for reference in references:
            reference.setdefault("scale", SCALE_OF[options.input_fidelity])
    return references


def inpaint_mask(mask: bytes, picture: bytes) -> bytes:
    """A PNG, white where the mask is transparent. Raises ApiError."""
    import io

    from PIL import ImageOps

    from imageprompt.encoding.images.open_image import alpha_of, open_upright, picture_size

    try:
        opened, size = open_upright(mask), picture_size(picture)
    except PictureError as error:
        raise ApiError(400, problem_of(error, "mask")) from error
    if not opened.has_transparency_data:
        raise _wrong_mask("it has no alpha channel", "Make transparent what is to be painted.")
    if opened.size != size:
        told = "x".join(map(str, opened.size)), "x".join(map(str, size))
        raise _wrong_mask(f"{told[0]} pixels, but the picture has {told[1]}", "Make them equal.")
    painted = ImageOps.invert(alpha_of(opened))
    if painted.getbbox() is None:
        raise _wrong_mask("nothing of it is transparent", "Make transparent what is to be painted.")
    stream = io.BytesIO()
    painted.save(stream, format="PNG")
    return stream.getvalue()


def _wrong_mask(reason: str, hint: str) -> ApiError:
    return bad_request(f"mask: {reason}", type="invalid_picture", param="mask", hint=hint)


# ── errors ──────────────────────────────────────────────────────────────────────────────────────

_NAMES = {"num_images": "n", "init_image": "image", "inpaint_mask": "mask"}


def in_words_of_openai(own: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Errors inside name fields as the client did."""
    return places_renamed(partial(_param, own=own))


def _param(param: str, *, own: Mapping[str, Any]) -> str:
    first = param.partition(".")[0]
    if own.get(first) is not None:
        return f"{OWN_FIELD}.{param}"
    if first == "references":
        return "image"
    if param.startswith(f"{OWN_FIELD}."):
        return param
    return _NAMES.get(first, param)
