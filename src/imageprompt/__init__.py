"""Image prompts for diffusion models: `import imageprompt as ip`; names are loaded on use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from imageprompt.version import __version__

if TYPE_CHECKING:
    from imageprompt.adapter import Adapter
    from imageprompt.checkpoint.convert import convert
    from imageprompt.checkpoint.diff import diff
    from imageprompt.checkpoint.inspect import Report, inspect
    from imageprompt.checkpoint.validate import validate
    from imageprompt.encoders.pictures import open_picture
    from imageprompt.errors import ImagePromptError
    from imageprompt.generation import GenerationResult, generate, repeat
    from imageprompt.prompt import ImagePrompt
    from imageprompt.recipe import Recipe
    from imageprompt.training.config import TrainingConfig
    from imageprompt.training.train import TrainResult, train

# Public name -> the module that defines it; torch is loaded when a name that needs it is touched.
_HOME = {
    "Adapter": "imageprompt.adapter",
    "GenerationResult": "imageprompt.generation",
    "ImagePrompt": "imageprompt.prompt",
    "ImagePromptError": "imageprompt.errors",
    "Recipe": "imageprompt.recipe",
    "TrainResult": "imageprompt.training.train",
    "TrainingConfig": "imageprompt.training.config",
    "Report": "imageprompt.checkpoint.inspect",
    "convert": "imageprompt.checkpoint.convert",
    "diff": "imageprompt.checkpoint.diff",
    "generate": "imageprompt.generation",
    "inspect": "imageprompt.checkpoint.inspect",
    "open_picture": "imageprompt.encoders.pictures",
    "repeat": "imageprompt.generation",
    "train": "imageprompt.training.train",
    "validate": "imageprompt.checkpoint.validate",
}

__all__ = [
    "Adapter",
    "GenerationResult",
    "ImagePrompt",
    "ImagePromptError",
    "Recipe",
    "Report",
    "TrainResult",
    "TrainingConfig",
    "__version__",
    "convert",
    "diff",
    "generate",
    "inspect",
    "open_picture",
    "repeat",
    "train",
    "validate",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
