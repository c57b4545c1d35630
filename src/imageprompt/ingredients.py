"""Opens what a request names (base, adapter, encoder, references), each with its name and hash."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt import bundled
from imageprompt.errors import (
    EncoderError,
    NotFoundError,
    OptionError,
    PictureError,
    WrongBaseError,
)
from imageprompt.locate import hub_id, locate_file, locate_folder, locate_pipeline
from imageprompt.recipe import DTYPES, Source

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from imageprompt.adapter import Adapter
    from imageprompt.encoders.pictures import PictureSource
    from imageprompt.spec import AdapterSpec

# Where the published repositories put the image encoder, seen from the adapter's folder.
_ENCODER_PLACES = ("image_encoder", "../models/image_encoder", "../image_encoder")


@dataclass(frozen=True)
class Base:
    """A loaded pipeline; `folder` is where it came from, None for one that the user brought."""

    pipe: Any
    name: str | None
    folder: Path | None

    @cached_property
    def source(self) -> Source:
        from imageprompt.fingerprint import fingerprint

        weights = {
            f"{part}.{name}": tensor
            for part, module in self.pipe.components.items()
            if hasattr(module, "state_dict")
            for name, tensor in module.state_dict().items()
            if tensor.device.type != "meta"  # offloaded piece by piece
        }
        return Source(name=self.name, hash=fingerprint(weights))


# ── base ────────────────────────────────────────────────────────────────────────────────────────


def base_folder(base: Any, *, cached_only: bool = False) -> Path | None:
    """The local folder of a base given as path, Hub id, "bundled" or None (the same).

    None for a pipeline that is loaded already. Raises NotFoundError.
    """
    if base is None or base == bundled.NAME:
        return bundled.folder()
    if isinstance(base, str | os.PathLike):
        return locate_pipeline(base, cached_only=cached_only)
    return None


def load_base(
    base: Any, folder: Path | None, *, dtype: str | None, device: str | None, bars: bool
) -> Base:
    """The pipeline of `folder`, or `base` itself where there is no folder.

    `bars`: show progress bars while weights load. Raises WrongBaseError, OptionError.
    """
    if folder is None:
        if dtype is not None or device is not None:
            raise OptionError(
                "dtype and device",
                rule="a pipeline that is loaded already has its own",
                remedy="Move the pipeline with pipe.to(...) instead.",
            )
        return Base(base, None, None)
    name = bundled.NAME if base is None else os.fspath(base)
    device = usable_device(device)
    with quiet_loading(not bars or name == bundled.NAME):
        return Base(_load_pipeline(folder, name, dtype, device), name, folder)


def usable_device(device: str | None) -> str:
    """`device`, or the best one here. Raises OptionError for one that is not here."""
    import torch

    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
        "cpu": True,
    }
    if device is None:
        return next(name for name, available in here.items() if available)
    kind, _, number = device.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not here.get(kind, False) or int(number or 0) >= count:
        raise OptionError(
            f"device {device!r}",
            rule="not on this machine",
            remedy=f"Use {' or '.join(name for name, available in here.items() if available)}.",
        )
    return device


def _load_pipeline(folder: Path, name: str, dtype: str | None, device: str) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    kind: torch.dtype = getattr(torch, dtype or ("float32" if device == "cpu" else "float16"))
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=kind, local_files_only=True)
        return pipe.to(device)
    except Exception as error:  # a damaged folder raises nearly anything
        lines = str(error).splitlines() or [type(error).__name__]
        raise WrongBaseError(
            f"base {name!r}",
            rule=f"diffusers cannot load it ({lines[0]})",
            remedy="Check that it is complete, or fetch it again.",
        ) from error


def device_of(pipe: Any) -> Any:
    """Where a pipeline computes, which is not where its weights lie if they are offloaded."""
    return getattr(pipe, "_execution_device", pipe.device)


def dtype_name(pipe: Any) -> str:
    """The recipe's word for what a pipeline computes in."""
    name = str(pipe.dtype).removeprefix("torch.")
    return name if name in DTYPES else "float32"


@contextmanager
def few_threads(base: Base) -> Iterator[None]:
    """One for the bundled stack: its operations are too small to share, and sharing them costs
    much where the machine is busy otherwise. Afterwards as many as before."""
    import torch

    before = torch.get_num_threads()
    if base.name == bundled.NAME:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet_loading(quiet: bool) -> Iterator[None]:
    """No bars for loading weights while the block runs, if `quiet`."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [log for log in (of_diffusers, of_transformers) if log.is_progress_bar_enabled()]
    try:
        for log in shown if quiet else ():
            log.disable_progress_bar()
        yield
    finally:
        for log in shown if quiet else ():
            log.enable_progress_bar()


# ── adapter ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class AdapterChoice:
    """An adapter that is found but not loaded yet: its local file and its name."""

    path: Path
    name: str


def find_adapter(
    adapter: str | os.PathLike[str] | None, folder: Path | None, *, cached_only: bool
) -> AdapterChoice:
    """A file from a path, a Hub id, or the short name of one in the base's own `adapters/`.

    None is the base's `adapters/plus`. Raises NotFoundError, OptionError.
    """
    own = _own_adapters(folder)
    name = bundled.DEFAULT_ADAPTER if adapter is None else os.fspath(adapter)
    if name in own:
        return AdapterChoice(own[name], name)
    if adapter is None:
        raise OptionError(
            "no adapter",
            rule="this base carries none of its own",
            remedy="Name an adapter file: --adapter FILE_OR_HUB_ID, or adapter= in Python.",
        )
    try:
        return AdapterChoice(locate_file(adapter, cached_only=cached_only), name)
    except NotFoundError as error:
        if own and not Path(name).suffix:
            remedy = f"Adapters of this base: {', '.join(own)}."
            raise NotFoundError(error.what, rule=error.rule, remedy=remedy) from error
        raise


def _own_adapters(folder: Path | None) -> dict[str, Path]:
    if folder is None:
        return {}
    return {path.stem: path for path in sorted((folder / "adapters").glob("*.safetensors"))}


def load_adapter(choice: AdapterChoice, pipe: Any) -> tuple[Adapter, Source]:
    """The adapter on the pipeline's device; float32 where that is the CPU."""
    import torch

    from imageprompt.adapter import Adapter

    device = device_of(pipe)
    dtype = torch.float32 if device.type == "cpu" else pipe.dtype
    adapter = Adapter.load(choice.path, device=device, dtype=dtype)
    return adapter, Source(name=choice.name, hash=file_hash(choice.path), spec=_plain(adapter.spec))


