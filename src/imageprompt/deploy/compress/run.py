"""`compress`: opens the models, searches for ranks, measures, and writes the files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imageprompt import loading
from imageprompt.adapter.adapter import Adapter
from imageprompt.adapter.attachment import AttachedDenoiser
from imageprompt.adapter.build import text_weights
from imageprompt.core import bundled
from imageprompt.core.atomic_files import check_folder
from imageprompt.core.errors import AdapterFileError, OptionError
from imageprompt.demo import judge, pipeline, scenes
from imageprompt.deploy.compress.low_rank import Matrix, second_moment
from imageprompt.deploy.compress.measure import Measure, image_tokens
from imageprompt.deploy.compress.result import Attributes, Block, Budget, Compression
from imageprompt.deploy.compress.search import Choice, Search
from imageprompt.deploy.compress.write import write_expanded, write_light
from imageprompt.encoding.images.open_image import open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

FITTED, MEASURED = 256, 16
"""Drawn references. The tokens of all that are fitted decide which directions matter; the errors
that decide the ranks are measured on so many of them, and those that are told on so many others."""
MAX_REFERENCES = 256
PICTURES, MAX_PICTURES = 24, 10_000
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
_DTYPES = {"int8": None, "float16": torch.float16, "float32": torch.float32}
_TIGHTER = 0.9  # the target for the fitted references, where the others had a larger error
_ATTEMPTS = 5


def compress(
    adapter: str | os.PathLike[str] = bundled.DEFAULT_ADAPTER,
    base: Any = bundled.NAME,
    *,
    budget: Budget | None = None,
    error: float | None = None,
    references: str | os.PathLike[str] | None = None,
    output: Path | None = None,
    dtype: str = "int8",
    encoder: Any = None,
    device: str | None = None,
    pictures: int = PICTURES,
    on_step: Callable[[], object] = lambda: None,
) -> Compression:
    """A lighter adapter for one base: within a `budget` of parameters, or an `error`.

    `error` is that of the guided prediction over the adapter's whole effect. `references` is a
    folder of pictures, of which every second one is fitted and the others are measured; by default
    scenes are drawn. `output` is a folder for `{name}-light.safetensors` and
    `{name}-expanded.safetensors`. On a bundled stack so many `pictures` are generated with both
    adapters and read by the judge. Raises OptionError, NotFoundError, AdapterFileError,
    WrongBaseError, EncoderError, AttachError.
    """
    if (budget is None) == (error is None):
        raise OptionError(
            "compress", reason="needs a budget or an error", hint="Give one of them, not both."
        )
    if error is not None and not 0 < error < 1:
        raise OptionError(f"error {error:g}", reason="not between 0 and 1")
    if dtype not in _DTYPES:
        raise OptionError(f"dtype {dtype!r}", reason=f"not one of {', '.join(_DTYPES)}")
    if not 0 <= pictures <= MAX_PICTURES:
        raise OptionError(f"pictures {pictures}", reason=f"not from 0 to {MAX_PICTURES}")
    output = None if output is None else check_folder(output)
    fitted, measured = open_pictures(references, FITTED)
    folder = loading.base_folder(base)
    located = loading.find_adapter(adapter, folder, cached_only=False)
    loaded = loading.load_base(base, folder, dtype=None, device=device, bars=False)
    loaded.pipe.set_progress_bar_config(disable=True)
    if references is None:
        warn_of_drawn(loaded.name)
    with loading.few_threads(loaded):
        work = Work(loaded, located, encoder, fitted, measured, dtype, on_step, budget)
        choice = work.within(budget) if error is None else work.under(error)
        made = work.result(choice, pictures)
        if output is not None:
            made = work.write(made, choice, output)
    return made


def warn_of_drawn(base: str | None) -> None:
    """Warns that drawn scenes stand in for references of a base that does not know them."""
    if base not in bundled.ONE_OBJECT:
        warnings.warn(
            "no references: scenes are drawn, unlike what this base generates."
            " Give a folder of pictures like those you use",
            stacklevel=3,
        )


def open_pictures(
    references: str | os.PathLike[str] | None, drawn: int = MEASURED
) -> tuple[list[Image], list[Image]]:
    """Those to fit (so many, where they are drawn) and those to measure.

    Raises OptionError, PictureError.
    """
    if references is None:
        fitted, measured = (
            [scenes.draw(scene) for scene in islice(scenes.stream(split, seed=40_000), count)]
            for split, count in (("validation", drawn), ("test", MEASURED))
        )
        return fitted, measured
    folder = Path(references).expanduser()
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [path for path in names if path.suffix.lower() in _SUFFIXES][:MAX_REFERENCES]
    if len(paths) < 2:
        raise OptionError(
            f"references {str(references)!r}",
            reason=f"{len(paths)} pictures in a folder; some are fitted, others measured",
            hint="Give a folder with two or more .png, .jpg or .webp pictures, better 32.",
        )
    opened = [open_picture(path) for path in paths]
    return opened[::2], opened[1::2]


class Work:
    """An adapter attached to its base, and everything that is measured of it."""

    def __init__(
        self,
        base: loading.LoadedPipeline,
        located: loading.LocatedAdapter,
        encoder: Any,
        fitted: Sequence[Image],
        measured: Sequence[Image],
        dtype: str,
        on_step: Callable[[], object],
        budget: Budget | None = None,
    ) -> None:
        """Raises OptionError for a `budget` that cannot be met, before anything is measured."""
        self.base, self.located, self.dtype = base, located, dtype
        self.adapter = Adapter.load(located.path, dtype=torch.float32, base=base.pipe)
        _check_compressible(located.name, self.adapter)
        attached = loading.attach_adapter(
            self.adapter, loading.adapter_record(self.adapter, located), base, encoder=encoder
        )
        self.encoder = attached.adapter.encoder
        on = AttachedDenoiser.of(base.pipe)
        text = text_weights(on)
        module = self.adapter.module
        weights: dict[str, torch.Tensor] = dict(module.named_parameters())
        self.before = sum(weight.numel() for weight in weights.values())
        names = {
            f"ip_adapter.{site.file_id}.to_{kind}_ip.weight": (site.name, kind)
            for site in on.spec.sites
            for kind in "kv"
        }
        self.key_values = sum(weights[name].numel() for name in names if name in weights)
        self._least = min(
            (sum(weights[name].shape) for name in names if name in weights), default=0
        )
        if budget is not None:
            self._allowed(budget)
        fit = Measure(base.pipe, on.denoiser, self.adapter, fitted[:MEASURED])
        moment = second_moment(image_tokens(self.adapter, fitted))
        self.matrices = [
            Matrix.of(name, _block(site), kind, weights[name], text.get(name), moment)
            for name, (site, kind) in names.items()
            if name in weights
        ]
        _check_trained(located.name, self.matrices, fit.effect)
        int8 = dtype == "int8"
        self.search = Search(self.matrices, weights, fit, int8=int8, on_step=on_step)
        measure = Measure(base.pipe, on.denoiser, self.adapter, measured, seed=1)
        self.check = self.search.on(measure)
        self.counts = len(fitted), len(measured)

    @property
    def rest(self) -> int:
        """Parameters that stay as they are: the projector above all."""
        return self.before - self.key_values

    def within(self, budget: Budget | None) -> Choice:
        """Raises OptionError for a budget that the projector alone exceeds."""
        assert budget is not None
        found = self.search.within_budget(self._allowed(budget))
        assert found is not None
        return found

    def _allowed(self, budget: Budget) -> int:
        """Parameters of K' and V'."""
        if budget.share is not None:
            allowed = int(budget.share * self.key_values)
        else:
            assert budget.parameters is not None
            allowed = budget.parameters - self.rest
        nearest = self.rest + self._least
        if allowed < self._least:
            raise OptionError(
                f"budget {budget}",
                reason=f"{self.rest:,} parameters are the projector, which stays as it is",
                hint=f"The nearest is {nearest:,}; a variant with a smaller projector "
                "needs less (imageprompt variants).",
            )
        return allowed

    def under(self, error: float) -> Choice:
        """Raises OptionError for an error that no ranks have."""
        target = error
        for _ in range(_ATTEMPTS):
            found = self.search.within_error(target)
            if found is None:
                break
            actual = self.check.error(found.ranks, found.dropped)
            if actual <= error:
                return found
            target *= _TIGHTER * error / actual
        nearest = self.check.error({one.name: min(one.difference.shape) for one in self.matrices})
        raise OptionError(
            f"error {error:g}",
            reason=f"no ranks reach it in {self.dtype}; the nearest is {nearest:.2g}",
            hint="Allow more, or store float16 (--dtype float16)." if self.dtype == "int8" else "",
        )

    def result(self, choice: Choice, pictures: int) -> Compression:
        """What the choice costs, measured on references that were not fitted."""
        blocks = []
        for block in self.search.blocks:
            own = [one for one in self.matrices if one.block == block]
            ranks = {one.name: choice.ranks[one.name] for one in own}
            gone = choice.dropped & {block}
            blocks.append(
                Block(
                    name=block,
                    ranks=tuple(ranks.values()),
                    parameters=sum(one.cost(ranks[one.name]) for one in own),
                    before=sum(one.size for one in own),
                    error=self.check.error(ranks, gone),
                    dropped=bool(gone),
                )
            )
        self.search.set_all(choice)
        try:
            after = self.check.measured()
            match = self._attributes(choice, pictures) if pictures else None
        finally:
            self.search.restore(self.matrices)
        return Compression(
            adapter=self.located.name,
            base=self.base.name or "a loaded pipeline",
            parameters=self.rest + choice.parameters,
            parameters_before=self.before,
            key_values=choice.parameters,
            key_values_before=self.key_values,
            error=after,
            dtype=self.dtype,
            fitted=self.counts[0],
            measured=self.counts[1],
            blocks=tuple(blocks),
            attributes=match,
        )

    def _attributes(self, choice: Choice, count: int) -> Attributes | None:
        """Only on a bundled stack, whose judge reads its pictures."""
        if self.base.name not in bundled.ONE_OBJECT:
            return None
        drawn = list(islice(scenes.stream("test", seed=50_000), count))
        after = self.read(drawn)
        self.search.restore(self.matrices)
        return Attributes(pictures=count, before=self.read(drawn), after=after)

    def read(self, drawn: Sequence[scenes.Scene]) -> Mapping[str, float]:
        """Attribute -> share of the pictures that have the reference's word; and of all five."""
        made = pipeline.sample(
            self.base.pipe,
            [""] * len(drawn),
            range(len(drawn)),
            adapter=self.adapter,
            references=[scenes.draw(scene) for scene in drawn],
        )
        return judge.shares(made, drawn)

    def write(self, made: Compression, choice: Choice, output: Path) -> Compression:
        """The two files; returns what was made with their names."""
        output.mkdir(parents=True, exist_ok=True)
        stem = self.located.path.stem
        light = output / f"{stem}-light.safetensors"
        whole = output / f"{stem}-expanded.safetensors"
        write_light(
            light,
            self.adapter,
            {one.name: one for one in self.matrices},
            choice,
            base=_shareable(self.base.name or ""),
            dtype=_DTYPES[self.dtype],
        )
        write_expanded(whole, light, self.base.pipe)
        return replace(made, files={"light": str(light), "expanded": str(whole)})


