"""The base: a diffusers pipeline from a folder, from the Hub, or loaded by the user."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core import bundled
from imageprompt.core.errors import OptionError, WrongBaseError
from imageprompt.core.hub import locate_pipeline
from imageprompt.loading.recipe import AssetRecord
from imageprompt.loading.recipe.limits import DTYPES

if TYPE_CHECKING:
    import torch

TEXT_TOKENS_KEY = "_imageprompt_text_tokens"
"""Where a transformer's config states how many tokens of its long text encoder it needs."""
MAX_TEXT_TOKENS = 512


@dataclass(frozen=True)
class LoadedPipeline:
    """A diffusers pipeline; name and `folder` are None if the user passed a loaded one."""

    pipe: Any
    name: str | None
    folder: Path | None

    @cached_property
    def record(self) -> AssetRecord:
        """Its name and the fingerprint of all its weights."""
        from imageprompt.core.fingerprint import fingerprint

        weights = {
            f"{part}.{name}": tensor
            for part, module in self.pipe.components.items()
            if hasattr(module, "state_dict")
            for name, tensor in module.state_dict().items()
            if tensor.device.type != "meta"  # offloaded module by module
        }
        return AssetRecord(name=self.name, hash=fingerprint(weights))

    @property
    def dtype(self) -> str:
        """What its denoiser computes in, as recipes name it."""
        return dtype_name(self.pipe)

    @property
    def versions(self) -> dict[str, str]:
        """Those of libraries that only this base is computed with."""
        return {}


def base_folder(base: Any, *, cached_only: bool = False) -> Path | None:
    """The local folder of a base: a path, Hub id or bundled stack; None is "bundled".

    None for a loaded pipeline. Raises NotFoundError.
    """
    if base is None:
        return bundled.folder()
    if isinstance(base, str) and base in bundled.FOLDERS:
        return bundled.folder(base)
    if isinstance(base, str | os.PathLike):
        return locate_pipeline(base, cached_only=cached_only)
    return None


def load_base(
    base: Any, folder: Path | None, *, dtype: str | None, device: str | None, bars: bool
) -> LoadedPipeline:
    """The pipeline in `folder`, or `base` itself if there is no folder.

    `bars`: show progress bars while the weights load. Raises WrongBaseError, OptionError.
    """
    if folder is None:
        if dtype is not None or device is not None:
            raise OptionError(
                "dtype and device",
                reason="a loaded pipeline has its own",
                hint="Use pipe.to(...) instead.",
            )
        return LoadedPipeline(base, None, None)
    name = bundled.NAME if base is None else os.fspath(base)
    device = usable_device(device)
    with quiet_loading(not bars or name in bundled.FOLDERS):
        return LoadedPipeline(_load_pipeline(folder, name, dtype, device), name, folder)


def usable_device(device: str | None) -> str:
    """`device`, or the best one of this machine. Raises OptionError if it is not available."""
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
            reason="not available on this machine",
            hint=f"Use {' or '.join(name for name, available in here.items() if available)}.",
        )
    return device


def default_dtype(device: str) -> str:
    """The precision that a base is loaded in."""
    return "float32" if device == "cpu" else "float16"


def _load_pipeline(folder: Path, name: str, dtype: str | None, device: str) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    kind: torch.dtype = getattr(torch, dtype or default_dtype(device))
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=kind, local_files_only=True)
        return pipe.to(device)
    except Exception as error:  # a damaged folder raises nearly anything
        lines = str(error).splitlines() or [type(error).__name__]
        raise WrongBaseError(
            f"base {name!r}",
            reason=f"diffusers cannot load it ({lines[0]})",
            hint="Check that it is complete, or download it again.",
        ) from error


