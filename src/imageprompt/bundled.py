"""Where the tiny stack inside the package lies: a diffusers folder that carries its adapters."""

from __future__ import annotations

from pathlib import Path

from imageprompt.errors import NotFoundError

# Short names that stand for the adapters of the bundled stack wherever an adapter is asked for.
ADAPTERS = ("base", "plus")


def folder() -> Path:
    """The bundled pipeline: `StableDiffusionPipeline.from_pretrained(folder())` loads it."""
    path = Path(__file__).parent / "demo" / "stack"
    if not (path / "model_index.json").is_file():
        raise NotFoundError(
            f"the bundled tiny stack ({path})",
            rule="it is part of the package, but its files are not there",
            remedy="Install imageprompt again, or build the stack with `make tiny-stack`.",
        )
    return path


def adapter(name: str) -> Path:
    """The file of the bundled adapter `name`, one of `ADAPTERS`."""
    return folder() / "adapters" / f"{name}.safetensors"