def _shareable(base: str) -> str:
    """The name of a base, without the place of its folder on this machine."""
    return Path(base).name if Path(base).expanduser().is_dir() else base


def _block(site: str) -> str:
    """The attention block of a site: what stands before its transformer blocks."""
    return site.split(".transformer_blocks.")[0]


def _check_compressible(name: str, adapter: Adapter) -> None:
    """Raises OptionError for adapters that pictures alone cannot measure, or without K' and V'."""
    reads_faces, timed = adapter.spec.feature.reads_faces, adapter.spec.is_timed
    if adapter.module.sites and not adapter.module.loras and not reads_faces and not timed:
        return
    if adapter.module.loras or reads_faces:
        reason = "it reads faces, or has LoRA: pictures alone cannot measure it"
    elif timed:
        reason = "its tokens depend on the timestep"
    else:
        reason = "it has no K' and V' of its own"
    raise OptionError(
        f"compress {name} ({adapter.spec.variant})",
        reason=reason,
        hint="Write it in int8 instead: imageprompt convert FILE SMALL.safetensors --dtype int8",
    )


def _check_trained(name: str, matrices: Sequence[Matrix], effect: float) -> None:
    """Raises AdapterFileError for an adapter that was never trained."""
    untrained = all(not one.difference.any() for one in matrices)
    if untrained or not effect > 0:
        raise AdapterFileError(
            name,
            reason="nothing was trained: its K' and V' are the base's own, or change nothing",
            hint="Use a later checkpoint.",
        )
