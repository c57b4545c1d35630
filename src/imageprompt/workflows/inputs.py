"""Inputs that workflows share, as annotated fields."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from imageprompt.core.errors import OptionError
from imageprompt.core.schema import Option
from imageprompt.generation import option_values as values
from imageprompt.generation.option_values import FILE, FILES
from imageprompt.generation.reference import as_list

PICTURES = "pictures"

picture = partial(Option, metavar="PIC", json=FILE, group=PICTURES)
"""A field for one picture: anything that `open_picture` opens."""
pictures = partial(Option, metavar="PIC", json=FILES, repeat=True, group=PICTURES)
"""A field for one or several pictures; its flag is repeated."""
HOW = "how"
control = partial(Option, group=HOW)
"""A field for a number or a word that says how."""
_sampling = partial(Option, group=values.SAMPLING)
_models = partial(Option, group=values.MODELS)


@dataclass(frozen=True, kw_only=True)
class GenerationInputs:
    """The inputs of every workflow that generates; a workflow's own class adds its own."""

    num_images: values.NumImages = 1
    seed: values.Seed = 1
    steps: values.Steps = None
    guidance_scale: values.GuidanceScale = None
    size: Annotated[
        tuple[int, int] | None,
        _sampling(
            "512x768 or 512, in pixels (default: the shape of the picture that it starts from, "
            "about as large as the base's own)",
            "WxH",
            parse=values.parse_size,
        ),
    ] = None
    base: values.Base = None
    adapter: Annotated[
        Any,
        _models(
            "adapter file or Hub id (default: the base's own plus)", "FILE_OR_HUB_ID", json=FILE
        ),
    ] = None
    encoder: Annotated[
        Any,
        _models(
            "image encoder (default: the one of the base, or beside the adapter)",
            "PATH_OR_HUB_ID",
            json=FILE,
        ),
    ] = None
    dtype: values.Dtype = None
    device: values.Device = None


MODELS = ("base", "adapter", "encoder", "dtype", "device")
"""The inputs that an engine is made of."""
SAMPLING = ("steps", "guidance_scale")
"""The inputs that every call of the engine gets."""


def numbers(name: str, given: Any, *, highest: float) -> list[float]:
    """A list of 1 to 16 numbers from 0 to `highest`. Raises OptionError."""
    found = as_list(given)
    for one in found:
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one <= highest:
            raise OptionError(f"{name} {one!r:.60}", reason=f"not a number from 0 to {highest:g}")
    if not 1 <= len(found) <= MOST_NUMBERS:
        raise OptionError(f"{len(found)} {name}", reason=f"not 1 to {MOST_NUMBERS} of them")
    return found


MOST_NUMBERS = 16
