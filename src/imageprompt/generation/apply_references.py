"""What is shown: found and opened before the base is loaded, attached, encoded and used after."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.core.errors import PromptError
from imageprompt.encoding.masks import open_mask
from imageprompt.generation.reference import Reference, as_list
from imageprompt.generation.request import Request
from imageprompt.library import Library, Style
from imageprompt.loading import AdapterChoice, Base
from imageprompt.loading.recipe import Shown, Source

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.adapter.adapter import Adapter
    from imageprompt.encoding.image_prompt import ImagePrompt


@dataclass(frozen=True)
class Entry:
    """One reference with everything opened that can be without the base."""

    reference: Reference
    pictures: Sequence[Image]
    negative: Sequence[Image]
    mask: Any
    style: Style | None
    choice: AdapterChoice | None
    """None for an adapter that the user brought."""
    sources: Mapping[str, Any]
    """What a recipe keeps: fields of Shown."""

    @classmethod
    def open(cls, reference: Reference, request: Request, folder: Path | None) -> Entry:
        """Raises PictureError, OptionError, NotFoundError, PromptError."""
        pictures, references = loading.open_references(reference.pictures)
        negative, kept = loading.open_references(as_list(reference.negative_reference))
        mask = None if reference.mask is None else open_mask(reference.mask)
        style = None
        if reference.style is not None:
            style = Library(request.library).show(reference.style)
        sources = {
            "references": references,
            "negative": kept,
            "embeddings": loading.open_embeddings(reference.embeddings),
            "reference_mask": tuple(map(loading.source_of, as_list(reference.reference_mask))),
            "mask": None if mask is None else loading.source_of(reference.mask),
            "style": style and Source(name=style.name, hash=style.hash),
        }
        choice = _choice(reference, request, folder, style)
        return cls(reference, pictures, negative, mask, style, choice, sources)

    @property
    def adapter(self) -> tuple[Any, ...]:
        """Entries that agree in this share an adapter."""
        asked = self.reference
        which = id(asked.adapter) if self.choice is None else self.choice.path
        return (which, asked.variant, _same(asked.encoder), _same(asked.faces), asked.lora_mode)

    def shown(self, adapter: Source, encoder: str | None, prompt: ImagePrompt) -> Shown:
        """What a recipe says of it."""
        asked = self.reference
        now = {"adapter": adapter, "mask": self.sources["mask"], "controls": asked.asked.as_dict()}
        if asked.kept and asked.repeats is not None:
            return replace(asked.repeats, **now)
        pack = asked.faces if isinstance(asked.faces, str | os.PathLike) else None
        return Shown(
            **{**self.sources, **now},
            encoder=_made_by(prompt, "encoder", encoder),
            faces=_made_by(prompt, "faces", None if pack is None else os.fspath(pack)),
            how=asked.how,
        )

    def check_repeats(self, shown: Shown, request: Request) -> None:
        """Was it encoded by what encoded it for the recipe, or is its style that one still?
        Raises OptionError."""
        was = self.reference.repeats
        if was is None or "adapter" in request.changed:  # another may read with another encoder
            return
        for name in ("style",) if self.reference.ready else ("encoder", "faces"):
            now = getattr(shown, name)
            if now is not None:
                request.must_be(name, getattr(was, name), now)


def _same(given: Any) -> object:
    """Equal for the same folder, or for the same object."""
    return os.fspath(given) if isinstance(given, str | os.PathLike) else id(given)


def _made_by(prompt: ImagePrompt, what: str, name: str | None) -> Source | None:
    found = prompt.metadata.get(what)
    return None if found is None else Source(name=name, hash=found)


@dataclass(frozen=True)
class Attached:
    """An adapter on the base, and how a recipe names it and what it reads pictures with."""

    adapter: Adapter
    source: Source
    encoder: str | None


def _choice(
    reference: Reference, request: Request, folder: Path | None, style: Style | None
) -> AdapterChoice | None:
    named = reference.adapter
    only = reference.repeats is not None and request.cached_only("adapter")
    if named is None and style is not None:  # what a file names is not downloaded
        named, only = style.adapter.name, True
    if not isinstance(named, str | Path | None):
        return None
    return loading.find_adapter(named, folder, cached_only=only)


@contextmanager
def showing(
    entries: Sequence[Entry], request: Request, base: Base, pipe: Any
) -> Iterator[list[tuple[Shown, ImagePrompt]]]:
    """While the block runs, the base listens to all entries; afterwards it is as it was."""
    attached: dict[tuple[Any, ...], Attached] = {}
    found = []
    with ExitStack() as stack:
        for entry in entries:
            if entry.adapter not in attached:
                alike = [other for other in entries if other.adapter == entry.adapter]
                attached[entry.adapter] = _attached(alike, request, base, pipe)
                stack.callback(attached[entry.adapter].adapter.detach)
        for entry in entries:
            on = attached[entry.adapter]
            prompt = _prompt(entry, on.adapter, request)
            asked = entry.reference.asked
            stack.enter_context(
                on.adapter.use(prompt, guidance=request.layout, controls=asked, mask=entry.mask)
            )
            shown = entry.shown(on.source, on.encoder, prompt)
            entry.check_repeats(shown, request)
            found.append((shown, prompt))
        yield found


def _attached(entries: Sequence[Entry], request: Request, base: Base, pipe: Any) -> Attached:
    """The adapter that these entries share, attached."""
    first = entries[0]
    asked = first.reference
    if first.choice is None:
        adapter, source = asked.adapter, loading.brought_adapter(asked.adapter)
    else:
        adapter, source = loading.load_adapter(first.choice, pipe, asked.variant)
    if asked.repeats is not None:
        request.must_be("adapter", asked.repeats.adapter, source)
    encoder, name = None, None
    reads = any(entry.pictures or entry.negative for entry in entries)
    lacks = adapter.encoder is None and not adapter.spec.feature.faces_only
    if reads and (lacks or asked.encoder is not None):
        encoder, name = loading.find_encoder(asked.encoder, adapter.spec, base, source.name)
    with loading.quiet_loading(not request.progress):
        adapter.attach(pipe, encoder=encoder, faces=asked.faces, lora=asked.lora_mode)
    return Attached(adapter, source, name)


def _prompt(entry: Entry, adapter: Adapter, request: Request) -> ImagePrompt:
    from imageprompt.encoding.image_prompt import ImagePrompt

    asked = entry.reference
    if entry.style is not None:
        return Library(request.library).open(entry.style.name, adapter)
    if asked.image_prompt is None:
        how: dict[str, Any] = {**asked.mixture, "face": asked.face}
        if entry.negative:
            how["negative"] = list(entry.negative)
        if asked.embeddings:
            how["embeddings"] = asked.embeddings
        return adapter.encode(list(entry.pictures) or None, **how)
    given = asked.image_prompt
    prompt = given if isinstance(given, ImagePrompt) else ImagePrompt.load(given)
    if len(prompt) != 1:
        raise PromptError(
            f"an image prompt for {len(prompt)} prompts",
            reason="generate() has one",
            hint="Use adapter.use() and the pipeline itself.",
        )
    return prompt
