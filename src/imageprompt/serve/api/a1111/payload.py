"""From the keys of txt2img and img2img to a request of `/api/v1/jobs`.

Keys that are not known are ignored, as A1111 does. Those that would change the picture, and do not
here, are refused unless they have the value that clients send by themselves.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from imageprompt.core.errors import PictureError
from imageprompt.serve.api.a1111.units import CONTROLNET, references_of
from imageprompt.serve.api.common import places_renamed, wrong_option
from imageprompt.serve.api.inline import picture_in
from imageprompt.serve.errors import ApiError, bad_request, problem_of
from imageprompt.serve.settings import Limits

SAMPLER, SCHEDULER = "default", "automatic"
_SAMPLERS = ("", SAMPLER, "Euler a", "Euler")
"""Clients that choose no sampler name one of the last two."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "sampler_name": _SAMPLERS,
    "sampler_index": _SAMPLERS,
    "scheduler": ("", SCHEDULER, "Automatic"),
    "script_name": ("", "None"),
    "styles": ([],),
    "subseed_strength": (0,),
    "seed_resize_from_w": (0, -1),
    "seed_resize_from_h": (0, -1),
    "restore_faces": (False,),
    "tiling": (False,),
    "eta": (0, 1),
    "s_churn": (0,),
    "s_tmin": (0,),
    "s_noise": (1,),
    "enable_hr": (False,),
    "firstphase_width": (0,),
    "firstphase_height": (0,),
    "firstpass_image": ("",),
    "refiner_checkpoint": ("", "None"),
    "resize_mode": (0,),
    "inpainting_fill": (0, 1),
    "initial_noise_multiplier": (1,),
}
_MAX_SEED = 2**31
_MAX_BLUR = 64
_DENOISING = 0.75
_SIDE = 512  # pixels; A1111's own

Payload = Mapping[str, Any]


class Translation:
    """A request, and the pictures that it names as parts."""

    def __init__(self, payload: Any, described: Mapping[str, Any], limits: Limits) -> None:
        """Raises ApiError."""
        if not isinstance(payload, dict):
            raise bad_request("the request: not an object")
        self._payload: Payload = {k: v for k, v in payload.items() if v is not None}
        self._described, self._limits = described, limits
        self.parts: dict[str, bytes] = {}
        self._check()
        self.request = self._plain()
        self.request["references"] = list(self._references())

    # ── what is refused ─────────────────────────────────────────────────────────────────────────

    def _check(self) -> None:
        for name, values in _NEUTRAL.items():
            if name in self._payload and self._payload[name] not in values:
                shown = " or ".join(repr(value) for value in values if value != "")
                raise wrong_option(
                    name, f"not supported but as {shown or 'nothing'}", "Leave it out."
                )
        settings = self._payload.get("override_settings", {})
        check_settings(settings, self._described, "override_settings")

    # ── the request ─────────────────────────────────────────────────────────────────────────────

    def _plain(self) -> dict[str, Any]:
        payload, base = self._payload, self._described["base"]
        request: dict[str, Any] = {
            "prompt": payload.get("prompt", ""),
            "negative_prompt": payload.get("negative_prompt", ""),
            "seed": self._seed(),
            "num_images": self._whole("batch_size", 1) * self._whole("n_iter", 1),
        }
        if "steps" in payload:
            request["steps"] = payload["steps"]
        if "cfg_scale" in payload and base["guidance_scale"] is not None:
            request["guidance_scale"] = payload["cfg_scale"]
        if "width" in payload or "height" in payload:
            request["size"] = [self._whole("width", _SIDE), self._whole("height", _SIDE)]
        return request

    def _seed(self) -> int:
        seed = self._whole("seed", -1)
        return secrets.randbelow(_MAX_SEED) if seed == -1 else seed

    def _whole(self, name: str, default: int) -> int:
        value = self._payload.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
            raise wrong_option(name, "not a whole number")
        return value

    def add(self, content: bytes) -> str:
        """The source of a picture."""
        name = f"picture.{len(self.parts)}"
        self.parts[name] = content
        return f"part:{name}"

    def _references(self) -> Iterator[dict[str, Any]]:
        scripts = self._payload.get("alwayson_scripts", {})
        if not isinstance(scripts, dict):
            raise wrong_option("alwayson_scripts", "not an object")
        for name, script in scripts.items():
            arguments = script.get("args", []) if isinstance(script, dict) else script
            place = f"alwayson_scripts.{name[:40]}"
            if name.lower() == CONTROLNET.lower():
                yield from references_of(arguments, self._described, self._limits, self.add)
            elif not isinstance(arguments, list) or any(arguments):
                raise wrong_option(place, "not supported", "Leave it out.")

    # ── img2img ─────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Add the picture that the result begins with, and its mask."""
        listed = self._payload.get("init_images")
        if not isinstance(listed, list) or len(listed) != 1:
            raise wrong_option("init_images", "not a list of one picture")
        content = picture_in(listed[0], "init_images.0", self._limits)
        self.request["init_image"] = self.add(content)
        self.request["strength"] = self._payload.get("denoising_strength", _DENOISING)
        if self._payload.get("mask"):
            mask = picture_in(self._payload["mask"], "mask", self._limits)
            invert = bool(self._payload.get("inpainting_mask_invert"))
            blur = self._whole("mask_blur", 4)
            if not 0 <= blur <= _MAX_BLUR:
                raise wrong_option("mask_blur", f"not a whole number from 0 to {_MAX_BLUR}")
            self.request["inpaint_mask"] = self.add(_mask(mask, invert=invert, blur=blur))


