"""`export`: opens the base, traces its parts, measures them against eager, writes the folder."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from imageprompt import loading
from imageprompt.adapter.adapter import Adapter
from imageprompt.adapter.attachment import AttachedDenoiser
from imageprompt.adapter.compatibility import check_base, checked_encoder
from imageprompt.checkpoint.torch_io import write_file
from imageprompt.core.atomic_files import check_folder, sync_file, write_folder_atomically
from imageprompt.core.errors import EncoderError, ImagePromptError, OptionError
from imageprompt.core.spec import Entry
from imageprompt.deploy.export.backends import BACKENDS, Backend, NotExportable
from imageprompt.deploy.export.backends.contract import first_line
from imageprompt.deploy.export.modules import Exportable, exportable_denoiser
from imageprompt.deploy.export.parity import (
    TOKENS,
    Parity,
    checked,
    one_picture,
    outputs_of,
    traced_sizes,
)
from imageprompt.deploy.export.parts import IMAGE_ENCODER, at_other_sizes, other_parts
from imageprompt.deploy.export.tensorrt import trtexec
from imageprompt.generation.exported.calls import calls_of
from imageprompt.generation.exported.denoiser import stand_in
from imageprompt.generation.exported.manifest import (
    CODE,
    DENOISER,
    FORMAT,
    NAME,
    ExportedAdapter,
    ExportedBase,
    Manifest,
    Part,
    config_hash,
    file_sample,
    hashes_of,
    trust,
)
from imageprompt.generation.runtimes import RUNTIMES, Graph
from imageprompt.hosts import training_of
from imageprompt.loading.recipe import AssetRecord, library_versions
from imageprompt.variants import VARIANTS, entry_at, reading_of

NULL_TOKENS = "null-tokens.safetensors"
_WEIGHTS = (".safetensors", ".bin")
_LIBRARIES = ("openvino", "onnx", "onnxruntime", "coremltools", "executorch")


@dataclass(frozen=True)
class Export:
    """What was written."""

    folder: Path
    manifest: Manifest
    sizes: Mapping[str, int]
    """Bytes of each part."""
    check_there: str
    """For graphs that are meant for another device: how to check them there."""
    tensorrt: str = ""
    """For ONNX: the line that builds a TensorRT engine of the denoiser."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "backend": self.manifest.backend,
            "precision": self.manifest.precision,
            "parts": {
                name: {
                    "files": list(part.files),
                    "bytes": self.sizes[name],
                    "parity": self.manifest.parity.get(name),
                }
                for name, part in self.manifest.parts.items()
            },
            "check_there": self.check_there or None,
            "tensorrt": self.tensorrt or None,
        }

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.manifest.backend}, {self.manifest.precision}"]
        for name, part in self.manifest.parts.items():
            parity = self.manifest.parity.get(name)
            told = "not run here" if parity is None else f"largest difference {parity:.1e}"
            size = self.sizes[name] / 1e6
            lines.append(f"  {name}: {next(iter(part.files))}, {size:.1f} MB, {told}")
        if self.check_there:
            lines.append(f"check it there: {self.check_there}")
        if self.tensorrt:
            lines.append(f"for TensorRT (not run here): {self.tensorrt}")
        return "\n".join(lines)


