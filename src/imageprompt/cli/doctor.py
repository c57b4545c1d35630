"""What is installed, which devices there are, and whether a picture can be made: `doctor`."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from imageprompt.core import bundled
from imageprompt.core.errors import ImagePromptError

NEEDED = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "safetensors",
    "pillow",
    "numpy",
)
USEFUL = ("xformers", "torchvision", "bitsandbytes", "insightface")  # used where they are there


def examine(*, self_test: bool = True) -> dict[str, Any]:
    """Everything as one JSON-ready object; `ok` is False if something needed does not work."""
    report: dict[str, Any] = {
        "versions": _versions(),
        "devices": _probe(_devices),
        "bundled stack": _probe(_stack),
        "hub": _hub(),
    }
    if self_test:
        report["self-test"] = _probe(_paint)
    failed = any(isinstance(part, dict) and "error" in part for part in report.values())
    report["ok"] = not failed and None not in [report["versions"][name] for name in NEEDED]
    return report


def _probe(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One part of the report; what goes wrong in it is a finding, not a crash."""
    try:
        return part()
    except ImagePromptError as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in ("imageprompt", *NEEDED, *USEFUL):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _devices() -> dict[str, Any]:
    import torch

    devices: dict[str, Any] = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gibibytes = properties.total_memory / 2**30
        devices[f"cuda:{index}"] = f"{properties.name}, {gibibytes:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def _stack() -> dict[str, Any]:
    folder = bundled.folder()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    adapters = sorted(path.stem for path in (folder / "adapters").glob("*.safetensors"))
    return {"megabytes": round(size / 1e6, 1), "adapters": adapters}


def _hub() -> dict[str, Any]:
    from huggingface_hub import constants

    return {
        "endpoint": constants.ENDPOINT,
        "cache": str(constants.HF_HUB_CACHE),
        "offline": constants.is_offline_mode(),
    }


def _paint() -> dict[str, Any]:
    """One picture on the bundled stack, with a reference, from the saved recipe once more."""
    import tempfile

    from PIL import Image

    from imageprompt.generation import generate, repeat

    start = time.perf_counter()
    reference = Image.new("RGB", (64, 64), (200, 30, 40))
    result = generate("a shape", reference, steps=4, progress=False)
    seconds = time.perf_counter() - start
    flat = len(result.images[0].getcolors(2**20) or ()) == 1
    with tempfile.TemporaryDirectory() as folder:
        again = repeat(result.save(folder)[0], progress=False)
    same = again.images[0].tobytes() == result.images[0].tobytes()
    if flat or not same:
        what = "the picture is one flat colour" if flat else "a repeated picture differs"
        return {"error": what}
    return {
        "picture": f"{result.recipe.width}x{result.recipe.height}",
        "seconds": round(seconds, 2),
    }
