"""The tiny stacks inside the package: diffusers pipeline folders with adapters of their own."""

from __future__ import annotations

from pathlib import Path

from imageprompt.core.errors import NotFoundError

NAME = "bundled"
SD3 = "bundled-sd3"
SD3_128 = "bundled-sd3-128"
"""Their names in recipes and on the command line: one with a UNet, one with SD3's transformer, and
one with that for larger scenes: one or two objects anywhere on 128x128 pixels."""

FOLDERS = {NAME: "stack", SD3: "stack_sd3", SD3_128: "stack_sd3_128"}

ONE_OBJECT = (NAME, SD3)
"""Those that draw one object on 64x64 pixels, which drawn references show and the judge reads."""

STEPS = 20
GUIDANCE = 5.0
GUIDANCE_128, ETA_128 = 4.0, 1.0
"""The settings at which their pictures look best; GUIDANCE_128 and ETA_128 are for larger scenes.
Other pipelines keep their own defaults."""

DEFAULT_ADAPTER = "plus"
PAIR = "dual"
"""The file with a content and a style adapter, where a base has one."""


def folder(stack: str = NAME) -> Path:
    """A bundled pipeline: `DiffusionPipeline.from_pretrained(folder())` loads it.

    Raises NotFoundError if its files are missing.
    """
    path = Path(__file__).parents[1] / "demo" / FOLDERS[stack]
    if not (path / "model_index.json").is_file():
        raise NotFoundError(
            f"the {stack} stack ({path})",
            reason="part of the package, but its files are missing",
            hint="Reinstall imageprompt, or build the stack with `make bundled-stack`.",
        )
    return path


def guidance(stack: str) -> float:
    """The guidance scale at which a bundled stack's pictures look best."""
    return GUIDANCE_128 if stack == SD3_128 else GUIDANCE


def eta(stack: str | None) -> float:
    """The share of the noise that each step draws anew, at which a stack's pictures look best."""
    return ETA_128 if stack == SD3_128 else 0.0


def adapter(name: str = DEFAULT_ADAPTER, stack: str = NAME) -> Path:
    """The file of one of a stack's adapters: "plus"; of ONE_OBJECT also "base" and "dual"."""
    return folder(stack) / "adapters" / f"{name}.safetensors"
