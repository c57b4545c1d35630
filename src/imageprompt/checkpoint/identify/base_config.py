"""The base and the encoder to compare a file with, read from their configs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imageprompt.checkpoint.identify.published import stated_widths
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.stored_tensor import TensorSource
from imageprompt.core import bundled
from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.core.hub import Location
from imageprompt.core.spec import HostSpec
from imageprompt.core.untrusted import LimitError, parse_json, read_regular
from imageprompt.hosts import HOSTS

DENOISERS = ("unet", "transformer", "")  # subfolders of a pipeline; "": the folder itself
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
ENCODERS = ("image_encoder", "")
MAX_CONFIG = 2**20  # bytes
MAX_LIST = 1000  # values of one list in a config: blocks, or what special tokens stand for
MAX_LAYERS = 10_000  # SDXL's numbers multiply to 20, those of the largest transformers to 2,000


@dataclass(frozen=True)
class BaseConfig:
    """A base's sites, and the folder of its weights (None: a published family, by name only)."""

    spec: HostSpec
    folder: Path | None = None

    def weights(self) -> TensorSource | None:
        """The denoiser's weights, unread; None if there are none."""
        names = WEIGHTS if self.folder is not None else ()
        paths = [self.folder / name for name in names if self.folder is not None]
        found = next((path for path in paths if path.is_file()), None)
        return None if found is None else open_source(found, inside=self.folder)


def open_base(base: Location) -> BaseConfig:
    """A published family by its name, the folder of a pipeline or denoiser, or a bundled stack.

    Raises NotFoundError, or OptionError if no host knows the config.
    """
    families = {spec.family: spec for host in HOSTS for spec in host.families()}
    if base in families:
        return BaseConfig(families[str(base)])
    config, folder = _config(
        base, DENOISERS, f"or one of {', '.join([*bundled.FOLDERS, *families])}"
    )
    for host in HOSTS:
        spec = host.from_config(config)
        if spec is not None:
            return BaseConfig(spec, folder)
    kind = str(config.get("_class_name", "model of this config"))[:80]
    raise OptionError(
        f"base {os.fspath(base)!r}",
        reason=f"no host describes a {kind}",
        hint=f"Known: {'; '.join(host.summary for host in HOSTS)}.",
    )


def encoder_widths(encoder: Location) -> dict[str, int]:
    """Feature -> width of an image encoder: its folder, a pipeline that has one, or a stack.

    Raises NotFoundError, or OptionError for a config that is not an image encoder's.
    """
    config, _ = _config(encoder, ENCODERS, "the folder of an image encoder")
    widths = stated_widths(config)
    if not widths:
        raise OptionError(
            f"encoder {os.fspath(encoder)!r}",
            reason="its config.json does not describe an image encoder",
            hint="Give the folder of a vision tower, such as image_encoder.",
        )
    return widths


def _config(
    reference: Location, subfolders: tuple[str, ...], alternatives: str
) -> tuple[Mapping[str, Any], Path]:
    """The first config.json in one of these subfolders, and its folder."""
    if isinstance(reference, str) and reference in bundled.FOLDERS:
        root = bundled.folder(reference)
    else:
        root = Path(os.path.expanduser(reference))  # noqa: PTH111
    for subfolder in subfolders:
        path = root / subfolder / "config.json"
        if os.path.exists(path):  # noqa: PTH110 - never raises
            return read_config(path, root), path.parent
    raise NotFoundError(
        f"{os.fspath(reference)!r}",
        reason="no config.json there",
        hint=f"Give a folder with one, {alternatives}.",
    )


def read_config(path: Path, inside: Path | None) -> dict[str, Any]:
    """Raises OptionError for anything but a JSON object that describes a model of usual size."""
    try:
        config = parse_json(read_regular(path, MAX_CONFIG, inside=inside))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
        _check_sizes(config)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OptionError(str(path), reason=reason, hint="Download it again.") from None
    return config


def _check_sizes(config: Mapping[str, Any]) -> None:
    """What multiplies to the number of a denoiser's layers; every layer becomes an object."""
    layers = 1
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > MAX_LIST:
            raise LimitError(f"{len(numbers)} values for {name[:40]!r}")
        if "layers" in name:
            inner = (n for one in numbers for n in (one if isinstance(one, list) else [one]))
            layers *= max((n for n in inner if isinstance(n, int)), default=1) or 1
    if not 0 <= layers <= MAX_LAYERS:
        raise LimitError(f"numbers of layers that multiply to more than {MAX_LAYERS}")
