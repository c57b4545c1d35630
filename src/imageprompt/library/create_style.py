"""What a new style consists of: tokens, features, embedding, thumbnail, recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from imageprompt import loading
from imageprompt.core.errors import PromptError
from imageprompt.encoding.features import Group
from imageprompt.library import embeddings, thumbnail
from imageprompt.library.mix_styles import Mixed
from imageprompt.library.style import Style
from imageprompt.library.style_file import Held, held_features, token_hash
from imageprompt.loading.recipe import AssetRecord

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter

# What a style says elsewhere; all else in a prompt's metadata is its recipe.
_APART = ("variant", "projector", "encoder", "references")


def encoded(
    name: str,
    tags: tuple[str, ...],
    adapter: Adapter,
    pictures: Any,
    features: Group | None,
    made_with: Mapping[str, str | None],
    encoding: Mapping[str, Any],
) -> Style:
    """A style out of references. Raises what encoding raises, and PromptError for a batch."""
    opened, references = loading.open_references(_listed(pictures))
    prompt = adapter.encode(opened or None, features=features, **encoding)
    references += tuple(map(loading.record_of, _listed(encoding.get("embeddings"))))
    if len(prompt) != 1:
        raise PromptError(
            f"references for {len(prompt)} prompts",
            reason="a style is one prompt's",
            hint="Give one list of pictures.",
        )
    read = None if prompt.features is None else prompt.features[0]
    embedding = embeddings.pooled(opened, adapter.encoder)
    if embedding is None:
        embedding = _pooled_features(read)
    spec, encoder = adapter.spec, _encoder(prompt.metadata, made_with)
    recipe = {key: value for key, value in prompt.metadata.items() if key not in _APART}
    if made_with.get("base"):
        recipe["base"] = str(made_with["base"])
    tensors = _tensors(prompt.tokens, prompt.null_tokens, read, embedding)
    if opened:
        tensors["thumbnail"] = thumbnail.held(thumbnail.of_references(opened))
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


def mixed(
    name: str,
    tags: tuple[str, ...],
    styles: Sequence[Style],
    shares: Mapping[str, float],
    made: Mixed,
) -> Style:
    """A style out of others; its references are all of theirs, each once."""
    tensors = _tensors(made.tokens, made.null_tokens, made.features, made.embedding)
    pictures = [(thumbnail.read(style), shares[style.name]) for style in styles]
    seen = [(picture, share) for picture, share in pictures if picture is not None]
    if len(seen) == len(pictures):
        strips = thumbnail.of_shares([x for x, _ in seen], [share for _, share in seen])
        tensors["thumbnail"] = thumbnail.held(strips)
    recipe: dict[str, Any] = {
        "mix": {part: round(share, 6) for part, share in shares.items()},
        "of": made.of,
        "hashes": {style.name: style.hash for style in styles},
        **{name: f"{value:g}" for name, value in made.how.items()},
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
) -> dict[str, Held]:
    tensors = {"tokens": Held.of(tokens)} | held_features(features)
    if null is not None:
        tensors["null_tokens"] = Held.of(null)
    if embedding is not None:
        tensors["embedding"] = Held.of(embedding)
    return tensors


def _encoder(
    metadata: Mapping[str, str], made_with: Mapping[str, str | None]
) -> AssetRecord | None:
    """What saw the references: the image encoder, or the face recogniser where there is none."""
    for kind in ("encoder", "faces"):
        if kind in metadata:
            return AssetRecord(name=made_with.get(kind), hash=metadata[kind])
    return None


def _pooled_features(features: Group | None) -> Tensor | None:
    """Features that are one vector a reference, as faces' are."""
    first = features[0] if isinstance(features, tuple) else features
    return first if first is not None and first.ndim == 2 else None


def _listed(given: Any) -> list[Any]:
    """None, one or several."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _file_name(name: str | None) -> str | None:
    """Without its folders, which are nobody's business where the style goes."""
    return None if name is None else Path(os.fspath(name)).name.encode(errors="replace").decode()
