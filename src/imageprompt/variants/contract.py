"""The interface of a variant: what the other files of this folder implement, and may implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, get_args, runtime_checkable

from imageprompt.core.errors import OptionError
from imageprompt.core.spec import (
    EVERY_KIND,
    Entry,
    Feature,
    HostSpec,
    ImageFeature,
    NullRule,
    ProjectorOptions,
    ProjectorSpec,
    Shape,
    Shapes,
    SiteKind,
)
from imageprompt.variants.tensor_shapes import LORA_RANK

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn


class Variant(Protocol):
    """An adapter architecture, recognised by the shapes of its tensors alone."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def feature(self) -> Feature:
        """What the projector reads."""

    @property
    def null_rule(self) -> NullRule:
        """What stands for "no picture"; see `null_features`."""

    @property
    def options(self) -> tuple[str, ...]:
        """The fields of ProjectorOptions that this variant uses."""

    def read(self, shapes: Shapes) -> ProjectorSpec | None:
        """The projector with these tensors (names without prefix); None if it is another's.

        Some tensors may be missing or have the wrong shape: the template is compared later.
        """

    def propose(
        self, feature_dim: int, cross_attention_dim: int, options: ProjectorOptions
    ) -> ProjectorSpec:
        """The spec of a new projector."""

    def build(self, spec: ProjectorSpec) -> nn.Module:
        """The projector module; its state-dict keys are the `image_proj` keys of files."""


@runtime_checkable
class Templated(Protocol):
    """A variant that gives its projector's tensor shapes without torch, instead of by `build`."""

    def projector_shapes(self, spec: ProjectorSpec) -> dict[str, Shape]: ...


@runtime_checkable
class Sited(Protocol):
    """A variant with other weights at its sites than K' and V', or not at every kind of site."""

    @property
    def site_kinds(self) -> tuple[SiteKind, ...]:
        """The kinds of site where it adds image tokens."""

    def site_shapes(
        self, host: HostSpec, spec: ProjectorSpec, lora_rank: int
    ) -> dict[str, Shape]: ...


_KEY_NORMS: Mapping[SiteKind, float] = dict.fromkeys(EVERY_KIND[1:], 1e-6)


def projector_shapes(variant: Variant, spec: ProjectorSpec) -> dict[str, Shape]:
    """The template of a projector: its tensor names and their shapes."""
    if isinstance(variant, Templated):
        return variant.projector_shapes(spec)
    import torch

    with torch.device("meta"):
        module = variant.build(spec)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def site_kinds(variant: Variant) -> tuple[SiteKind, ...]:
    """The kinds of site where a variant adds image tokens."""
    return getattr(variant, "site_kinds", ("cross",))


def entry_at(variant: Variant, kind: SiteKind) -> Entry | None:
    """Where a variant adds image terms at a site of this kind; None if it leaves it alone."""
    if kind not in site_kinds(variant):
        return None
    entries: Mapping[SiteKind, Entry] = getattr(variant, "entries", {})
    return entries.get(kind, "attention")


def has_place(variant: Variant, host: HostSpec) -> bool:
    """Does a base have a place where the variant acts?"""
    return any(entry_at(variant, place.kind) is not None for place in host.places)


def key_norm(variant: Variant, kind: SiteKind) -> float | None:
    """The epsilon of the RMS norm that K' gets in every head at such a site; None: K' as it is.

    Joint blocks normalise their own keys, so by default K' is normalised there as well.
    """
    norms: Mapping[SiteKind, float] = getattr(variant, "key_norms", _KEY_NORMS)
    return norms.get(kind)


def value_norm(variant: Variant, kind: SiteKind) -> float | None:
    """The same for V', which is left as it is unless the variant says otherwise."""
    norms: Mapping[SiteKind, float] = getattr(variant, "value_norms", {})
    return norms.get(kind)


def projected_as_text(variant: Variant) -> bool:
    """Does the base project its tokens like its text before K' and V' read them (Kolors)?"""
    return bool(getattr(variant, "projected_as_text", False))


