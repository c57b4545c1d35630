"""`quantize`: opens an exported base, calibrates, writes the folder, and measures what it cost."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from imageprompt import loading
from imageprompt.adapter.adapter import Adapter
from imageprompt.core import bundled
from imageprompt.core.atomic_files import check_folder, sync_file, write_folder_atomically
from imageprompt.core.errors import OptionError
from imageprompt.demo import judge, scenes
from imageprompt.deploy.compress.result import Attributes
from imageprompt.deploy.compress.run import open_pictures, warn_of_drawn
from imageprompt.deploy.quantize.backends import QUANTIZERS, NotQuantizable, Quantizer
from imageprompt.deploy.quantize.calibration import check_references, record, with_graph
from imageprompt.deploy.quantize.result import Quantization
from imageprompt.evaluation.metrics.psnr import psnr
from imageprompt.generation.engine import Engine
from imageprompt.generation.exported.manifest import DENOISER, NAME, Manifest, hashes_of
from imageprompt.generation.exported.open import Exported
from imageprompt.generation.runtimes import RUNTIMES

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from imageprompt.generation.runtimes import Graph

PICTURES, MAX_PICTURES = 24, 10_000
TOGETHER = 8  # pictures in a batch
TURNS = 5
"""How often a call is timed, each graph in turn."""
FULL = ("float32", "float16")
"""Precisions of an exported base that can be quantised."""


def quantize(
    exported: str | os.PathLike[str] | None = None,
    *,
    to: str,
    output: str | os.PathLike[str],
    base: Any = None,
    adapter: Any = None,
    encoder: Any = None,
    backend: str = "openvino",
    references: str | os.PathLike[str] | None = None,
    pictures: int = PICTURES,
    on_step: Callable[[], object] = lambda: None,
) -> Quantization:
    """An exported base in fewer bits, in a folder that `generate --runtime` reads like any other.

    Without `exported`, `base` is exported by `backend` first. `base` and `adapter` are those of the
    exported folder unless they are named. `to` is one of the quantiser's precisions; calibration
    runs with image prompts in use: `references` is a folder of pictures, of which every second one
    is calibrated with and the others are compared; by default scenes are drawn. So many `pictures`
    are generated at both precisions. Raises OptionError, NotFoundError, WrongBaseError,
    AdapterFileError, EncoderError.
    """
    if not 0 <= pictures <= MAX_PICTURES:
        raise OptionError(f"pictures {pictures}", reason=f"not from 0 to {MAX_PICTURES}")
    target = check_folder(output)
    if target.is_dir() and any(target.iterdir()) and not (target / NAME).is_file():
        raise OptionError(
            f"output folder {str(target)!r}",
            reason="it holds other files",
            hint="Give a new folder.",
        )
    calibrating, compared = open_pictures(references)
    with ExitStack() as stack:
        if exported is None:
            _check_precision(QUANTIZERS[backend], to)
            exported = stack.enter_context(TemporaryDirectory())
            _export(base, adapter, backend, exported)
        source = Exported.of(None, exported)
        quantizer = _quantizer(source, to)
        if to in quantizer.calibrated:
            check_references(len(calibrating))
        work = Work(source, base, adapter, encoder)
        if references is None and (pictures or to in quantizer.calibrated):
            warn_of_drawn(work.loaded.name)
        stack.enter_context(loading.few_threads(work.loaded))
        calls = work.calls(calibrating, on_step)
        return work.write(quantizer, to, target, calls, compared, pictures, references is None)


def _export(base: Any, adapter: Any, backend: str, folder: str) -> None:
    from imageprompt.deploy.export import export

    export(base, adapter, to=backend, output=folder)


def _quantizer(source: Exported, to: str) -> Quantizer:
    """Raises OptionError."""
    manifest = source.manifest
    if manifest.precision not in FULL:
        raise OptionError(
            f"exported base {str(source.folder)!r}",
            reason=f"it is in {manifest.precision} already",
            hint="Give the folder that it was made from.",
        )
    quantizer = QUANTIZERS.get(manifest.backend)
    if quantizer is None:
        raise OptionError(
            f"quantize of an export to {manifest.backend}",
            reason="nothing here quantises its files",
            hint=f"Export to {' or '.join(one.name for one in QUANTIZERS)}.",
        )
    _check_precision(quantizer, to)
    return quantizer


def _check_precision(quantizer: Quantizer, to: str) -> None:
    quantizer.require()
    if to not in quantizer.precisions:
        raise OptionError(
            f"precision {to!r} with {quantizer.name}",
            reason=f"not one of {', '.join(quantizer.precisions)}",
        )


class Work:
    """An exported base that is open, with its adapter."""

    def __init__(self, source: Exported, base: Any, adapter: Any, encoder: Any) -> None:
        manifest = source.manifest
        self.source, self.manifest = source, manifest
        base = manifest.base.name if base is None else base
        folder = loading.base_folder(base)
        self.loaded = source.load(base, folder, dtype=None, device=None, bars=False)
        name = manifest.adapter.name if adapter is None else adapter
        located = loading.find_adapter(name, folder, cached_only=False)
        self.adapter = Adapter.load(located.path, dtype=torch.float32)
        self.adapter_name = located.name
        self._encoder = encoder
        self.before = self._open(source.folder, manifest)

    def _open(self, folder: Path, manifest: Manifest) -> Graph:
        runtime = RUNTIMES[self.source.runtime]
        part = manifest.parts[DENOISER]
        return runtime.open(folder, part, runtime.precisions[0], torch.get_num_threads())

    def calls(
        self, references: Sequence[Image], on_step: Callable[[], object]
    ) -> list[dict[str, Tensor]]:
        """Those to calibrate with; the last ones also tell the error."""
        return record(
            self.loaded.pipe,
            self.manifest,
            self.before,
            self.adapter,
            self._encoder,
            references,
            on_step,
        )

    def write(
        self,
        quantizer: Quantizer,
        to: str,
        target: Path,
        calls: list[dict[str, Tensor]],
        compared: Sequence[Image],
        pictures: int,
        drawn: bool,
    ) -> Quantization:
        """The folder, and what it costs. Nothing is left where it cannot be opened."""
        used = [_arrays(call) for call in calls] if to in quantizer.calibrated else []
        target.parent.mkdir(parents=True, exist_ok=True)
        with write_folder_atomically(target) as temporary:
            manifest = self._quantized(quantizer, to, temporary, used)
            after = self._open(temporary, manifest)
            error = self._error(after, calls)
            made = replace(manifest, parity={**manifest.parity, DENOISER: error})
            made.write(temporary)
            found = Quantization(
                folder=str(target),
                backend=quantizer.name,
                precision=to,
                base=self.loaded.name or "",
                adapter=self.adapter_name,
                bytes=_bytes(temporary, made),
                bytes_before=_bytes(self.source.folder, self.manifest),
                error=error,
                speed=_speed(self.before, after, calls[-1]),
                calibrated_with=len(used),
                pictures=pictures,
                psnr=None,
            )
            if pictures:
                found = self._compared(found, after, compared, pictures, drawn)
        return found

    def _quantized(
        self, quantizer: Quantizer, to: str, folder: Path, calls: Sequence[Mapping[str, Any]]
    ) -> Manifest:
        """Raises OptionError for what the quantiser cannot do."""
        part = self.manifest.parts[DENOISER]
        first, *rest = part.files
        try:
            files = quantizer.write(self.source.folder / first, folder / first, to, calls)
        except NotQuantizable as error:
            raise OptionError(
                f"quantize to {to} with {quantizer.name}",
                reason=str(error),
                hint=f"Use another: {', '.join(quantizer.precisions)}.",
            ) from error
        for name in set(self.manifest.all_files()) - {first, *rest}:
            shutil.copyfile(self.source.folder / name, folder / name)
        for path in folder.iterdir():
            sync_file(path)
        parts = {
            **self.manifest.parts,
            DENOISER: replace(part, files=hashes_of(folder, files)),
        }
        return replace(self.manifest, precision=to, parts=parts)

    def _error(self, after: Graph, calls: Sequence[dict[str, Tensor]]) -> float:
        """Root mean square of the difference over that of the result, of four calls."""
        chosen = calls[:: max(1, len(calls) // 4)]
        pairs = [(self.before(call)[0], after(call)[0]) for call in chosen]
        difference = torch.cat([(b - a).flatten() for a, b in pairs])
        return float(difference.norm() / torch.cat([a.flatten() for a, _ in pairs]).norm())

    # ── pictures ────────────────────────────────────────────────────────────────────────────────

    def _compared(
        self,
        found: Quantization,
        after: Graph,
        references: Sequence[Image],
        pictures: int,
        drawn: bool,
    ) -> Quantization:
        """With PSNR; and with what the judge reads where scenes were drawn on a bundled stack."""
        read = drawn and self.loaded.name in bundled.ONE_OBJECT
        sources = list(islice(scenes.stream("test", seed=50_000), pictures)) if read else []
        shown = [scenes.draw(scene) for scene in sources] or [
            references[number % len(references)] for number in range(pictures)
        ]
        before, now = (self.pictures(graph, shown) for graph in (self.before, after))
        told = replace(
            found, psnr=psnr(*(np.stack(list(map(np.asarray, m))) for m in (now, before)))
        )
        if not read:
            return told
        match = [judge.shares(made, sources) for made in (before, now)]
        return replace(
            told, attributes=Attributes(pictures=pictures, before=match[0], after=match[1])
        )

    def pictures(self, graph: Graph, references: Sequence[Image]) -> list[Image]:
        """One picture for each reference, computed by a graph."""
        pipe = with_graph(self.loaded.pipe, self.manifest, graph)
        engine = Engine(pipe, adapter=self.adapter, encoder=self._encoder)
        shared: dict[str, Any] = {"scale": 1.0, "steps": bundled.STEPS}
        if self.loaded.name in bundled.FOLDERS:
            shared["guidance_scale"] = bundled.guidance(self.loaded.name)
        requests = [
            {"reference": picture, "seed": seed, **shared}
            for seed, picture in enumerate(references)
        ]
        results = engine.generate_many(requests, batch_size=TOGETHER, progress=False)
        engine.release()
        return [result.images[0] for result in results]


def _arrays(call: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: one.contiguous().numpy() for name, one in call.items()}


def _bytes(folder: Path, manifest: Manifest) -> int:
    return sum((folder / name).stat().st_size for name in manifest.parts[DENOISER].files)


def _speed(before: Graph, after: Graph, call: dict[str, Tensor]) -> float:
    """CPU time of a call before over that after: the least of some turns each."""
    times: dict[int, list[float]] = {0: [], 1: []}
    for graph in (before, after):
        graph(call)
    for _ in range(TURNS):
        for number, graph in enumerate((before, after)):
            start = time.process_time()
            graph(call)
            times[number].append(time.process_time() - start)
    return min(times[0]) / min(times[1])
