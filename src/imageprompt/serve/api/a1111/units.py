"""ControlNet units with an ip-adapter module: each is one reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from imageprompt.serve.api.common import wrong_option
from imageprompt.serve.api.inline import picture_in
from imageprompt.serve.errors import ApiError
from imageprompt.serve.settings import Limits

CONTROLNET = "ControlNet"
MODULES: Mapping[str, str] = {"ip-adapter-auto": "picture", "ip-adapter_face_id": "face"}
"""The modules that are listed -> the kind of their adapters. Every `ip-adapter...` is taken."""
_RESIZE_MODES = (
    *(0, 1, 2, "Just Resize", "Crop and Resize", "Resize and Fill"),
    *("Scale to Fit (Inner Fit)", "Envelope (Outer Fit)", "Inner Fit (Scale to Fit)"),
    "Outer Fit (Shrink to Fit)",
)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "control_mode": (0, "Balanced"),
    "resize_mode": _RESIZE_MODES,  # of the hint; the encoder has its own framing
    "mask": ("",),
    "mask_image": ("",),
    "advanced_weighting": ([],),
    "ipadapter_input": ([],),
    "batch_images": ("", []),
    "input_mode": ("simple",),
}

Add = Callable[[bytes], str]


def references_of(
    units: Any, described: Mapping[str, Any], limits: Limits, add: Add
) -> Iterator[dict[str, Any]]:
    """The references of the enabled units; `add` takes pictures. Raises ApiError."""
    if not isinstance(units, list) or not all(isinstance(unit, dict) for unit in units):
        raise wrong_option(_place(None), "not a list of units")
    if len(units) > limits.references:
        raise wrong_option(_place(None), f"more than {limits.references}")
    for index, unit in enumerate(units):
        if unit.get("enabled", True):
            yield _Unit(unit, _place(index), described, limits).reference(add)


def _place(index: int | None) -> str:
    place = f"alwayson_scripts.{CONTROLNET}.args"
    return place if index is None else f"{place}.{index}"


class _Unit:
    def __init__(
        self, unit: Mapping[str, Any], place: str, described: Mapping[str, Any], limits: Limits
    ) -> None:
        self._unit = {name: value for name, value in unit.items() if value is not None}
        self._place, self._limits = place, limits
        self._adapters = described["adapters"]

    def reference(self, add: Add) -> dict[str, Any]:
        kind = self._kind()
        for name, values in _NEUTRAL.items():
            if self._unit.get(name, values[0]) not in values:
                hint = "Use effective_region_mask." if name.startswith("mask") else "Leave it out."
                raise self._wrong(name, "not supported", hint)
        pictures = [add(content) for content in self._pictures()]
        found: dict[str, Any] = {
            "reference": pictures[0] if len(pictures) == 1 else pictures,
            "scale": self._unit.get("weight", 1.0),
        }
        adapter = self._adapter(kind)
        if adapter is not None:
            found["adapter"] = adapter
        if schedule := self._schedule():
            found["schedule"] = schedule
        if region := self._unit.get("effective_region_mask"):
            place = f"{self._place}.effective_region_mask"
            found["mask"] = add(picture_in(region, place, self._limits))
        return found

    def _kind(self) -> str:
        module = str(self._unit.get("module", "none"))
        if not re.match(r"ip[-_]?adapter", module, re.IGNORECASE):
            raise self._wrong("module", "not an ip-adapter", "Others are not supported.")
        return "face" if "face" in module.lower() else "picture"

    def _adapter(self, kind: str) -> str | None:
        """By its name, with or without a hash behind it; None is the default one."""
        named = re.sub(r" \[\w+\]$", "", str(self._unit.get("model", "None")))
        if named in ("", "None", "none", "auto"):
            if kind == "face":
                raise self._wrong("model", "missing", "Name the adapter that reads faces.")
            return None
        found = next((one for one in self._adapters if one["name"].lower() == named.lower()), None)
        if found is None:
            served = ", ".join(one["name"] for one in self._adapters) or "none"
            raise self._wrong("model", "not served", f"There are: {served}.")
        if kind == "face" and found["kind"] != "face":
            raise self._wrong("module", f"{found['name']} reads no faces", "Name another model.")
        return str(found["name"])

    def _pictures(self) -> list[bytes]:
        listed = self._unit.get("image", self._unit.get("input_image"))
        listed = listed if isinstance(listed, list) else [listed]
        if len(listed) > self._limits.references:
            raise self._wrong("image", f"more than {self._limits.references}")
        found = []
        for index, one in enumerate(listed):
            name = f"image.{index}" if len(listed) > 1 else "image"
            if isinstance(one, dict):
                if one.get("mask"):
                    raise self._wrong(f"{name}.mask", "not supported", _USE_REGION)
                one = one.get("image")
            found.append(picture_in(one, f"{self._place}.{name}", self._limits))
        return found

    def _schedule(self) -> str | None:
        begin, end = self._unit.get("guidance_start", 0), self._unit.get("guidance_end", 1)
        for name, value in (("guidance_start", begin), ("guidance_end", end)):
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise self._wrong(name, "not a number from 0 to 1")
        if begin >= end:
            raise self._wrong("guidance_end", "not after guidance_start")
        return None if (begin, end) == (0, 1) else f"{begin:g}-{end:g}"

    def _wrong(self, name: str, reason: str, hint: str = "") -> ApiError:
        return wrong_option(f"{self._place}.{name}", reason, hint)


_USE_REGION = "Use effective_region_mask."