def export(
    base: Any = None,
    adapter: Any = None,
    *,
    to: str,
    output: str | os.PathLike[str],
    precision: str | None = None,
    parts: Sequence[str] | None = None,
    encoder: Any = None,
    controlnet: bool = False,
    on_part: Callable[[str, int, int], object] = lambda name, done, total: None,
) -> Export:
    """Export a base with image prompts as inputs to a folder; see `imageprompt export --help`.

    `adapter` says where image terms are added, and parity is measured with it: others that act at
    the same places run in the same graph. A folder that holds an exported base is replaced.

    `parts` are exported beside the denoiser (default: all that there are); `encoder` is the
    adapter's image encoder, where it is not found beside it. `on_part` hears each part's name, its
    number and their count.

    Raises OptionError, NotFoundError, WrongBaseError, AdapterFileError, AttachError.
    """
    backend = BACKENDS[to]
    precision = precision or backend.precisions[0]
    if precision not in backend.precisions:
        raise OptionError(
            f"precision {precision!r} with {to}",
            reason=f"not one of {', '.join(backend.precisions)}",
        )
    backend.require()
    target = _free(check_folder(output))
    folder = loading.base_folder(base)
    located = loading.find_adapter(adapter, folder, cached_only=False)
    own = folder is None  # a loaded pipeline stays as it is
    kind, device = (None, None) if own else ("float32", "cpu")
    loaded = loading.load_base(base, folder, dtype=kind, device=device, bars=False)
    opened = Adapter.load(located.path, dtype=torch.float32, base=loaded.pipe)
    with loading.few_threads(loaded):
        record = loading.adapter_record(opened, located)
        work = Work(loaded, opened, record, backend, precision, controlnet)
        chosen = work.choose(parts, encoder)
        target.parent.mkdir(parents=True, exist_ok=True)
        with write_folder_atomically(target) as temporary:
            manifest = work.write(temporary, chosen, on_part)
        file, elsewhere = _first(manifest), backend.fixed_sizes or not backend.runtime
        return Export(
            target,
            manifest,
            {name: _bytes(target, part.files) for name, part in manifest.parts.items()},
            backend.check_there.format(file=file) if elsewhere else "",
            trtexec(file, manifest.parts[DENOISER].inputs, work.calls) if to == "onnx" else "",
        )


