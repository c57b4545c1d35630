"""Image prompts for diffusion models: `import imageprompt as ip`; names are loaded on use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from imageprompt.version import __version__

if TYPE_CHECKING:
    from imageprompt.adapter import Adapter
    from imageprompt.checking.report import check
    from imageprompt.checkpoint.convert import convert
    from imageprompt.checkpoint.diff import diff
    from imageprompt.checkpoint.inspect import Report, inspect
    from imageprompt.checkpoint.validate import validate
    from imageprompt.controls import Controls, Schedule, sliders
    from imageprompt.encoders.face import FaceEncoder
    from imageprompt.encoders.framing import Preparation, tiled
    from imageprompt.encoders.pictures import open_picture
    from imageprompt.encoding.faces import read_embeddings
    from imageprompt.errors import ImagePromptError
    from imageprompt.generation import GenerationResult, generate, repeat
    from imageprompt.library import Library
    from imageprompt.probing import probe
    from imageprompt.prompt import ImagePrompt
    from imageprompt.recipe import Recipe
    from imageprompt.showing import Reference
    from imageprompt.training.config import TrainingConfig
    from imageprompt.training.train import TrainResult, train

# Public name -> the module that defines it; torch is loaded when a name that needs it is touched.
_HOME = {
    "Adapter": "imageprompt.adapter",
    "Controls": "imageprompt.controls",
    "FaceEncoder": "imageprompt.encoders.face",
    "GenerationResult": "imageprompt.generation",
    "ImagePrompt": "imageprompt.prompt",
    "ImagePromptError": "imageprompt.errors",
    "Library": "imageprompt.library",
    "Preparation": "imageprompt.encoders.framing",
    "Recipe": "imageprompt.recipe",
    "Reference": "imageprompt.showing",
    "Report": "imageprompt.checkpoint.inspect",
    "Schedule": "imageprompt.controls",
    "TrainResult": "imageprompt.training.train",
    "TrainingConfig": "imageprompt.training.config",
    "check": "imageprompt.checking.report",
    "convert": "imageprompt.checkpoint.convert",
    "diff": "imageprompt.checkpoint.diff",
    "generate": "imageprompt.generation",
    "inspect": "imageprompt.checkpoint.inspect",
    "open_picture": "imageprompt.encoders.pictures",
    "probe": "imageprompt.probing",
    "read_embeddings": "imageprompt.encoding.faces",
    "repeat": "imageprompt.generation",
    "sliders": "imageprompt.controls",
    "tiled": "imageprompt.encoders.framing",
    "train": "imageprompt.training.train",
    "validate": "imageprompt.checkpoint.validate",
}

__all__ = [
    "Adapter",
    "Controls",
    "FaceEncoder",
    "GenerationResult",
    "ImagePrompt",
    "ImagePromptError",
    "Library",
    "Preparation",
    "Recipe",
    "Reference",
    "Report",
    "Schedule",
    "TrainResult",
    "TrainingConfig",
    "__version__",
    "check",
    "convert",
    "diff",
    "generate",
    "inspect",
    "open_picture",
    "probe",
    "read_embeddings",
    "repeat",
    "sliders",
    "tiled",
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
