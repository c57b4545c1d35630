"""Image prompts for diffusion models: `import imageprompt as ip`. Names are loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from imageprompt.core import __version__

if TYPE_CHECKING:
    from imageprompt import workflows
    from imageprompt.adapter.adapter import Adapter
    from imageprompt.checkpoint.convert import convert
    from imageprompt.checkpoint.diff import diff
    from imageprompt.checkpoint.inspect import AdapterReport, inspect
    from imageprompt.checkpoint.validate import validate
    from imageprompt.control import Controls, Schedule, sliders
    from imageprompt.core import bundled
    from imageprompt.core.errors import ImagePromptError
    from imageprompt.encoding.face_embeddings import read_embeddings
    from imageprompt.encoding.face_encoder import FaceEncoder
    from imageprompt.encoding.image_prompt import ImagePrompt
    from imageprompt.encoding.images.framing import Framing, tiled
    from imageprompt.encoding.images.open_image import open_picture
    from imageprompt.evaluation.compare import compare
    from imageprompt.evaluation.image_quality.picture import check
    from imageprompt.evaluation.probing import probe
    from imageprompt.evaluation.study.config import StudyConfig
    from imageprompt.evaluation.study.results import read_results
    from imageprompt.evaluation.study.run import StudyResult, evaluate
    from imageprompt.evaluation.tune import tune
    from imageprompt.generation import GenerationResult, generate, repeat
    from imageprompt.generation.engine import Engine
    from imageprompt.generation.reference import Reference
    from imageprompt.generation.request import Request
    from imageprompt.generation.run import Progress
    from imageprompt.library import Library
    from imageprompt.loading.models import release
    from imageprompt.loading.recipe import Recipe
    from imageprompt.training.config.config import TrainingConfig
    from imageprompt.training.train import TrainResult, train

# Public name -> the module that defines it. torch is loaded with the first name that needs it.
_HOME = {
    "Adapter": "imageprompt.adapter.adapter",
    "AdapterReport": "imageprompt.checkpoint.inspect",
    "Controls": "imageprompt.control",
    "Engine": "imageprompt.generation.engine",
    "FaceEncoder": "imageprompt.encoding.face_encoder",
    "GenerationResult": "imageprompt.generation",
    "ImagePrompt": "imageprompt.encoding.image_prompt",
    "ImagePromptError": "imageprompt.core.errors",
    "Library": "imageprompt.library",
    "Framing": "imageprompt.encoding.images.framing",
    "Progress": "imageprompt.generation.run",
    "Recipe": "imageprompt.loading.recipe",
    "Reference": "imageprompt.generation.reference",
    "Request": "imageprompt.generation.request",
    "Schedule": "imageprompt.control",
    "StudyConfig": "imageprompt.evaluation.study.config",
    "StudyResult": "imageprompt.evaluation.study.run",
    "TrainResult": "imageprompt.training.train",
    "TrainingConfig": "imageprompt.training.config.config",
    "bundled": "imageprompt.core.bundled",
    "check": "imageprompt.evaluation.image_quality.picture",
    "compare": "imageprompt.evaluation.compare",
    "convert": "imageprompt.checkpoint.convert",
    "diff": "imageprompt.checkpoint.diff",
    "evaluate": "imageprompt.evaluation.study.run",
    "generate": "imageprompt.generation",
    "inspect": "imageprompt.checkpoint.inspect",
    "open_picture": "imageprompt.encoding.images.open_image",
    "probe": "imageprompt.evaluation.probing",
    "read_results": "imageprompt.evaluation.study.results",
    "read_embeddings": "imageprompt.encoding.face_embeddings",
    "release": "imageprompt.loading.models",
    "repeat": "imageprompt.generation",
    "sliders": "imageprompt.control",
    "tiled": "imageprompt.encoding.images.framing",
    "train": "imageprompt.training.train",
    "tune": "imageprompt.evaluation.tune",
    "validate": "imageprompt.checkpoint.validate",
    "workflows": "imageprompt.workflows",
}
_MODULES = ("bundled", "workflows")
"""The names that are modules themselves."""

__all__ = [
    "Adapter",
    "AdapterReport",
    "Controls",
    "Engine",
    "FaceEncoder",
    "Framing",
    "GenerationResult",
    "ImagePrompt",
    "ImagePromptError",
    "Library",
    "Progress",
    "Recipe",
    "Reference",
    "Request",
    "Schedule",
    "StudyConfig",
    "StudyResult",
    "TrainResult",
    "TrainingConfig",
    "__version__",
    "bundled",
    "check",
    "compare",
    "convert",
    "diff",
    "evaluate",
    "generate",
    "inspect",
    "open_picture",
    "probe",
    "read_embeddings",
    "read_results",
    "release",
    "repeat",
    "sliders",
    "tiled",
    "train",
    "tune",
    "validate",
    "workflows",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_HOME[name])
    value: object = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
