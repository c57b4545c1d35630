"""Adapters and their image encoders: located first, loaded and attached after the base."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.checkpoint.read.open import locate_adapter
from imageprompt.core import bundled
from imageprompt.core.errors import EncoderError, NotFoundError, OptionError
from imageprompt.core.hub import hub_id, locate_file, locate_folder, part_of, split_part
from imageprompt.loading.assets import file_hash
from imageprompt.loading.pipeline import LoadedPipeline, device_of, quiet_loading
from imageprompt.loading.recipe import AssetRecord

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter
    from imageprompt.core.spec import AdapterSpec


@dataclass(frozen=True)
class LocatedAdapter:
    """An adapter's local file, not loaded yet, and the name that the user gave it."""

    path: Path
    name: str

    @property
    def file(self) -> Path:
        """The file itself, also where `path` names one adapter of a pair in it."""
        return Path(split_part(self.path)[0])


@dataclass(frozen=True)
class LoadedAdapter:
    """An attached adapter, its record, and the name of its image encoder."""

    adapter: Adapter
    record: AssetRecord
    encoder: str | None


def find_adapter(
    adapter: str | os.PathLike[str] | None, base_folder: Path | None, *, cached_only: bool
) -> LocatedAdapter:
    """A file by its path, Hub id, or short name in the `adapters/` folder of the base.

    None is the base's `adapters/plus`. Raises NotFoundError, OptionError.
    """
    own = _own_adapters(base_folder)
    name = bundled.DEFAULT_ADAPTER if adapter is None else os.fspath(adapter)
    short, part = split_part(name)
    if short in own:
        return LocatedAdapter(Path(part_of(own[short], part)) if part else own[short], name)
    if adapter is None:
        raise OptionError(
            "no adapter",
            reason="this base comes without one",
            hint="Name an adapter file: --adapter FILE_OR_HUB_ID, or adapter= in Python.",
        )
    try:
        path = locate_adapter(adapter, cached_only=cached_only, one_file=True)
        return LocatedAdapter(path, str(path) if os.path.isdir(name) else name)  # noqa: PTH112
    except NotFoundError as error:
        if own and not Path(name).suffix:
            hint = f"Adapters of this base: {', '.join(own)}."
            raise NotFoundError(error.what, reason=error.reason, hint=hint) from error
        raise


def _own_adapters(base_folder: Path | None) -> dict[str, Path]:
    if base_folder is None:
        return {}
    return {path.stem: path for path in sorted((base_folder / "adapters").glob("*.safetensors"))}


def load_adapter(
    adapter: LocatedAdapter | Adapter,
    pipe: Any,
    variant: str | None = None,
    reading: str | None = None,
) -> tuple[Adapter, AssetRecord]:
    """The adapter and its record; one that is loaded already is returned as it is.

    The others are as for `load_adapter_file`.
    """
    if not isinstance(adapter, LocatedAdapter):
        from imageprompt.core.fingerprint import fingerprint

        return adapter, _record(adapter, None, fingerprint(adapter.module.state_dict()))
    loaded = load_adapter_file(adapter.path, pipe, variant, reading)
    return loaded, adapter_record(loaded, adapter)


def load_adapter_file(
    path: str | os.PathLike[str],
    pipe: Any = None,
    variant: str | None = None,
    reading: str | None = None,
) -> Adapter:
    """The adapter in a file, to the pipeline's device; without a pipeline, to the CPU.

    In float32 on the CPU, and in the pipeline's dtype elsewhere. A light adapter needs the
    pipeline. `variant` and `reading` are as in `Adapter.load`.
    """
    from imageprompt.adapter.adapter import Adapter

    device, dtype = adapter_precision(pipe)
    return Adapter.load(
        path, variant=variant, reading=reading, device=device, dtype=dtype, base=pipe
    )


def adapter_precision(pipe: Any) -> tuple[Any, Any]:
    """The device and the dtype of an adapter for a pipeline; without one, the CPU and float32."""
    import torch

    device = torch.device("cpu") if pipe is None else device_of(pipe)
    return device, torch.float32 if device.type == "cpu" else pipe.dtype


def adapter_record(adapter: Adapter, located: LocatedAdapter) -> AssetRecord:
    """What a recipe keeps of an adapter that was loaded from a file."""
    return _record(adapter, located.name, file_hash(located.file, limit=None))


