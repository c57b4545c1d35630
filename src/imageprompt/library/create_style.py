"""New styles, from references or as a mix: tokens, features, embedding, thumbnail, recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from imageprompt import loading
from imageprompt.core.errors import PromptError
from imageprompt.encoding.features import Group
from imageprompt.library import thumbnail
from imageprompt.library.mix_styles import StyleMix
from imageprompt.library.search import pooled_embeddings
from imageprompt.library.style import Style
from imageprompt.library.style_file import StoredBytes, features_to_tensors, token_hash
from imageprompt.loading.recipe import AssetRecord

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.adapter.adapter import Adapter

# Metadata of a prompt that a style keeps elsewhere; the rest is its recipe.
_NOT_IN_RECIPE = ("variant", "projector", "encoder", "references")


def from_references(
    name: str,
    tags: tuple[str, ...],
    adapter: Adapter,
    pictures: Any,
    features: Group | None,
    made_with: Mapping[str, str | None],
    encode_options: Mapping[str, Any],
) -> Style:
    """A style from references. Raises what encoding raises, and PromptError for a batch."""
    opened, references = loading.open_references(_as_list(pictures))
    prompt = adapter.encode(opened or None, features=features, **encode_options)
    references += tuple(map(loading.record_of, _as_list(encode_options.get("embeddings"))))
    if len(prompt) != 1:
        raise PromptError(
            f"references for {len(prompt)} prompts",
            reason="a style holds one",
            hint="Give one list of pictures.",
        )
    read = None if prompt.features is None else prompt.features[0]
    embedding = pooled_embeddings(opened, adapter.encoder)
    if embedding is None:
        embedding = _pooled_features(read)
    spec, encoder = adapter.spec, _encoder(prompt.metadata, made_with)
    recipe = {key: value for key, value in prompt.metadata.items() if key not in _NOT_IN_RECIPE}
    if made_with.get("base"):
        recipe["base"] = str(made_with["base"])
    tensors = _tensors(prompt.tokens, prompt.null_tokens, read, embedding)
    if opened:
        tensors["thumbnail"] = _stored(thumbnail.of_references(opened))
    return Style(
        name=name,
        tags=tags,
        adapter=AssetRecord(
            name=made_with.get("adapter"),
            hash=adapter.fingerprint(),
            spec={
                "variant": spec.variant,
                "host": spec.host,
                "feature": str(spec.feature),
                "feature_width": spec.feature_dim,
            },
        ),
        encoder=encoder,
        references=tuple(
            AssetRecord(name=_file_name(one.name), hash=one.hash) for one in references
        ),
        recipe=recipe,
        hash=token_hash(tensors),
        tensors=tensors,
    )


def from_mix(
    name: str,
    tags: tuple[str, ...],
    styles: Sequence[Style],
    shares: Mapping[str, float],
    mix: StyleMix,
) -> Style:
    """A style from a mix of others; its references are all of theirs, without duplicates."""
    tensors = _tensors(mix.tokens, mix.null_tokens, mix.features, mix.embedding)
    pictures = [thumbnail.read(style) for style in styles]
    known = [picture for picture in pictures if picture is not None]
    if len(known) == len(pictures):
        strips = thumbnail.of_shares(known, [shares[style.name] for style in styles])
        tensors["thumbnail"] = _stored(strips)
    recipe: dict[str, Any] = {
        "mix": {part: round(share, 6) for part, share in shares.items()},
        "of": mix.of,
        "hashes": {style.name: style.hash for style in styles},
        **{name: f"{value:g}" for name, value in mix.encode_options.items()},
    }
    if "base" in styles[0].recipe:
        recipe["base"] = styles[0].recipe["base"]
    references = {one.hash: one for style in styles for one in style.references}
    return Style(
        name=name,
        tags=tags,
        adapter=styles[0].adapter,
        encoder=styles[0].encoder,
        references=tuple(references.values()),
        recipe=recipe,
        hash=token_hash(tensors),
        tensors=tensors,
    )


def _tensors(
    tokens: Tensor, null: Tensor | None, features: Group | None, embedding: Tensor | None
) -> dict[str, StoredBytes]:
    tensors = {"tokens": StoredBytes.of(tokens)} | features_to_tensors(features)
    if null is not None:
        tensors["null_tokens"] = StoredBytes.of(null)
    if embedding is not None:
        tensors["embedding"] = StoredBytes.of(embedding)
    return tensors


def _encoder(
    metadata: Mapping[str, str], made_with: Mapping[str, str | None]
) -> AssetRecord | None:
    """The image encoder, or without one the face recogniser."""
    for kind in ("encoder", "faces"):
        if kind in metadata:
            return AssetRecord(name=made_with.get(kind), hash=metadata[kind])
    return None


def _pooled_features(features: Group | None) -> Tensor | None:
    """Features with one vector per reference, such as face embeddings; else None."""
    first = features[0] if isinstance(features, tuple) else features
    return first if first is not None and first.ndim == 2 else None


def _as_list(value: Any) -> list[Any]:
    """None, one value or several, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _file_name(name: str | None) -> str | None:
    """Without its folders, which are private and useless elsewhere."""
    return None if name is None else Path(os.fspath(name)).name.encode(errors="replace").decode()


def _stored(picture: Image) -> StoredBytes:
    """A thumbnail as a tensor of bytes."""
    content = thumbnail.encode(picture)
    return StoredBytes("U8", (len(content),), content)