def brought_adapter(adapter: Adapter) -> Source:
    """How a recipe names an adapter that the user brought in memory."""
    from imageprompt.fingerprint import fingerprint

    weights = fingerprint(adapter.module.state_dict())
    return Source(name=None, hash=weights, spec=_plain(adapter.spec))


def _plain(spec: AdapterSpec) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(spec.as_dict()))
    return plain


def file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ── encoder ─────────────────────────────────────────────────────────────────────────────────────


def find_encoder(
    encoder: Any, spec: AdapterSpec, base: Base, adapter: str | None
) -> tuple[Any, str | None]:
    """What `Adapter.attach` takes as encoder, and its name.

    `encoder` as the user gave it (object, path or Hub id); without one, the pipeline's own, then
    `image_encoder` in the base's folder, then where published repositories keep it beside the
    adapter file; of these the first of the width that the adapter reads. Raises EncoderError.
    """
    from imageprompt.encoders.clip import ClipEncoder

    if encoder is not None:
        if not isinstance(encoder, str | os.PathLike):
            return encoder, None
        try:
            return locate_folder(encoder), os.fspath(encoder)
        except NotFoundError as error:
            raise EncoderError(
                f"encoder {error.what}", rule=error.rule, remedy=error.remedy
            ) from error
    own = getattr(base.pipe, "image_encoder", None)
    if own is not None and _reads(own.config.to_dict(), spec):
        prepared = getattr(base.pipe, "feature_extractor", None)
        return ClipEncoder(own, prepared), base.name and f"{base.name}/image_encoder"
    if base.folder is not None and _reads(_config(base.folder / "image_encoder"), spec):
        return base.folder / "image_encoder", f"{base.name}/image_encoder"
    for place in _places_beside(adapter):
        try:
            config = locate_file(f"{place}/config.json")
            if _reads(_config(config.parent), spec):
                return locate_folder(place), place
        except NotFoundError:
            continue
    raise EncoderError(
        "no image encoder",
        rule=f"this {spec.variant} adapter reads {spec.feature} {spec.feature_width} wide, and "
        "neither the base nor the adapter's repository holds an encoder for that",
        remedy="Name its folder: --encoder PATH_OR_HUB_ID, or encoder= in Python.",
    )


def _places_beside(adapter: str | None) -> list[str]:
    if adapter is None:
        return []
    remote = None if Path(adapter).expanduser().exists() else hub_id(adapter)
    if remote is None:
        parent = Path(adapter).expanduser().parent
        return [str(parent / place) for place in _ENCODER_PLACES]
    inside = Path(remote.path).parent
    places = [os.path.normpath(inside / place) for place in _ENCODER_PLACES]
    return [f"{remote.repo}/{Path(p).as_posix()}" for p in places if not p.startswith("..")]


def _config(folder: Path) -> dict[str, Any]:
    """An encoder's config.json; empty where there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _reads(config: dict[str, Any], spec: AdapterSpec) -> bool:
    key = "projection_dim" if spec.feature == "image_embeds" else "hidden_size"
    return config.get(key) == spec.feature_width


# ── references ──────────────────────────────────────────────────────────────────────────────────


def open_references(
    sources: Sequence[PictureSource],
) -> tuple[list[Image.Image], tuple[Source, ...]]:
    """The pictures, opened, and what a recipe keeps of them. Raises PictureError."""
    from PIL import Image

    from imageprompt.encoders.pictures import open_picture

    opened = [open_picture(source) for source in sources]
    kept = []
    for source, picture in zip(sources, opened, strict=True):
        if isinstance(source, str | os.PathLike):
            kept.append(Source(name=os.fspath(source), hash=file_hash(Path(source))))
        else:
            data = picture.tobytes() if isinstance(source, Image.Image) else source
            kept.append(Source(name=None, hash=hashlib.sha256(data).hexdigest()))
    return opened, tuple(kept)


def same_references(references: Sequence[Source]) -> list[str]:
    """The paths of a recipe's references, if they hold what they held. Raises PictureError."""
    for source in references:
        what = f"reference {source.name!r} of the recipe"
        if source.name is None or not Path(source.name).is_file():
            raise PictureError(
                what,
                rule="it is not there, and the recipe was too large to carry its image prompt",
                remedy="Give the reference again: --reference PICTURE.",
            )
        if file_hash(Path(source.name)) != source.hash:
            raise PictureError(
                what,
                rule="it is not the picture it was",
                remedy="Give the picture to use: --reference PICTURE.",
            )
    return [source.name for source in references if source.name is not None]
