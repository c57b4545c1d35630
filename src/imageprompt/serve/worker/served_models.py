"""What a worker serves: one engine, and adapters by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from imageprompt import loading
from imageprompt.checkpoint.read.open import open_source
from imageprompt.core import bundled
from imageprompt.core.errors import ImagePromptError, OptionError, PictureError
from imageprompt.core.hub import PARTS, part_of, split_part
from imageprompt.core.untrusted import read_regular
from imageprompt.generation.engine import Engine
from imageprompt.generation.reference import Reference
from imageprompt.generation.replay import load_tokens
from imageprompt.generation.request import Request
from imageprompt.hosts import denoiser_of, host_of
from imageprompt.library import Library
from imageprompt.loading.recipe import AssetRecord, Recipe, read_picture
from imageprompt.serve import sources
from imageprompt.serve.request_body import checked_request
from imageprompt.serve.settings import Settings

MAX_UPLOAD = 2**30


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter under the name that requests use; `source` is what the engine is asked for."""

    name: str
    source: str
    variant: str
    kind: str
    """"picture" or "face"."""
    projector: str
    """The fingerprint that a style of this adapter records."""
    hash: str
    """That of its file, which a recipe records."""


class ServedModels:
    """Loads the base and looks at every adapter. Raises an ImagePromptError for a wrong one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.library = Library(settings.library_folder)
        self.engine = Engine(
            base=settings.base,
            dtype=settings.dtype,
            device=settings.device,
            runtime=settings.runtime,
            exported=settings.exported,
        )
        base = self.engine.loaded
        self.folder = base.folder
        self.pipe, self.base_name = base.pipe, _public(base.name or bundled.NAME)
        self.adapters = self._adapters()

    def _adapters(self) -> Mapping[str, ServedAdapter]:
        own = {path.stem: path.stem for path in _own_adapters(self.folder)}
        if twice := own.keys() & self._settings.adapters.keys():
            raise OptionError(
                f"--adapter {min(twice)}",
                reason="the base has an adapter of that name",
                hint="Choose another name.",
            )
        found = {}
        for name, source in self._each_adapter({**own, **self._settings.adapters}):
            located = loading.find_adapter(source, self.folder, cached_only=False)
            adapter = self.engine.adapter_file(located)
            reads_faces = adapter.spec.feature.face is not None
            if reads_faces and self._settings.faces is None:
                if name in own:
                    continue
                raise OptionError(
                    f"--adapter {name}",
                    reason=f"{adapter.spec.variant} reads faces, and nothing finds them here",
                    hint="Name a model pack: --faces PACK.",
                )
            found[name] = ServedAdapter(
                name=name,
                source=source,
                variant=adapter.spec.variant,
                kind="face" if reads_faces else "picture",
                projector=adapter.fingerprint(),
                hash=loading.adapter_record(adapter, located).hash,
            )
        return found

    def _each_adapter(self, named: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Name and source of every adapter; a file with a pair has two."""
        for name, source in named.items():
            located = loading.find_adapter(source, self.folder, cached_only=False)
            if not open_source(located.path).holds_pair:
                yield name, source
                continue
            for part in PARTS:
                yield part_of(name, part), part_of(source, part)

    @property
    def default_adapter(self) -> str | None:
        if bundled.DEFAULT_ADAPTER in self.adapters:
            return bundled.DEFAULT_ADAPTER
        return next(iter(self.adapters), None)

    @cached_property
    def reports_steps(self) -> bool:
        known = inspect.signature(type(self.pipe).__call__).parameters
        return "callback_on_step_end" in known

    def described(self) -> dict[str, Any]:
        """What the server tells its clients of base and adapters."""
        from imageprompt.generation.step_noise import draws_by_eta

        known = inspect.signature(type(self.pipe).__call__).parameters
        own = self.base_name in bundled.FOLDERS
        guidance = known["guidance_scale"].default if "guidance_scale" in known else None
        width, height = loading.default_size(self.pipe)
        base = {
            "name": self.base_name,
            "default": True,
            "family": self._family(),
            "width": width,
            "height": height,
            "multiple": loading.vae_scale_factor(self.pipe),
            "steps": bundled.STEPS if own else known["num_inference_steps"].default,
            "guidance_scale": bundled.guidance(self.base_name) if own else guidance,
            "eta": bundled.eta(self.base_name) if draws_by_eta(self.pipe) else None,
            "batch": self._settings.batch_size,
            "hash": self.engine.loaded.record.hash,
        }
        adapters = [
            {
                "name": one.name,
                "default": one.name == self.default_adapter,
                "variant": one.variant,
                "kind": one.kind,
                "projector": one.projector,
                "hash": one.hash,
            }
            for one in self.adapters.values()
        ]
        return {"base": base, "adapters": adapters}

    def _family(self) -> str | None:
        try:
            denoiser: Any = denoiser_of(self.pipe)
            return host_of(denoiser).describe(denoiser).family
        except ImagePromptError:
            return None

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def request(self, data: Mapping[str, Any], folder: Path) -> Request:
        """A stored request with its pictures read; `folder` has its owner's uploads."""
        request = checked_request(dict(data), self._settings.limits)
        changes = {
            name: _read(getattr(request, name), folder)
            for name in sources.START_PICTURES
            if getattr(request, name) is not None
        }
        references = tuple(
            one if one.empty else self.reference(one, folder) for one in request.references
        )
        request = replace(
            request,
            **changes,
            references=references,
            base=None,  # it is the engine's
            library=str(self.library.folder),
            progress=False,
        )
        request.check()
        return request

    def reference(self, reference: Reference, folder: Path) -> Reference:
        """With pictures in place of names. Raises an ImagePromptError."""
        changes: dict[str, Any] = {
            name: _read(getattr(reference, name), folder)
            for name in sources.PICTURES
            if getattr(reference, name) is not None
        }
        if reference.image_prompt is not None:
            changes["image_prompt"] = _tokens(reference.image_prompt, folder)
        served = self.adapter_for(reference)
        changes["adapter"] = served.source
        if served.kind == "face" and not reference.encoded:
            changes["faces"] = self._settings.faces
        return replace(reference, **changes)

    def adapter_for(self, reference: Reference) -> ServedAdapter:
        """The one it names, the one that made its style, or the default. Raises OptionError."""
        if reference.adapter is None and reference.style is not None:
            made_by = self.library.show(reference.style).adapter.hash
            for one in self.adapters.values():
                if one.projector == made_by:
                    return one
            raise OptionError(
                f"style {reference.style!r}", reason="no adapter that is served made it"
            )
        name = str(reference.adapter or self.default_adapter)
        if name not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise OptionError(f"adapter {name!r}", reason="not served", hint=f"There are: {known}.")
        return self.adapters[name]

    # ── recipes ─────────────────────────────────────────────────────────────────────────────────

    def public_recipe(self, recipe: Recipe) -> Recipe:
        """The recipe without paths of this machine: adapters by their names here."""
        names = {(one.hash, split_part(one.name)[1]): one.name for one in self.adapters.values()}

        def renamed(record: AssetRecord) -> AssetRecord:
            if record.name is None:
                return record
            return replace(
                record,
                name=names.get((record.hash, split_part(record.name)[1])) or _public(record.name),
            )

        references = tuple(
            replace(
                one,
                adapter=renamed(one.adapter),
                encoder=None if one.encoder is None else renamed(one.encoder),
                faces=None if one.faces is None else renamed(one.faces),
            )
            for one in recipe.references
        )
        return replace(recipe, base=renamed(recipe.base), references=references)