def attach_adapter(
    adapter: Adapter,
    record: AssetRecord,
    base: LoadedPipeline,
    pipe: Any = None,
    *,
    encoder: Any = None,
    faces: Any = None,
    lora_mode: Any = "live",
    reads_pictures: bool = True,
    quiet: bool = True,
    open_encoder: Callable[[Any], Any] | None = None,
) -> LoadedAdapter:
    """Attach an adapter to `pipe` (default: the base's own pipeline) with an image encoder.

    The encoder is the one given, the adapter's own, or one that `find_encoder` finds; none is
    searched for unless `reads_pictures`. `open_encoder` opens what was found. Raises what
    `find_encoder` and `Adapter.attach` raise.
    """
    name = None
    lacks = adapter.encoder is None and not adapter.spec.feature.faces_only
    if reads_pictures and (lacks or encoder is not None):
        encoder, name = find_encoder(
            encoder,
            adapter.spec,
            pipe=base.pipe,
            base_name=base.name,
            base_folder=base.folder,
            adapter_name=record.name,
        )
    else:
        encoder = None
    with quiet_loading(quiet):
        if encoder is not None and open_encoder is not None:
            encoder = open_encoder(encoder)
        adapter.attach(
            base.pipe if pipe is None else pipe, encoder=encoder, faces=faces, lora=lora_mode
        )
    return LoadedAdapter(adapter, record, name)


def _record(adapter: Adapter, name: str | None, digest: str) -> AssetRecord:
    spec = json.loads(json.dumps(adapter.spec.as_dict()))
    return AssetRecord(name=name, hash=digest, spec=spec)


# ── image encoders ──────────────────────────────────────────────────────────────────────────────

# Where published repositories keep the image encoder, relative to the adapter's folder.
_LOCATIONS = ("image_encoder", "../models/image_encoder", "../image_encoder")


def find_encoder(
    encoder: Any,
    spec: AdapterSpec,
    *,
    pipe: Any,
    base_name: str | None,
    base_folder: Path | None,
    adapter_name: str | None,
) -> tuple[Any, str | None]:
    """The encoder for `Adapter.attach`, and its name.

    It is `encoder` (object, path or Hub id) if given. Otherwise it is the first of these that has
    the feature size that the adapter reads: the encoder of `pipe`, `image_encoder` in the base's
    folder, then the places beside the adapter file that published repositories use.

    Raises EncoderError.
    """
    if encoder is not None:
        if not isinstance(encoder, str | os.PathLike):
            return encoder, None
        if encoder in bundled.FOLDERS:
            encoder = f"{encoder}/image_encoder"
        try:
            return locate_folder(encoder), os.fspath(encoder)
        except NotFoundError as error:
            raise EncoderError(
                f"encoder {error.what}", reason=error.reason, hint=error.hint
            ) from error
    own = getattr(pipe, "image_encoder", None)
    if own is not None and _reads(own.config.to_dict(), spec):
        from imageprompt.encoding.encoders import own_encoder

        return own_encoder(pipe), base_name and f"{base_name}/image_encoder"
    if base_folder is not None and _reads(_config(base_folder / "image_encoder"), spec):
        return base_folder / "image_encoder", f"{base_name}/image_encoder"
    for location in _beside(adapter_name):
        try:
            config = locate_file(f"{location}/config.json")
            if _reads(_config(config.parent), spec):
                return locate_folder(location), location
        except NotFoundError:
            continue
    raise EncoderError(
        "no image encoder",
        reason=f"this {spec.variant} adapter reads {spec.feature} of size {spec.feature_dim}; "
        "neither the base nor the adapter's repository has an encoder for that",
        hint="Name its folder: --encoder PATH_OR_HUB_ID, or encoder= in Python.",
    )


def _beside(adapter: str | None) -> list[str]:
    if adapter is None:
        return []
    remote = None if Path(adapter).expanduser().exists() else hub_id(adapter)
    if remote is None:
        parent = Path(adapter).expanduser().parent
        return [str(parent / location) for location in _LOCATIONS]
    inside = Path(remote.path).parent
    paths = [os.path.normpath(inside / location) for location in _LOCATIONS]
    return [f"{remote.repo}/{Path(p).as_posix()}" for p in paths if not p.startswith("..")]


def _config(folder: Path) -> dict[str, Any]:
    """An encoder's config.json; empty if it is missing or unreadable."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _reads(config: dict[str, Any], spec: AdapterSpec) -> bool:
    """Does this encoder produce features of the size that the adapter reads?"""
    from imageprompt.checkpoint.identify.published import stated_widths

    if spec.encoder_type and spec.encoder_type not in (
        config.get("model_type"),
        f"{config.get('model_type')}_vision_model",  # of a model with two towers
    ):
        return False
    return stated_widths(config).get(str(spec.feature.image)) == spec.feature_dim
