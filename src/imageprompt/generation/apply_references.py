"""References: opened before the base is loaded; attached, encoded and used afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.core.errors import PromptError
from imageprompt.generation.reference import Reference, as_list
from imageprompt.generation.request import Request
from imageprompt.loading import LoadedAdapter, LoadedPipeline, LocatedAdapter
from imageprompt.loading.recipe import AssetRecord, ReferenceMetadata

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.adapter.adapter import Adapter
    from imageprompt.encoding.image_prompt import ImagePrompt
    from imageprompt.library import Style


@dataclass(frozen=True)
class OpenedReference:
    """A reference, and everything of it that can be opened without the base."""

    reference: Reference
    pictures: Sequence[Image]
    negative: Sequence[Image]
    mask: Any
    style: Style | None
    adapter: LocatedAdapter | Adapter
    """The located file, or the object that the user passed."""
    records: Mapping[str, Any]
    """Fields of ReferenceMetadata."""

    @classmethod
    def open(
        cls, reference: Reference, request: Request, base_folder: Path | None
    ) -> OpenedReference:
        """Raises PictureError, OptionError, NotFoundError, PromptError."""
        pictures, picture_records = loading.open_references(reference.pictures)
        negative, negative_records = loading.open_references(as_list(reference.negative_reference))
        mask, style = None, None
        if reference.mask is not None:
            from imageprompt.encoding.masks import open_mask

            mask = open_mask(reference.mask)
        if reference.style is not None:
            from imageprompt.library import Library

            style = Library(request.library).show(reference.style)
        records = {
            "pictures": picture_records,
            "negative_reference": negative_records,
            "face_embeddings": loading.open_embeddings(reference.embeddings),
            "reference_mask": tuple(map(loading.record_of, as_list(reference.reference_mask))),
            "mask": None if mask is None else loading.record_of(reference.mask),
            "style": style and AssetRecord(name=style.name, hash=style.hash),
        }
        adapter = _locate_adapter(reference, request, base_folder, style)
        return cls(reference, pictures, negative, mask, style, adapter, records)

    @property
    def attachment(self) -> tuple[object, ...]:
        """References that agree in this share an attached adapter."""
        reference = self.reference
        return (
            self.adapter.path if isinstance(self.adapter, LocatedAdapter) else id(self.adapter),
            reference.variant,
            _identity(reference.encoder),
            _identity(reference.faces),
            reference.lora_mode,
        )

    def metadata(self, loaded: LoadedAdapter, prompt: ImagePrompt) -> ReferenceMetadata:
        """What a recipe keeps of it."""
        reference = self.reference
        current: dict[str, Any] = {
            "adapter": loaded.record,
            "mask": self.records["mask"],
            "controls": reference.effective_controls.as_dict(),
            "lora_mode": reference.lora_mode,
        }
        if reference.tokens_from_recipe and reference.replayed_from is not None:
            return replace(reference.replayed_from, **current)
        return ReferenceMetadata(
            **{**self.records, **current},
            encoder=_recorded_model(prompt, "encoder", loaded.encoder),
            faces=_recorded_model(prompt, "faces", loading.path_of(reference.faces)),
            encode_options=reference.recorded_options,
        )

    def check_replay(self, metadata: ReferenceMetadata, request: Request) -> None:
        """Was it encoded by the same models as for the recipe, or is its style the same?

        Raises OptionError.
        """
        recorded = self.reference.replayed_from
        if recorded is None or "adapter" in request.changed:  # it may read with another encoder
            return
        for name in ("style",) if self.reference.encoded else ("encoder", "faces"):
            now = getattr(metadata, name)
            if now is not None:
                request.check_same_hash(name, getattr(recorded, name), now)


def _identity(value: object) -> object:
    """Equal for the same folder, or for the same object."""
    return os.fspath(value) if isinstance(value, str | os.PathLike) else id(value)


def _recorded_model(prompt: ImagePrompt, kind: str, name: str | None) -> AssetRecord | None:
    found = prompt.metadata.get(kind)
    return None if found is None else AssetRecord(name=name, hash=found)


def _locate_adapter(
    reference: Reference, request: Request, base_folder: Path | None, style: Style | None
) -> LocatedAdapter | Adapter:
    adapter: Any = reference.adapter
    cached_only = reference.replayed_from is not None and request.cached_only("adapter")
    if adapter is None and style is not None:  # a name in a file must not cause a download
        adapter, cached_only = style.adapter.name, True
    if not isinstance(adapter, str | os.PathLike | None):
        loaded: Adapter = adapter
        return loaded
    return loading.find_adapter(adapter, base_folder, cached_only=cached_only)


@contextmanager
def apply_references(
    opened: Sequence[OpenedReference], request: Request, base: LoadedPipeline, pipe: Any
) -> Iterator[list[tuple[ReferenceMetadata, ImagePrompt]]]:
    """Inside the block, `pipe` uses all references; afterwards it is as it was."""
    loaded: dict[tuple[object, ...], LoadedAdapter] = {}
    applied = []
    with ExitStack() as stack:
        for one in opened:
            if one.attachment not in loaded:
                sharing = [other for other in opened if other.attachment == one.attachment]
                loaded[one.attachment] = _attach(sharing, request, base, pipe)
                stack.callback(loaded[one.attachment].adapter.detach)
        for one in opened:
            adapter = loaded[one.attachment].adapter
            prompt = _image_prompt(one, adapter, request)
            controls = one.reference.effective_controls
            stack.enter_context(
                adapter.use(prompt, guidance=request.layout, controls=controls, mask=one.mask)
            )
            metadata = one.metadata(loaded[one.attachment], prompt)
            one.check_replay(metadata, request)
            applied.append((metadata, prompt))
        yield applied


def _attach(
    sharing: Sequence[OpenedReference], request: Request, base: LoadedPipeline, pipe: Any
) -> LoadedAdapter:
    """Load and attach the adapter that these references share."""
    first = sharing[0]
    reference = first.reference
    adapter, record = loading.load_adapter(first.adapter, pipe, reference.variant)
    if reference.replayed_from is not None:
        request.check_same_hash("adapter", reference.replayed_from.adapter, record)
    return loading.attach_adapter(
        adapter,
        record,
        base,
        pipe,
        encoder=reference.encoder,
        faces=reference.faces,
        lora_mode=reference.lora_mode,
        reads_pictures=any(one.pictures or one.negative for one in sharing),
        quiet=not request.progress,
    )


def _image_prompt(opened: OpenedReference, adapter: Adapter, request: Request) -> ImagePrompt:
    from imageprompt.encoding.image_prompt import ImagePrompt

    reference = opened.reference
    if opened.style is not None:
        from imageprompt.library import Library

        return Library(request.library).open(opened.style.name, adapter)
    if reference.image_prompt is None:
        options = reference.encode_options
        if opened.negative:
            options = replace(options, negative=list(opened.negative))
        return adapter.encoding.encode(
            list(opened.pictures) or None,
            None,
            None,
            options,
            embeddings=reference.embeddings or None,
            face=reference.face,
        )
    given = reference.image_prompt
    prompt = given if isinstance(given, ImagePrompt) else ImagePrompt.load(given)
    if len(prompt) != 1:
        raise PromptError(
            f"an image prompt for {len(prompt)} prompts",
            reason="generate() takes one for a single prompt",
            hint="Call the pipeline yourself, inside adapter.use().",
        )
    return prompt