def _own_adapters(folder: Path | None) -> list[Path]:
    return [] if folder is None else sorted((folder / "adapters").glob("*.safetensors"))


def _public(name: str) -> str:
    """A Hub id or short name as it is; of a path the last part alone."""
    if os.path.isabs(name) or os.path.exists(name):  # noqa: PTH110, PTH117
        return Path(name).name
    if name.startswith((".", "~")):
        return Path(name).name
    return _inside_base(name)


def _inside_base(name: str) -> str:
    """`/models/base/image_encoder` is no path by itself, but begins with one."""
    head, _, tail = name.rpartition("/")
    if head and (os.path.isabs(head) or os.path.isdir(head)):  # noqa: PTH112, PTH117
        return f"{Path(head).name}/{tail}"
    return name


def _read(value: Any, folder: Path) -> Any:
    if isinstance(value, list | tuple):
        return [_read(each, folder) for each in value]
    return read_upload(sources.upload_of(value), folder)


def read_upload(digest: str, folder: Path) -> bytes:
    """The bytes of an upload. Raises PictureError."""
    try:
        return read_regular(folder / digest, MAX_UPLOAD, inside=folder)
    except OSError as error:
        raise PictureError(
            f"upload:{digest}", reason="not there any more", hint="Send it again."
        ) from error


def _tokens(value: str, folder: Path) -> Any:
    digest, _, index = value.removeprefix("tokens:").partition("/")
    _, tokens = read_picture(folder / digest)
    data = tokens[int(index)] if int(index) < len(tokens) else None
    if data is None:
        raise OptionError(
            value, reason="this PNG has no such tokens", hint="Send the picture itself."
        )
    return load_tokens(data)