def device_of(pipe: Any) -> Any:
    """Where a pipeline computes; its weights may be elsewhere if they are offloaded."""
    modules = [part for part in pipe.components.values() if hasattr(part, "children")]
    if not any(map(_is_hooked, modules)):  # diffusers looks far longer: at 580 modules, 6 ms
        tensors = (next(chain(one.parameters(), one.buffers()), None) for one in modules)
        devices = [tensor.device for tensor in tensors if tensor is not None]
        if devices:  # as diffusers: a part elsewhere than on the CPU says where
            return next((one for one in devices if one.type not in ("cpu", "meta")), devices[0])
    return getattr(pipe, "_execution_device", None) or pipe.device


def _is_hooked(module: Any) -> bool:
    """Do diffusers or accelerate move a module, or a part of it, when it is called?"""
    waiting = [module]
    while waiting:
        one = waiting.pop()
        if getattr(vars(one).get("_diffusers_hook"), "hooks", None) or "_hf_hook" in vars(one):
            return True
        waiting.extend(child for child in one._modules.values() if child is not None)
    return False


def dtype_name(pipe: Any) -> str:
    """The dtype that a pipeline computes in, as recipes name it."""
    name = str(pipe.dtype).removeprefix("torch.")
    return name if name in DTYPES else "float32"


def vae_scale_factor(pipe: Any) -> int:
    """Pixels per latent, per side."""
    factor: int = getattr(pipe, "vae_scale_factor", 8)
    return factor


def default_size(pipe: Any) -> tuple[int, int]:
    """Width and height in pixels of the pictures that a pipeline makes unless told otherwise."""
    unet = getattr(pipe, "unet", None)
    config = getattr(unet or getattr(pipe, "transformer", None), "config", None)
    stated = getattr(pipe, "default_sample_size", None) or getattr(config, "sample_size", None)
    side = stated or (64 if unet is not None else 128)  # Z-Image states none, and makes 1024
    width, height = side if isinstance(side, list | tuple) else (side, side)
    factor = vae_scale_factor(pipe)
    return int(width * factor), int(height * factor)


def largest_side(pipe: Any) -> int | None:
    """Pixels on a side at most: transformers of SD3 and AuraFlow have a table of positions."""
    from diffusers.models.embeddings import PatchEmbed
    from diffusers.models.transformers.auraflow_transformer_2d import AuraFlowPatchEmbed

    table = getattr(getattr(pipe, "transformer", None), "pos_embed", None)
    if not isinstance(table, PatchEmbed | AuraFlowPatchEmbed) or not table.pos_embed_max_size:
        return None
    positions = table.pos_embed_max_size  # of a side, but AuraFlow's are those of the square
    side = isqrt(positions) if isinstance(table, AuraFlowPatchEmbed) else positions
    return side * int(table.patch_size) * vae_scale_factor(pipe)


def stated_text_tokens(pipe: Any) -> int | None:
    """`max_sequence_length` for this pipeline, if its transformer's config states one.

    Pipelines pad short texts to hundreds of tokens, which costs a small transformer most of its
    time.
    """
    config = getattr(getattr(pipe, "transformer", None), "config", None) or {}
    stated = config.get(TEXT_TOKENS_KEY)
    return stated if type(stated) is int and 0 < stated <= MAX_TEXT_TOKENS else None


_few_threads_lock = threading.Lock()
_few_threads: list[int] = []
"""The number before, once for every block that runs: blocks of several threads may overlap."""


@contextmanager
def few_threads(base: LoadedPipeline) -> Iterator[None]:
    """One CPU thread for a bundled stack; the number before is restored afterwards.

    Their operations are too small to split, and splitting them costs a lot on a busy machine.
    """
    import torch

    if base.name not in bundled.FOLDERS:
        yield
        return
    with _few_threads_lock:
        before = _few_threads[0] if _few_threads else torch.get_num_threads()
        _few_threads.append(before)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _few_threads_lock:
            _few_threads.pop()
            torch.set_num_threads(before)


@contextmanager
def quiet_loading(quiet: bool) -> Iterator[None]:
    """If `quiet`, diffusers and transformers show no progress bars while the block runs."""
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