def readings(variant: Variant) -> Mapping[str, Variant]:
    """The variant as other software runs its files, by the name of that software."""
    return getattr(variant, "readings", {})


def reading_of(variant: Variant, name: str) -> Variant:
    """The variant by the equation of that reading; "" is the one of its makers.

    Raises OptionError for a reading that it does not have.
    """
    if not name:
        return variant
    known = readings(variant)
    if name not in known:
        raise OptionError(
            f"reading {name!r} of a {variant.name} adapter",
            reason="no such reading",
            hint=f"Leave it out, or use: {', '.join(known)}."
            if known
            else "Leave it out: every program runs such adapters by one equation.",
        )
    return known[name]


def site_shapes(
    variant: Variant, host: HostSpec, spec: ProjectorSpec, lora_rank: int = LORA_RANK
) -> dict[str, Shape]:
    """The template of all tensors at the sites of a host, `{file id}.to_k_ip.weight` and so on."""
    if isinstance(variant, Sited):
        return variant.site_shapes(host, spec, lora_rank)
    return host.shapes(site_kinds(variant))


def readable_features(variant: Variant) -> tuple[Feature, ...]:
    """What its projector can read: its own feature, and for pictures others of the same form."""
    if variant.feature.reads_faces:
        return (variant.feature,)
    others = (Feature(name) for name in get_args(ImageFeature))
    same = (one for one in others if one.is_vector == variant.feature.is_vector)
    return tuple(dict.fromkeys((variant.feature, *same)))


def chosen_feature(variant: Variant, name: str | None) -> Feature:
    """The feature that a new adapter reads; None is the variant's own. Raises OptionError."""
    known = readable_features(variant)
    for feature in known:
        if name in (None, str(feature)):
            return feature
    raise OptionError(
        f"feature {name!r} for a {variant.name} adapter",
        reason="its projector cannot read that",
        hint=f"Choose one of these: {', '.join(map(str, known))}.",
    )


def twins(variant: Variant) -> Mapping[str, str]:
    """Variants of the same architecture that no tensor tells apart: name -> what differs."""
    return getattr(variant, "twins", {})


def more_general(variant: Variant) -> str:
    """The name of the variant that every file of this one fits as well; "" if there is none."""
    return getattr(variant, "more_general", "")


# ── the null rule ───────────────────────────────────────────────────────────────────────────────


class NullEncoder(Protocol):
    """What the null rule needs of an image encoder."""

    @property
    def image_size(self) -> int: ...

    def encode(self, pictures: Sequence[Image], feature: ImageFeature) -> Tensor: ...

    def encode_null(self, feature: ImageFeature) -> Tensor: ...


def encode_null(rule: NullRule, encoder: NullEncoder, feature: ImageFeature) -> Tensor:
    """The features of an image encoder for "no picture", [1, F] or [1, L, F].

    For every rule but "no tokens". "zero features" are zeros. "zero pixels" encodes pixels that are
    0 after normalisation, as tencent's code does for the Plus family. "black picture" encodes a
    black picture like any other, as XLabs does.
    """
    if rule == "black picture":
        from PIL import Image as Pillow

        size = encoder.image_size
        return encoder.encode([Pillow.new("RGB", (size, size))], feature)
    encoded = encoder.encode_null(feature)
    return encoded.new_zeros(encoded.shape) if rule == "zero features" else encoded


def null_features(
    rule: NullRule, like: Tensor | tuple[Tensor, ...], encoded: Tensor | None
) -> Tensor | tuple[Tensor, ...] | None:
    """What the projector reads for "no picture", in the place of features `like` [n, ...].

    `encoded` is what `encode_null` returned, None without an image encoder: then the result is None
    unless zeros will do, as it always is for "no tokens". The face embedding of a (face, picture)
    pair is always zeroed.
    """
    if rule == "no tokens":
        return None
    if rule == "zero features":
        if isinstance(like, tuple):
            return tuple(part.new_zeros(part.shape) for part in like)
        return like.new_zeros(like.shape)
    if encoded is None or not isinstance(like, tuple):
        return encoded
    return (like[0].new_zeros(like[0].shape), encoded)
