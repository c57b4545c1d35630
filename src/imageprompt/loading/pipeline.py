"""The base: a diffusers pipeline from a folder, the Hub's cache or the user's hands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core import bundled
from imageprompt.core.errors import OptionError, WrongBaseError
from imageprompt.core.hub import locate_pipeline
from imageprompt.loading.recipe import DTYPES, Source

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Base:
    """A loaded pipeline; `folder` is where it came from, None for one that the user brought."""

    pipe: Any
    name: str | None
    folder: Path | None

    @cached_property
    def source(self) -> Source:
        from imageprompt.core.fingerprint import fingerprint

        weights = {
            f"{part}.{name}": tensor
            for part, module in self.pipe.components.items()
            if hasattr(module, "state_dict")
            for name, tensor in module.state_dict().items()
            if tensor.device.type != "meta"  # offloaded piece by piece
        }
        return Source(name=self.name, hash=fingerprint(weights))


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
                reason="a pipeline that is loaded already has its own",
                hint="Move the pipeline with pipe.to(...) instead.",
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
            reason="not on this machine",
            hint=f"Use {' or '.join(name for name, available in here.items() if available)}.",
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
            reason=f"diffusers cannot load it ({lines[0]})",
            hint="Check that it is complete, or fetch it again.",
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
