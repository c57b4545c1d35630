"""Where the tiny stack inside the package lies: a diffusers folder that carries its adapters."""

from __future__ import annotations

from pathlib import Path

from imageprompt.core.errors import NotFoundError

NAME = "bundled"
"""What recipes and the command line call it."""

STEPS = 20
GUIDANCE = 5.0
"""What its pictures look best with; other pipelines keep their own defaults."""

DEFAULT_ADAPTER = "plus"


def folder() -> Path:
    """The bundled pipeline: `StableDiffusionPipeline.from_pretrained(folder())` loads it."""
    path = Path(__file__).parents[1] / "demo" / "stack"
    if not (path / "model_index.json").is_file():
        raise NotFoundError(
            f"the bundled tiny stack ({path})",
            reason="it is part of the package, but its files are not there",
            hint="Install imageprompt again, or build the stack with `make tiny-stack`.",
        )
    return path


def adapter(name: str = DEFAULT_ADAPTER) -> Path:
    """The file of one of its adapters, "base" or "plus"."""
    return folder() / "adapters" / f"{name}.safetensors"
