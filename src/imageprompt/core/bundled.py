"""The tiny stack inside the package: a diffusers pipeline folder with adapters of its own."""

from __future__ import annotations

from pathlib import Path

from imageprompt.core.errors import NotFoundError

NAME = "bundled"
"""Its name in recipes and on the command line."""

STEPS = 20
GUIDANCE = 5.0
"""The settings at which its pictures look best; other pipelines keep their own defaults."""

DEFAULT_ADAPTER = "plus"


def folder() -> Path:
    """The bundled pipeline: `StableDiffusionPipeline.from_pretrained(folder())` loads it.

    Raises NotFoundError if its files are missing.
    """
    path = Path(__file__).parents[1] / "demo" / "stack"
    if not (path / "model_index.json").is_file():
        raise NotFoundError(
            f"the bundled stack ({path})",
            reason="part of the package, but its files are missing",
            hint="Reinstall imageprompt, or build the stack with `make bundled-stack`.",
        )
    return path


def adapter(name: str = DEFAULT_ADAPTER) -> Path:
    """The file of one of its adapters, "base" or "plus"."""
    return folder() / "adapters" / f"{name}.safetensors"