def _mask(content: bytes, *, invert: bool, blur: int) -> bytes:
    """A PNG, white where something is painted. Raises ApiError."""
    from PIL import Image, ImageFilter

    from imageprompt.encoding.masks import open_mask

    try:
        weights = open_mask(content)
    except PictureError as error:
        raise ApiError(400, problem_of(error, "mask")) from error
    weights = 1 - weights if invert else weights
    if not weights.any():
        raise wrong_option("mask", "black all over: nothing would be painted")
    mask = Image.fromarray((weights * 255).round().astype("uint8"))
    stream = io.BytesIO()
    mask.filter(ImageFilter.GaussianBlur(blur)).save(stream, format="PNG")
    return stream.getvalue()


def settings_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can be read, and set to what they are."""
    return {
        "sd_model_checkpoint": title_of(described["base"]),
        "sd_checkpoint_hash": described["base"]["hash"],
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
    }


def title_of(described: Mapping[str, Any]) -> str:
    """Of a base or an adapter, as A1111 names models."""
    return f"{described['name']} [{described['hash'][:8]}]"


def check_settings(settings: Any, described: Mapping[str, Any], place: str) -> None:
    """Raises ApiError for a setting that is not, and cannot be made, so."""
    if not isinstance(settings, dict):
        raise wrong_option(place, "not an object")
    known = settings_of(described)
    for name, value in settings.items():
        same = value == known.get(name, _NOTHING)
        if name == "sd_model_checkpoint":
            same = same or value == described["base"]["name"]
        if not same:
            raise wrong_option(f"{place}.{name[:40]}", "cannot be changed", "Leave it out.")


_NOTHING = object()


# ── errors ──────────────────────────────────────────────────────────────────────────────────────

_NAMES = {
    "num_images": "batch_size",
    "guidance_scale": "cfg_scale",
    "size": "width",
    "init_image": "init_images",
    "inpaint_mask": "mask",
    "strength": "denoising_strength",
    "references": f"alwayson_scripts.{CONTROLNET}.args",
}


def in_words_of_a1111() -> AbstractContextManager[None]:
    """Errors inside name keys as the client did."""
    return places_renamed(_key)


def _key(param: str) -> str:
    first, dot, rest = param.partition(".")
    return f"{_NAMES.get(first, first)}{dot}{rest}"