def _free(folder: Path) -> Path:
    """Raises OptionError for a folder with other files: it would be replaced."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / NAME).is_file():
        raise OptionError(
            f"output folder {str(folder)!r}",
            reason="it holds other files",
            hint="Give a new folder.",
        )
    return folder


def _first(manifest: Manifest) -> str:
    return next(iter(manifest.parts[DENOISER].files))


def _bytes(folder: Path, names: Mapping[str, str]) -> int:
    return sum((folder / name).stat().st_size for name in names)


class Work:
    """One export."""

    def __init__(
        self,
        base: loading.LoadedPipeline,
        adapter: Adapter,
        record: AssetRecord,
        backend: Backend,
        precision: str,
        controlnet: bool,
    ) -> None:
        self.base, self.adapter, self.record = base, adapter, record
        self.backend, self.precision = backend, precision
        on = AttachedDenoiser.of(base.pipe)
        self.denoiser: Any = on.denoiser
        self.calls = calls_of(self.denoiser, controlnet=controlnet)
        self.places = _places(record.name, adapter, on)
        self.side = 0
        self.sizes: dict[str, int] | None = None
        """Those of the graphs, where they are for one picture."""
        if backend.fixed_sizes:
            self.side = _side(base.pipe, self.denoiser)
            text, _ = training_of(self.denoiser).encode_text(base.pipe, [""], None)
            tokens = adapter.spec.tokens or TOKENS
            self.sizes = one_picture(self.calls, self.side, text.shape[1], tokens)

    def choose(self, names: Sequence[str] | None, encoder: Any) -> dict[str, Exportable]:
        """The parts beside the denoiser. Raises OptionError for one that there is not."""
        spec, pipe = self.adapter.spec, self.base.pipe
        self._open_encoder(encoder, needed=names is not None and IMAGE_ENCODER in names)
        acting = {site for site, _ in self.places}
        sites = [site for site in AttachedDenoiser.of(pipe).spec.sites if site.name in acting]
        found = dict(other_parts(pipe, self.adapter, sites))
        if self.sizes is not None:
            sizes = self.sizes | {"batch": 1, "height": self.side, "width": self.side}
            found = {name: _of_one_picture(part, sizes) for name, part in found.items()}
        if names is None:
            return found
        wanted = [name for name in names if name != DENOISER]
        # --parts text-encoder means all of them
        chosen = {n: p for n, p in found.items() if any(n.startswith(one) for one in wanted)}
        if missing := [one for one in wanted if not any(n.startswith(one) for n in chosen)]:
            raise OptionError(
                f"part {missing[0]!r}",
                reason=f"this base with its {spec.variant} adapter has {', '.join(found)}",
                hint="Leave it out.",
            )
        return chosen

    def _open_encoder(self, encoder: Any, *, needed: bool) -> None:
        """Give the adapter its image encoder; without one there is no such part."""
        spec = self.adapter.spec
        if spec.feature.reads_faces:
            return
        try:
            found, _ = loading.find_encoder(
                encoder,
                spec,
                pipe=self.base.pipe,
                base_name=self.base.name,
                base_folder=self.base.folder,
                adapter_name=self.record.name,
            )
            self.adapter.encoding.set_encoder(checked_encoder(spec, found))
        except EncoderError:
            if needed or encoder is not None:
                raise

    def write(
        self,
        folder: Path,
        chosen: Mapping[str, Exportable],
        on_part: Callable[[str, int, int], object],
    ) -> Manifest:
        """The files of every part, measured, and the manifest last."""
        count = 1 + len(chosen)
        on_part(DENOISER, 0, count)
        parity = None
        if self.backend.runtime:
            parity = Parity(self.denoiser, self.adapter, self.calls, self.sizes)
        manifest = self._with_denoiser(folder)
        parts, measured = dict(manifest.parts), dict[str, float]()
        if parity is not None:
            measured[DENOISER] = self._measure(folder, manifest, parity)
        for number, (name, part) in enumerate(chosen.items(), start=1):
            on_part(name, number, count)
            expected = outputs_of(part.module, at_other_sizes(part))
            parts[name] = self._part(folder, name, part)
            if self.backend.runtime:
                graph = self._opened(folder, parts[name])
                tensors = zip([p.name for p in part.inputs], at_other_sizes(part), strict=True)
                with self._named(name):
                    made = graph(dict(tensors))
                measured[name] = checked(name, made, expected, self.precision)
        on_part("", count, count)
        extra = self._null_tokens(folder)
        manifest = replace(
            manifest,
            parts=parts,
            parity=measured,
            null_tokens=next(iter(extra), ""),
            extra_files=extra,
        )
        manifest.write(folder)
        return manifest

    def _null_tokens(self, folder: Path) -> dict[str, str]:
        """The file of the tokens that stand for no picture, and its hash.

        There is none where the image encoder is not known, or no tokens stand for that.
        """
        if self.adapter.encoder is None or self.adapter.spec.is_timed:
            return {}
        null = self.adapter.encode([Image.new("RGB", (64, 64))]).null_tokens
        if null is None:
            return {}
        write_file(folder / NULL_TOKENS, {"null_tokens": null.float()}, {})
        return hashes_of(folder, [NULL_TOKENS])

    def _with_denoiser(self, folder: Path) -> Manifest:
        sizes = self.sizes or traced_sizes(self.calls)
        with exportable_denoiser(self.denoiser, self.calls, self.places, sizes) as (part, readers):
            fixed = part if self.sizes is None else part.at({})
            written = self._part(folder, DENOISER, fixed)
        return Manifest(
            format=FORMAT,
            backend=self.backend.name,
            runtime=self.backend.runtime,
            precision=self.precision,
            base=self._exported_base(),
            adapter=ExportedAdapter(
                name=self.record.name,
                hash=self.record.hash,
                variant=self.adapter.spec.variant,
            ),
            readers=readers,
            parts={DENOISER: written},
            controlnet=self.calls.controlnet,
            versions=library_versions() | _versions(),
        )

    def _part(self, folder: Path, name: str, part: Exportable) -> Part:
        """Raises OptionError that names what the backend lacks."""
        try:
            files = self.backend.write(part, folder, name, self.precision)
        except NotExportable as error:
            raise OptionError(
                f"export of the {name} to {self.backend.name}",
                reason=str(error),
                hint="Export to another backend: openvino and onnx know the most operators.",
            ) from error
        gc.collect()  # exporters leave circles behind that hold the weights
        for file in files:
            sync_file(folder / file)
        return Part(
            files=hashes_of(folder, files),
            inputs=part.inputs,
            outputs=part.outputs,
            runs_here=bool(self.backend.runtime),
        )

    def _exported_base(self) -> ExportedBase:
        pipe, folder = self.base.pipe, self.base.folder
        attribute = "unet" if getattr(pipe, "unet", None) is self.denoiser else "transformer"
        files = {}
        if folder is not None:
            files = {
                path.relative_to(folder).as_posix(): file_sample(path)
                for path in sorted((folder / attribute).glob("*"))
                if path.suffix in _WEIGHTS
            }
        return ExportedBase(
            name=self.base.name,
            hash=self.base.record.hash,
            denoiser=type(self.denoiser).__name__,
            attribute=attribute,
            config=config_hash(self.denoiser.config),
            files=files,
        )

    def _measure(self, folder: Path, manifest: Manifest, parity: Parity) -> float:
        """Run what was written, as `generate --runtime` does. Raises OptionError."""
        graph = self._opened(folder, manifest.parts[DENOISER])
        kind, config = type(self.denoiser), dict(self.denoiser.config)
        with self._named(DENOISER):
            return parity.largest(stand_in(kind, config, manifest, graph), self.precision)

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Raises OptionError where the runtime fails at other sizes than the traced ones."""
        try:
            yield
        except ImagePromptError:
            raise
        except Exception as error:  # the errors of runtimes share no class
            raise OptionError(
                f"export of the {name} to {self.backend.name}",
                reason=f"{self.backend.runtime} cannot run it at other sizes ({first_line(error)})",
                hint="Nothing was written. Export to another backend.",
            ) from error

    def _opened(self, folder: Path, part: Part) -> Graph:
        runtime = RUNTIMES[self.backend.runtime]
        if runtime.name in CODE:
            trust(part.files.values())
        return runtime.open(folder, part, runtime.precisions[0], torch.get_num_threads())


