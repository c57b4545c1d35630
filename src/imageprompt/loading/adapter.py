"""Adapters: located first, loaded and attached once the base is loaded."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core import bundled
from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.core.hub import locate_file
from imageprompt.loading.assets import file_hash
from imageprompt.loading.pipeline import LoadedPipeline, device_of, quiet_loading
from imageprompt.loading.recipe import AssetRecord

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter


@dataclass(frozen=True)
class LocatedAdapter:
    """An adapter's local file, not loaded yet, and the name that the user gave it."""

    path: Path
    name: str


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
    if name in own:
        return LocatedAdapter(own[name], name)
    if adapter is None:
        raise OptionError(
            "no adapter",
            reason="this base comes without one",
            hint="Name an adapter file: --adapter FILE_OR_HUB_ID, or adapter= in Python.",
        )
    try:
        return LocatedAdapter(locate_file(adapter, cached_only=cached_only), name)
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
    adapter: LocatedAdapter | Adapter, pipe: Any, variant: str | None = None
) -> tuple[Adapter, AssetRecord]:
    """The adapter and its record; one that is loaded already is returned as it is.

    A file is loaded to the pipeline's device, in float32 on the CPU and in the pipeline's dtype
    elsewhere. `variant` as in `Adapter.load`: for files that do not tell theirs.
    """
    if not isinstance(adapter, LocatedAdapter):
        from imageprompt.core.fingerprint import fingerprint

        return adapter, _record(adapter, None, fingerprint(adapter.module.state_dict()))
    import torch

    from imageprompt.adapter.adapter import Adapter

    device = device_of(pipe)
    dtype = torch.float32 if device.type == "cpu" else pipe.dtype
    loaded = Adapter.load(adapter.path, variant=variant, device=device, dtype=dtype)
    return loaded, _record(loaded, adapter.name, file_hash(adapter.path))


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
) -> LoadedAdapter:
    """Attach an adapter to `pipe` (default: the base's own pipeline) with an image encoder.

    The encoder is the one given, the adapter's own, or one that `find_encoder` finds; none is
    searched for unless `reads_pictures`. Raises what `find_encoder` and `Adapter.attach` raise.
    """
    from imageprompt.loading.encoder import find_encoder

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
        adapter.attach(
            base.pipe if pipe is None else pipe, encoder=encoder, faces=faces, lora=lora_mode
        )
    return LoadedAdapter(adapter, record, name)


def _record(adapter: Adapter, name: str | None, digest: str) -> AssetRecord:
    spec = json.loads(json.dumps(adapter.spec.as_dict()))
    return AssetRecord(name=name, hash=digest, spec=spec)
