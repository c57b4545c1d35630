"""An exported base as a pipeline: its scheduler and tokenizers, and a runtime for its denoiser."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from imageprompt import loading
from imageprompt.core import bundled
from imageprompt.core.errors import OptionError, WrongBaseError
from imageprompt.core.untrusted import Budget, parse_json, read_regular
from imageprompt.generation.exported import vae
from imageprompt.generation.exported.denoiser import stand_in
from imageprompt.generation.exported.manifest import DENOISER, MAX_BYTES, Manifest
from imageprompt.generation.runtimes import RUNTIMES
from imageprompt.loading import LoadedPipeline
from imageprompt.loading.recipe import AssetRecord


@dataclass(frozen=True)
class ExportedPipeline(LoadedPipeline):
    """A pipeline whose denoiser a runtime computes."""

    manifest: Manifest
    runtime: str
    precision: str

    @property
    def dtype(self) -> str:
        return self.precision

    @property
    def versions(self) -> dict[str, str]:
        return runtime_version(self.runtime)

    @cached_property
    def record(self) -> AssetRecord:
        """That of the base that was exported."""
        return AssetRecord(name=self.name, hash=self.manifest.base.hash)


@dataclass(frozen=True)
class Exported:
    """A runtime and an exported folder: what takes the place of `loading.load_base`.

    Raises OptionError, NotFoundError.
    """

    runtime: str
    folder: Path
    manifest: Manifest

    @classmethod
    def of(cls, runtime: str | None, folder: str | os.PathLike[str] | None) -> Exported:
        """Checks that the runtime reads the folder; opens nothing large."""
        if folder is None:
            raise OptionError(
                f"runtime {runtime!r}",
                reason="it runs a base that was exported",
                hint="Give its folder too: --exported DIR (imageprompt export makes one).",
            )
        path = Path(folder).expanduser()
        manifest = Manifest.read(path)
        wanted = manifest.runtime if runtime is None else RUNTIMES[runtime].name
        if not manifest.runtime:
            raise OptionError(
                f"exported base {str(path)!r}",
                reason=f"nothing runs {manifest.backend} here",
                hint="Use it on the device that it is for, or export to openvino.",
            )
        if not _reads(wanted, manifest):
            raise OptionError(
                f"runtime {wanted!r}",
                reason=f"{str(path)!r} was exported for {manifest.runtime}",
                hint=f"Use --runtime {manifest.runtime}, or export again with --to {wanted}.",
            )
        return cls(wanted, path, manifest)

    @property
    def base(self) -> str | None:
        """The name of the base that was exported."""
        return self.manifest.base.name

    def load(
        self, base: Any, folder: Path | None, *, dtype: str | None, device: str | None, bars: bool
    ) -> LoadedPipeline:
        """As `loading.load_base`. Raises WrongBaseError for another base than was exported."""
        if folder is None:
            raise OptionError(
                "a loaded pipeline with a runtime",
                reason="its denoiser has weights already",
                hint="Give the base by its name or folder.",
            )
        if device not in (None, "cpu"):
            raise OptionError(
                f"device {device!r} with runtime {self.runtime!r}",
                reason="it computes on the CPU",
                hint="Leave --device out.",
            )
        runtime = RUNTIMES[self.runtime]
        precision = dtype or runtime.precisions[0]
        if precision not in runtime.precisions:
            raise OptionError(
                f"dtype {precision!r} with runtime {self.runtime!r}",
                reason=f"it computes in {' or '.join(runtime.precisions)}",
            )
        stated = self.manifest.base
        config = _config(folder / stated.attribute / "config.json")
        name = bundled.NAME if base is None else os.fspath(base)
        self.manifest.check_base(name, folder, config)
        part = self.manifest.parts[DENOISER]
        self.manifest.check_files(self.folder, part.files)
        threads = 1 if name in bundled.FOLDERS else _threads()
        graph = runtime.open(self.folder, part, precision, threads)
        parts = {
            stated.attribute: stand_in(_class(stated.denoiser), config, self.manifest, graph),
            **self._vae(folder, threads),
        }
        with loading.quiet_loading(not bars or name in bundled.FOLDERS):
            pipe = _load_pipeline(folder, name, parts)
        return ExportedPipeline(pipe, name, folder, self.manifest, self.runtime, precision)

    def _vae(self, folder: Path, threads: int) -> dict[str, Any]:
        """The VAE where both its sides were exported; in the runtime's first precision."""
        parts = [self.manifest.parts.get(name) for name in (vae.DECODER, vae.ENCODER)]
        if None in parts:
            return {}
        import diffusers

        runtime, graphs = RUNTIMES[self.runtime], []
        for part in filter(None, parts):
            self.manifest.check_files(self.folder, part.files)
            graphs.append(runtime.open(self.folder, part, runtime.precisions[0], threads))
        config = _config(folder / "vae" / "config.json")
        return {"vae": vae.stand_in(diffusers.AutoencoderKL, config, *graphs)}


def _reads(runtime: str, manifest: Manifest) -> bool:
    return runtime == manifest.runtime or (runtime, manifest.backend) == ("openvino", "onnx")


def _config(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_regular(path, MAX_BYTES), Budget())
        if isinstance(found, dict):
            return found
        reason = "not a mapping"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise WrongBaseError(str(path), reason=reason, hint="Give the base that was exported.")


def _class(name: str) -> Any:
    """A class of denoiser that can be exported; `stand_in` refuses others of diffusers'."""
    import diffusers

    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        raise OptionError(
            f"a denoiser of class {name!r}",
            reason="diffusers has no such model",
            hint="Export the base again.",
        )
    return found


def _load_pipeline(folder: Path, name: str, parts: dict[str, Any]) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, **parts
        )
    except Exception as error:  # a damaged folder raises nearly anything
        lines = str(error).splitlines() or [type(error).__name__]
        raise WrongBaseError(
            f"base {name!r}",
            reason=f"diffusers cannot load it ({lines[0]})",
            hint="Check that it is complete, or download it again.",
        ) from error


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def runtime_version(runtime: str) -> dict[str, str]:
    """The version of its library, for recipes."""
    try:
        return {runtime: version("torch" if runtime in ("aoti", "pt2") else runtime)}
    except PackageNotFoundError:
        return {}