def _side(pipe: Any, denoiser: Any) -> int:
    """Latents on a side of the pictures that a base makes by default."""
    stated = getattr(pipe, "default_sample_size", None) or denoiser.config.get("sample_size")
    return stated if isinstance(stated, int) else 64


def _of_one_picture(part: Exportable, sizes: Mapping[str, int]) -> Exportable:
    """A part beside the denoiser, for the sizes of one picture."""
    pixels = {
        f"pixel_{axis}": sizes[axis] * part.sizes[f"pixel_{axis}"] // part.sizes[axis]
        for axis in ("height", "width")
        if f"pixel_{axis}" in part.sizes
    }
    return part.at({**sizes, **pixels})


def _places(name: str | None, adapter: Adapter, on: AttachedDenoiser) -> set[tuple[str, Entry]]:
    """Where the adapter adds image terms. Raises OptionError, WrongBaseError."""
    kind = reading_of(VARIANTS[adapter.spec.variant], adapter.spec.reading)
    entries = {(site.name, entry_at(kind, site.kind)) for site in on.spec.sites}
    found = {(site, entry) for site, entry in entries if entry is not None}
    reason = ""
    if adapter.module.loras:
        reason = "it has LoRA, which changes the weights of the base"
    elif not adapter.module.sites:
        reason = "its tokens follow those of the text, so it needs no graph of its own"
    elif any(entry == "among rows" for _, entry in found):
        reason = "it reads the rows of the picture, which the graph does not hand out"
    if reason:
        raise OptionError(
            f"export with {name} ({adapter.spec.variant})",
            reason=reason,
            hint="Export with another adapter: those that act at the same places share a graph.",
        )
    check_base(adapter.spec, adapter.module, on.spec)
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
