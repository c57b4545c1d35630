"""Vision models and image processors of transformers, read from folders.

Nothing in a folder chooses code: models and processors are those listed here. Processors are
transformers' own for PIL, so torchvision is never needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imageprompt.core.errors import EncoderError
from imageprompt.core.hub import locate_folder
from imageprompt.core.untrusted import parse_json, read_regular
from imageprompt.encoding.encoders.contract import VisionEncoder

MAX_CONFIG = 2**20  # bytes
MAX_SIDE = 4096  # pixels
NAFLEX = ("siglip2", "siglip2_vision_model")
_PROCESSORS = {
    "CLIP": "CLIPImageProcessorPil",
    "Siglip": "SiglipImageProcessorPil",
    "ViT": "ViTImageProcessorPil",
    "Bit": "BitImageProcessorPil",
    "ConvNext": "ConvNextImageProcessorPil",
    "DINOv3ViT": "ViTImageProcessorPil",
}
"""Start of `image_processor_type` -> the class that does the same with PIL. DINOv3's own needs
torchvision and rescales before it resizes; here 8-bit pixels are resized."""
_NAMES = ("image_processor_type", "feature_extractor_type", "processor_class")
_SETTINGS = {
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale"),
    *("rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb"),
}
_WITHOUT_EFFECT = {
    *("default_to_square", "data_format", "input_data_format", "device", "return_tensors"),
    *("disable_grouping", "_valid_processor_keys"),
}
IMAGENET: dict[str, Any] = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def stated_type(source: str | os.PathLike[str]) -> str:
    """The `model_type` in a folder's config.json.

    Raises NotFoundError, and EncoderError for a folder without one and for SigLIP 2 NaFlex.
    """
    folder = locate_folder(source)
    if not (folder / "config.json").is_file():
        raise EncoderError(
            f"encoder {str(source)!r}",
            reason="not a folder with config.json and weights",
            hint="Give the folder of a vision model, such as image_encoder.",
        )
    found = str(_read(folder / "config.json").get("model_type", ""))[:80]
    if found in NAFLEX:
        raise EncoderError(
            f"encoder {str(source)!r}",
            reason="SigLIP 2 NaFlex gives every picture a number of patches of its own; image "
            "prompts need the same for all",
            hint="Use one of a fixed resolution, such as google/siglip2-so400m-patch14-384.",
        )
    return found


def load_vision_model(
    kind: type[VisionEncoder], source: str | os.PathLike[str], *, device: Any, dtype: Any
) -> tuple[Any, Any]:
    """The vision part of the model in a folder, in float32 by default, and its processor.

    The processor is the one stored in the folder or, in a pipeline, beside it; None if neither has
    one. Raises NotFoundError, EncoderError.
    """
    import torch
    import transformers

    name = kind.classes.get(stated_type(source), "")
    folder = locate_folder(source)
    reason, model, model_class = "", None, None
    if not name:
        reason = f"its config says {stated_type(source) or 'no model_type'}"
    try:
        if name:
            model_class = getattr(transformers, name)
            with silent_transformers():  # its report is raised as an error below
                model, report = model_class.from_pretrained(
                    folder,
                    config=part_config(model_class, folder, "vision_config"),
                    dtype=dtype or torch.float32,
                    local_files_only=True,
                    output_loading_info=True,
                )
            missing = sorted(report["missing_keys"])
            if missing and all(key.startswith("pooler.") for key in missing):
                model.pooler, missing = None, []  # a classifier's weights come without one
            reason = f"{missing[0]} is missing" if missing else ""
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if reason or model is None:
        with_projection = " vision tower with projection" if kind.family == "CLIP" else " model"
        raise EncoderError(
            f"encoder {str(source)!r}",
            reason=f"not a {kind.family}{with_projection} ({reason})",
            hint=f"Give the folder of a {' or '.join(dict.fromkeys(kind.classes.values()))}.",
        )
    return model.to(device) if device else model, _stored_processor(folder)


def part_config(model_class: Any, folder: Path, part: str) -> Any:
    """Of a model with two towers, one part with the width that both are projected to.

    `part` is "vision_config" or "text_config". Raises EncoderError.
    """
    stated = _read(folder / "config.json")
    found = stated.get(part)
    if not isinstance(found, dict):
        return model_class.config_class.from_dict(stated)
    if "projection_dim" in stated:
        found = {**found, "projection_dim": stated["projection_dim"]}
    return model_class.config_class.from_dict(found)


@contextmanager
def silent_transformers() -> Iterator[None]:
    """Without its report on weights that a part of a model leaves out."""
    from transformers.utils import logging

    log: Any = logging
    verbosity = log.get_verbosity()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)


# ── processors ──────────────────────────────────────────────────────────────────────────────────


def _stored_processor(folder: Path) -> Any:
    for place in (folder, folder.parent / "feature_extractor"):
        path = place / "preprocessor_config.json"
        if path.is_file():
            return processor_of(_read(path), str(path))
    return None


def processor_of(stated: Mapping[str, Any], where: str) -> Any:
    """The processor that a preprocessor_config.json describes, for PIL.

    Raises EncoderError, which names every setting that is not known here, for one that does not
    make squares, and for an unknown processor.
    """
    import transformers

    type_name = str(stated.get(_NAMES[0]) or stated.get(_NAMES[1]) or "CLIPImageProcessor")
    stem = type_name.removesuffix("Fast").removesuffix("Pil")
    stem = stem.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    stem = {"ConvNeXT": "ConvNext", "SigLIP": "Siglip"}.get(stem, stem)
    if stem not in _PROCESSORS:
        raise EncoderError(
            where,
            reason=f"{type_name[:80]!r} is not a known image processor",
            hint=f"Known: {', '.join(f'{one}ImageProcessor' for one in _PROCESSORS)}.",
        )
    known = _SETTINGS | ({"crop_pct"} if stem == "ConvNext" else set())
    settings = {name: value for name, value in stated.items() if name in known}
    rest = {**stated, **dict.fromkeys((*known, *_NAMES, *_WITHOUT_EFFECT))}
    unknown = sorted(name for name, value in rest.items() if value not in (None, False))
    if unknown:
        raise EncoderError(
            where,
            reason=f"unknown settings: {', '.join(name[:80] for name in unknown[:5])}",
            hint="Remove what has no effect on pixels; the rest cannot be followed.",
        )
    if stem == "DINOv3ViT":
        settings = {"resample": 2, **IMAGENET, **settings}
    settings = {name: value for name, value in settings.items() if value is not None}
    try:
        made = getattr(transformers, _PROCESSORS[stem])(**settings)
        _try(made)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoderError(where, reason=reason, hint="Download it again.") from None
    return made


def _try(processor: Any) -> None:
    """Raises one of Python's errors for settings that cannot be followed."""
    from PIL import Image

    if processor.resample not in range(6):
        raise ValueError(f"resample {str(processor.resample)[:80]!r} is none of PIL's")
    side, resized = side_of(processor), _get(processor.size, "shortest_edge") or 1
    if not (0 < side <= MAX_SIDE and 0 < resized <= MAX_SIDE):
        raise ValueError(f"it makes squares of {max(side, resized)}; the limit is {MAX_SIDE}")
    pixels = processor(images=[Image.new("RGB", (3, 2))], return_tensors="pt").pixel_values
    if pixels.shape != (1, 3, side, side):
        raise ValueError(f"it makes pixels of shape {list(pixels.shape)} from a picture")


def side_of(processor: Any) -> int:
    """Side of the squares that a processor makes. Raises ValueError if it makes no squares."""
    crop = getattr(processor, "crop_size", None) if _crops(processor) else None
    size = crop or processor.size
    height, width = _get(size, "height"), _get(size, "width")
    if "ConvNext" in type(processor).__name__ and not crop:
        height = width = _get(size, "shortest_edge")
    if not height or height != width:
        raise ValueError("its settings make no squares: neither crop_size nor size is one")
    return int(height)


def _crops(processor: Any) -> bool:
    return bool(getattr(processor, "do_center_crop", False))


def _get(size: Any, name: str) -> Any:
    return size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)


def dinov3_processor(side: int) -> Any:
    """DINOv3's own settings at another size."""
    size = {"size": {"height": side, "width": side}}
    return processor_of({"image_processor_type": "DINOv3ViTImageProcessor", **size}, "DINOv3")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_regular(path, MAX_CONFIG))
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EncoderError(str(path), reason=reason, hint="Download it again.") from None
    return found
