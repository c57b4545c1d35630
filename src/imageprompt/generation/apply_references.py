"""References: opened before the base is loaded; attached, encoded and used afterwards."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.core.errors import PromptError
from imageprompt.generation.reference import Reference, as_list
from imageprompt.generation.request import Request
from imageprompt.loading import LoadedAdapter, LoadedPipeline, LocatedAdapter
from imageprompt.loading.models import KeptAdapter, Models
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
            style.check_part(reference.part)
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
            reference.reading,
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
    opened: Sequence[OpenedReference],
    request: Request,
    base: LoadedPipeline,
    pipe: Any,
    models: Models,
) -> Iterator[list[tuple[ReferenceMetadata, ImagePrompt]]]:
    """Inside the block, `pipe` uses all references; afterwards it is as it was."""
    applied = []
    with ExitStack() as stack:
        kept = attach_references(stack, opened, request, base, pipe, models)
        for one in opened:
            loaded, owner = kept[one.attachment]
            adapter = loaded.adapter
            prompt = image_prompt(one, owner, request)
            controls = one.reference.effective_controls
            stack.enter_context(
                adapter.use(prompt, guidance=request.layout, controls=controls, mask=one.mask)
            )
            metadata = one.metadata(loaded, prompt)
            one.check_replay(metadata, request)
            applied.append((metadata, prompt))
        yield applied


Attached = tuple[LoadedAdapter, KeptAdapter]


def attach_references(
    stack: ExitStack,
    opened: Sequence[OpenedReference],
    request: Request,
    base: LoadedPipeline,
    pipe: Any,
    models: Models,
) -> dict[tuple[object, ...], Attached]:
    """Load and attach the adapters, by `attachment`; the stack detaches those that were not."""
    attached: dict[tuple[object, ...], Attached] = {}
    for one in opened:
        if one.attachment not in attached:
            sharing = [other for other in opened if other.attachment == one.attachment]
            kept = models.adapter(one.attachment, one.adapter, pipe, one.reference)
            before = kept.adapter.attached  # by the user, who detaches it
            attached[one.attachment] = _attach(kept, sharing, request, base, pipe, models)
            if not before:
                stack.callback(kept.adapter.detach)
    return attached


def _attach(
    kept: KeptAdapter,
    sharing: Sequence[OpenedReference],
    request: Request,
    base: LoadedPipeline,
    pipe: Any,
    models: Models,
) -> Attached:
    """Attach the adapter that these references share."""
    reference = sharing[0].reference
    if reference.replayed_from is not None:
        request.check_same_hash("adapter", reference.replayed_from.adapter, kept.record)
    reads_pictures = any(one.pictures or one.negative for one in sharing)
    own = kept.prompts is not None
    if own and not reads_pictures:
        kept.adapter.encoding.encoder = None  # as newly loaded: encoded ones are not compared to it
    loaded = loading.attach_adapter(
        kept.adapter,
        kept.record,
        base,
        pipe,
        encoder=None if own and kept.adapter.encoder is not None else reference.encoder,
        faces=None if own and kept.adapter.encoding.face_encoder is not None else reference.faces,
        lora_mode=reference.lora_mode,
        reads_pictures=reads_pictures,
        quiet=not request.progress,
        open_encoder=partial(models.encoder, kept),
    )
    if own and reads_pictures:
        kept.encoder = loaded.encoder or kept.encoder
        loaded = replace(loaded, encoder=kept.encoder)
    return loaded, kept


def image_prompt(opened: OpenedReference, kept: KeptAdapter, request: Request) -> ImagePrompt:
    """The image prompt of a reference: encoded, unless the same was before."""
    from imageprompt.encoding.image_prompt import ImagePrompt

    reference, adapter = opened.reference, kept.adapter
    if opened.style is not None:
        from imageprompt.library import Library

        return Library(request.library).open(opened.style.name, adapter)
    if reference.image_prompt is None:
        key = None if kept.prompts is None else _content(opened)
        if kept.prompts is None or key is None:
            return _encode(opened, adapter)
        return _copy(kept.prompts.get(key, lambda: _encode(opened, adapter)))
    given = reference.image_prompt
    prompt = given if isinstance(given, ImagePrompt) else ImagePrompt.load(given)
    if len(prompt) != 1:
        raise PromptError(
            f"an image prompt for {len(prompt)} prompts",
            reason="generate() takes one for a single prompt",
            hint="Call the pipeline yourself, inside adapter.use().",
        )
    return prompt


def _encode(opened: OpenedReference, adapter: Adapter) -> ImagePrompt:
    reference = opened.reference
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


def _content(opened: OpenedReference) -> Hashable | None:
    """Equal for references that are encoded to the same; None where that cannot be told."""
    options = replace(opened.reference.encode_options, reference_mask=None, negative=None)
    pictures = tuple((one.mode, one.size) for one in (*opened.pictures, *opened.negative))
    names = ("pictures", "negative_reference", "face_embeddings", "reference_mask")
    hashes = tuple(tuple(record.hash for record in opened.records[name]) for name in names)
    try:
        return pictures, hashes, _content_key(options), _content_key(opened.reference.face)
    except TypeError:
        return None


def _content_key(value: Any) -> Hashable:
    """A key that is equal for equal options. Raises TypeError for arrays, models and the like."""
    if value is None or isinstance(value, str | int | float):
        return (type(value).__name__, value)
    if isinstance(value, list | tuple):
        return tuple(map(_content_key, value))
    if hasattr(value, "__dataclass_fields__"):
        named = (getattr(value, item.name) for item in fields(value))
        return (type(value).__name__, *map(_content_key, named))
    raise TypeError(type(value).__name__)


def _copy(prompt: ImagePrompt) -> ImagePrompt:
    """Its own tensors: writes to them do not reach the one that is kept."""
    from imageprompt.encoding.image_prompt import ImagePrompt

    null = prompt.null_tokens
    return ImagePrompt(
        prompt.tokens.clone(),
        None if null is None else null.clone(),
        prompt.metadata,
        features=prompt.features,
    )
