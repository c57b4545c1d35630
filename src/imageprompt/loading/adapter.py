"""Adapters: found first, loaded when the base is there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core import bundled
from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.core.hub import locate_file
from imageprompt.loading.pipeline import device_of
from imageprompt.loading.recipe import Source
from imageprompt.loading.sources import file_hash

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter
    from imageprompt.core.spec import AdapterSpec


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
            reason="this base carries none of its own",
            hint="Name an adapter file: --adapter FILE_OR_HUB_ID, or adapter= in Python.",
        )
    try:
        return AdapterChoice(locate_file(adapter, cached_only=cached_only), name)
    except NotFoundError as error:
        if own and not Path(name).suffix:
            remedy = f"Adapters of this base: {', '.join(own)}."
            raise NotFoundError(error.what, reason=error.reason, hint=remedy) from error
        raise


def _own_adapters(folder: Path | None) -> dict[str, Path]:
    if folder is None:
        return {}
    return {path.stem: path for path in sorted((folder / "adapters").glob("*.safetensors"))}


def load_adapter(
    choice: AdapterChoice, pipe: Any, variant: str | None = None
) -> tuple[Adapter, Source]:
    """The adapter on the pipeline's device; float32 where that is the CPU.

    `variant` as `Adapter.load` takes it: where the file does not tell.
    """
    import torch

    from imageprompt.adapter.adapter import Adapter

    device = device_of(pipe)
    dtype = torch.float32 if device.type == "cpu" else pipe.dtype
    adapter = Adapter.load(choice.path, variant=variant, device=device, dtype=dtype)
    return adapter, Source(name=choice.name, hash=file_hash(choice.path), spec=_plain(adapter.spec))


def brought_adapter(adapter: Adapter) -> Source:
    """How a recipe names an adapter that the user brought in memory."""
    from imageprompt.core.fingerprint import fingerprint

    weights = fingerprint(adapter.module.state_dict())
    return Source(name=None, hash=weights, spec=_plain(adapter.spec))


def _plain(spec: AdapterSpec) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(spec.as_dict()))
    return plain
