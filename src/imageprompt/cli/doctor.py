"""`imageprompt doctor`: what is installed, which devices there are, and a self-test."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

from imageprompt.core import bundled
from imageprompt.core.console import (
    Parser,
    add_json,
    cell,
    describe,
    print_aligned,
    print_json,
    print_lines,
)
from imageprompt.core.errors import ImagePromptError

REQUIRED = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "safetensors",
    "pillow",
    "numpy",
)
OPTIONAL = ("xformers", "torchvision", "bitsandbytes", "insightface", "pillow-heif")


def add_doctor(command: Parser) -> None:
    describe(command, _doctor, "imageprompt doctor", "imageprompt doctor --quick --json")
    command.add_argument("--quick", action="store_true", help="skip the self-test")
    add_json(command)


def _doctor(options: argparse.Namespace) -> int:
    report = examine(self_test=not options.quick)
    if options.json:
        print_json(report)
    else:
        for part, entries in report.items():
            if isinstance(entries, dict):
                print_lines(part)
                print_aligned((name, cell(value)) for name, value in entries.items())
        print_lines("everything works" if report["ok"] else "something does not work: see above")
    return 0 if report["ok"] else 1


def examine(*, self_test: bool = True) -> dict[str, Any]:
    """The report as one JSON-ready object; `ok` is False if something required does not work."""
    report: dict[str, Any] = {
        "versions": _versions(),
        "devices": _guarded(_devices),
        **_torchvision(),
        **{f"{name} stack": _guarded(partial(_stack, name)) for name in bundled.FOLDERS},
        "hub": _hub(),
    }
    if self_test:
        report["self-test"] = _guarded(_generate)
    failed = any(isinstance(part, dict) and "error" in part for part in report.values())
    report["ok"] = not failed and None not in [report["versions"][name] for name in REQUIRED]
    return report


def _guarded(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One part of the report; an exception becomes an entry of it."""
    try:
        return part()
    except ImagePromptError as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    for name in ("imageprompt", *REQUIRED, *OPTIONAL):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


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


def _stack(name: str) -> dict[str, Any]:
    folder = bundled.folder(name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    adapters = sorted(path.stem for path in (folder / "adapters").glob("*.safetensors"))
    return {"megabytes": round(size / 1e6, 1), "adapters": adapters}


def _torchvision() -> dict[str, Any]:
    """What is wrong with an installed torchvision, which transformers imports where it is found."""
    if importlib.util.find_spec("torchvision") is None:
        return {}
    reason = _other_torch()
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    cure = "imageprompt does not need it: pip uninstall torchvision"
    return {"torchvision": {"error": f"installed but broken ({reason}). {cure}"}} if reason else {}


def _other_torch() -> str:
    """The torch that the installed torchvision was built for, if that is not the one here."""
    try:
        needed, torch = metadata.requires("torchvision") or [], metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
    pinned = (re.fullmatch(r"torch\s*\(?==([\w.]+).*", one) for one in needed)
    builds = [match[1] for match in pinned if match]
    other = [build for build in builds if build != torch.partition("+")[0]]
    return f"built for torch {other[0]}, here is {torch}" if other else ""


def _hub() -> dict[str, Any]:
    from huggingface_hub import constants

    return {
        "endpoint": constants.ENDPOINT,
        "cache": str(constants.HF_HUB_CACHE),
        "offline": constants.is_offline_mode(),
    }


def _generate() -> dict[str, Any]:
    """Generate one picture on the bundled stack, and repeat it from its recipe."""
    import tempfile

    from PIL import Image

    from imageprompt.generation import generate, repeat

    start = time.perf_counter()
    reference = Image.new("RGB", (64, 64), (200, 30, 40))
    result = generate("a shape", reference, steps=4, progress=False)
    seconds = time.perf_counter() - start
    flat = len(result.images[0].getcolors(2**20) or ()) == 1
    with tempfile.TemporaryDirectory() as folder:
        repeated = repeat(result.save(folder)[0], progress=False)
    same = repeated.images[0].tobytes() == result.images[0].tobytes()
    if flat or not same:
        return {"error": "the picture is one flat colour" if flat else "a repeated picture differs"}
    return {
        "picture": f"{result.recipe.width}x{result.recipe.height}",
        "seconds": round(seconds, 2),
    }
